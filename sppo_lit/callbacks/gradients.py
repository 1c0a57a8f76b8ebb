"""Gradients of single responses at one set of weights: what the variance of a policy gradient is measured from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sppo_lit.algorithms.batching import pad_rows
from sppo_lit.algorithms.specs import algorithm
from sppo_lit.errors import InputError
from sppo_lit.models.critics import ScalarCritic, TokenCritic
from sppo_lit.settings import MemorySettings, ModelSource
from sppo_lit.training.module import SPPOModule
from sppo_lit.training.networks import make_critic
from sppo_lit.training.protocols import NamedSets
from sppo_lit.types import Encoded, Sequences
from sppo_lit.utils.console import console
from sppo_lit.utils.files import written_whole

CHUNK = 8
"""Problems that are sampled together."""

TrainedCritic = tuple[ScalarCritic | TokenCritic, Callable[[Tensor], Tensor]]
"""A critic and its link from output to V."""


class Sketch:
    """Random projection of a gradient that keeps inner products: every entry goes to one of `width` sums, with a sign.

    (A count sketch: ⟨Sx, Sy⟩ is ⟨x, y⟩ on average, with a standard deviation of at most |x||y| √(2 / width). Exact, a
    mere permutation, is not needed: entries may share a sum.)

    Args:
        parameters: number of entries of a gradient.
        width: number of sums.
    """

    def __init__(self, parameters: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self._place = torch.randint(width, (parameters,), generator=generator)
        self._sign = torch.randint(2, (parameters,), generator=generator).float() * 2 - 1

    def __call__(self, gradients: Sequence[Tensor]) -> Tensor:
        """[width] float32 of a gradient given as one tensor for each parameter."""
        flat = torch.cat([g.detach().reshape(-1).float().cpu() for g in gradients])
        return torch.zeros(self.width).index_add_(0, self._place, flat * self._sign)


class GradientSamples(Callback):
    """After a validation, samples responses to its problems and saves ∇ log π of each, one file a problem.

    ``sppo figure gradient_variance FOLDER`` reads them. An interrupted measurement goes on: what is in the folder, of
    the same policy and settings, is not sampled again. For policies that fit one device, in one process.

    Args:
        folder: folder of the files.
        samples: K, responses to each problem, at the training temperature.
        critics: run folders whose exported critics (``hf/critic``) are to predict V for the same responses.
        width: entries that each gradient is projected to.

    Raises:
        InputError: fewer than 8 samples, several processes, a run without an exported critic, two of one name, or a
            folder with another measurement.
    """

    def __init__(self, folder: str, samples: int = 16, critics: list[str] | None = None, width: int = 8192) -> None:
        if samples < 8:
            raise InputError(f"GradientSamples: samples is {samples}; groups of 8 need at least 8")
        self.folder, self.samples, self.critics, self.width = Path(folder), samples, critics or [], width

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure every problem that is not in the folder."""
        if not trainer.sanity_checking:
            with torch.inference_mode(False):  # a validation takes no gradients
                self._measure_all(trainer, pl_module)

    def _measure_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 or not isinstance(pl_module, SPPOModule):
            raise InputError("GradientSamples: takes one process and SPPOModule; leave out --devices and --strategy")
        module, data = pl_module, cast(Any, trainer).datamodule
        assert isinstance(data, NamedSets) and module.sampler is not None
        critics = {Path(run).parent.name: self._critic(Path(run), module) for run in self.critics}
        if len(critics) < len(self.critics):
            raise InputError(
                f"GradientSamples: two critics have one name ({', '.join(critics)}): the folder of version_<n>"
            )
        weights = [p for p in module.policy.parameters() if p.requires_grad]
        sketch = Sketch(sum(p.numel() for p in weights), self.width)
        self._claim({"policy": module.sources()["policy"].path, "checkpoint": str(trainer.ckpt_path)})
        problems = [(f"{name}-{i:05d}", entry) for name in data.val_names for i, entry in enumerate(_set(data, name))]
        todo = [(name, entry) for name, entry in problems if not (self.folder / f"{name}.pt").is_file()]
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            repeated = [entry for _, entry in chunk for _ in range(self.samples)]
            keys = list(range(self.samples)) * len(chunk)
            completions = module.sampler.draw(repeated, module.sampling, "gradients", keys, module.iteration)
            _, verdicts = module.sampler.judge(repeated, completions)
            device = module.runtime.device
            prompts = pad_rows([ids for _, ids in repeated], device)
            batch = Sequences(*prompts, *pad_rows([c.response_ids for c in completions], device))
            rewards = torch.tensor([float(v.reward) for v in verdicts])
            for i, (name, (problem, _)) in enumerate(chunk):
                rows = torch.arange(i * self.samples, (i + 1) * self.samples)
                record = self._measure(module, weights, sketch, critics, batch, rows)
                facts = {"problem": problem.key, "level": problem.level, "rewards": rewards[rows]}
                with written_whole(self.folder / f"{name}.pt") as path:
                    torch.save({**facts, **record}, path)
            done = len(problems) - len(todo) + start + len(chunk)
            console.print(f"gradients: {done} of {len(problems)} problems × {self.samples} responses", markup=False)

    def _claim(self, weights: dict[str, str]) -> None:
        """Make the folder, or see that it is of this measurement."""
        made = {**weights, "samples": self.samples, "critics": self.critics, "width": self.width}
        file = self.folder / "measurement.json"
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != made:
            raise InputError(
                f"GradientSamples: {self.folder} holds a measurement with other settings; give another folder"
            )
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(made, indent=1), encoding="utf-8")

    def _measure(
        self,
        module: SPPOModule,
        weights: Sequence[torch.nn.Parameter],
        sketch: Sketch,
        critics: dict[str, TrainedCritic],
        batch: Sequences,
        rows: Tensor,
    ) -> dict[str, Any]:
        """∇ Σ_t log π_t [K, width] and lengths [K]; V of each critic, and of a token-level one ∇ Σ_t V_t log π_t."""
        scores, lengths = [], batch.response_lengths[rows].cpu()
        values: dict[str, Tensor] = {}
        by_token: dict[str, list[Tensor]] = {}
        for row in rows.tolist():
            piece = batch.select(torch.tensor([row]))
            with torch.enable_grad():
                logprobs = module.policy(*piece.tokens, module.sampling.temperature).logprobs[0]
                weighted = {}
                for name, (critic, link) in critics.items():
                    with torch.no_grad():
                        v = link(critic(*critic.inputs(piece)))[0]
                    values.setdefault(name, torch.zeros(len(rows)))[row - int(rows[0])] = float(v.reshape(-1)[0])
                    if v.ndim:
                        weighted[name] = (v[: len(logprobs)] * logprobs).sum()
                for name, total in weighted.items():
                    by_token.setdefault(name, []).append(sketch(torch.autograd.grad(total, weights, retain_graph=True)))
                scores.append(sketch(torch.autograd.grad(logprobs.sum(), weights)))
        return {
            "lengths": lengths,
            "scores": torch.stack(scores),
            "values": values,
            "value_scores": {name: torch.stack(found) for name, found in by_token.items()},
        }

    def _critic(self, run: Path, module: SPPOModule) -> TrainedCritic:
        """The exported critic of a run, and its link.

        Raises:
            InputError: there is none.
        """
        source, config = run / "hf" / "critic", run / "config.yaml"
        if not source.is_dir() or not config.is_file():
            raise InputError(f"GradientSamples: {run} has no hf/critic; name a finished run with a critic")
        model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
        spec = algorithm(model.get("init_args", model).get("algorithm", "sppo"))
        assert spec.critic != "none"  # it has exported one
        critic = make_critic(ModelSource(str(source)), module.tokenizer, MemorySettings(), spec.critic, False)
        return critic.eval().to(module.runtime.device), spec.link


def _set(data: Any, name: str) -> list[Encoded]:
    return list(data.val_sets[name])
