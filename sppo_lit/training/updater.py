"""Optimizer steps of one network, robust to out-of-memory errors and to losses and gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sppo_lit.distributed.collectives import reduced, sum_gradients
from sppo_lit.distributed.sharding import is_sharded, whole
from sppo_lit.errors import InputError
from sppo_lit.settings import OptimizerSettings
from sppo_lit.training.budget import TokenBudget
from sppo_lit.training.runtime import Runtime
from sppo_lit.training.stopping import StopControl
from sppo_lit.utils.out_of_memory import is_out_of_memory, release_reserve

Terms = dict[str, Tensor]
"""Scalars by name; those named in `LEAST` and `GREATEST` are extremes, all others sums over micro-batches and ranks."""

LEAST, GREATEST = ("policy/ratio_min",), ("policy/ratio_max",)


def adamw(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW over a network's trainable parameters, without weight decay on vectors (norms and biases)."""
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # The fused kernel needs no temporary memory; "foreach" needs as much as the gradients for a moment.
    fused = True if trained and all(p.device.type == "cuda" for p in trained) else None
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def idle_tensors(
    what: Literal["none", "optimizer", "all"],
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Iterable[Tensor],
    device: torch.device,
) -> list[Tensor]:
    """What `memory.offload_while_sampling` moves from the device to the host's memory.

    Args:
        what: the setting.
        optimizers: their moments are moved, their counters of steps are not.
        parameters: those of all networks.
        device: device of this rank; what lies elsewhere stays.
    """
    entries = [] if what == "none" else [state for optimizer in optimizers for state in optimizer.state.values()]
    idle = [value for state in entries for value in state.values() if isinstance(value, Tensor) and value.ndim]
    return [tensor for tensor in (*idle, *(parameters if what == "all" else ())) if tensor.device.type == device.type]


class Updater:
    """Takes the optimizer steps of one network, on all ranks together.

    Args:
        name: name of the network, "policy" or "critic".
        network: the trained network; its gradients are zero between steps.
        optimizer: its optimizer, as wrapped by Lightning.
        settings: settings of the optimizer.
        budget: token budget of one forward pass.
        runtime: runtime of this rank.
        stop: synchronises ranks.
        folder: run folder, for a minibatch that ends the run.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: OptimizerSettings,
        budget: TokenBudget,
        runtime: Runtime,
        stop: StopControl,
        folder: Path,
    ) -> None:
        self._name, self._network, self._optimizer, self._settings = name, network, optimizer, settings
        self._budget, self._runtime, self._stop, self._folder = budget, runtime, stop, folder
        self._skipped = 0  # consecutive steps

    def set_lr(self, iteration: int, iterations: int) -> float:
        """Set and return the learning rate of 0-based `iteration` in a run of `iterations`."""
        lr = self._settings.lr_at(iteration, iterations)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def step(
        self,
        pieces: Sequence[Tensor],
        lengths: Tensor,
        loss: Callable[[Tensor], Terms],
        names: Sequence[str],
        contents: Callable[[Tensor], Mapping[str, object]],
    ) -> Terms:
        """Forward and backward over a minibatch's micro-batches, then one optimizer step.

        The step is skipped if loss or gradient is not finite: the weights stay unchanged.

        Args:
            pieces: this rank's rows of each micro-batch, [N] int64 each; may be empty.
            lengths: [B] int64 on the CPU, input tokens of every row of the batch.
            loss: rows of a micro-batch -> its share of the minibatch's terms, without collectives; ``<name>/loss`` has
                a gradient.
            names: names of all terms.
            contents: rows -> what to save of them if the run ends here.

        Returns:
            The terms of the whole minibatch over all ranks, and ``<name>/grad_norm`` before clipping, float32 scalars
            (the norm is not finite if the step was skipped).

        Raises:
            InputError: `max_skipped_steps` consecutive steps were skipped; the minibatch is saved in the run folder.
            torch.OutOfMemoryError: a single sequence does not fit, or the network is sharded.
        """
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
        terms = self._reduce(self._accumulate(list(pieces), lengths, loss, names))
        value = terms[f"{self._name}/loss"]
        norm = self._step_clipped() if torch.isfinite(value) else self._skip(value)
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        if self._skipped >= self._settings.max_skipped_steps:
            self._give_up(value, contents(rows))
        return {**terms, f"{self._name}/grad_norm": norm}

    def _accumulate(
        self, pieces: list[Tensor], lengths: Tensor, loss: Callable[[Tensor], Terms], names: Sequence[str]
    ) -> Terms:
        """Accumulate the gradient over all pieces.

        When memory runs out on any rank, all ranks restart from a zero gradient with half the token budget. Not under
        sharding, where passes are collective and a rank that aborts one cannot notify the others.
        """
        if self._budget.out_of_memory:  # in an earlier minibatch; all were cut before the first
            pieces = self._budget.recut(pieces, lengths)
        while True:
            self._runtime.join_passes(self._network, len(pieces))
            done: list[Terms] = []
            try:
                done.append(self._passes(pieces, loss, names))
            except RuntimeError as error:
                if not is_out_of_memory(error) or is_sharded(self._network) or max(map(len, pieces), default=1) == 1:
                    raise
            # Outside the except block, whose traceback keeps activations alive.
            if not self._stop.meet(not done):
                return done[0]
            self._network.zero_grad()
            release_reserve()
            self._budget.halve()
            self._runtime.say(
                f"out of memory in an update: continuing with model.memory.micro_batch_tokens {self._budget.tokens}"
            )
            pieces = self._budget.recut(pieces, lengths)

    def _passes(self, pieces: Sequence[Tensor], loss: Callable[[Tensor], Terms], names: Sequence[str]) -> Terms:
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # bf16-true makes bfloat16 the default
        total = {name: torch.zeros((), dtype=dtype, device=self._runtime.device) for name in names}
        total |= {name: torch.full_like(total[name], torch.inf) for name in names if name in LEAST}
        for rows in pieces:
            terms = loss(rows)
            self._runtime.backward(terms[f"{self._name}/loss"])
            for name, value in terms.items():
                if name in LEAST or name in GREATEST:
                    pair = torch.stack([total[name], value.detach().to(total[name])])
                    total[name] = pair.min() if name in LEAST else pair.max()
                else:
                    total[name] += value.detach()
        return total

    def _reduce(self, terms: Terms) -> Terms:
        sums = {name: value for name, value in terms.items() if name not in LEAST and name not in GREATEST}
        sums = dict(zip(sums, reduced(torch.stack(list(sums.values()))), strict=True))
        least = {name: reduced(terms[name], dist.ReduceOp.MIN) for name in terms if name in LEAST}
        greatest = {name: reduced(terms[name], dist.ReduceOp.MAX) for name in terms if name in GREATEST}
        return {**sums, **least, **greatest}

    def _step_clipped(self) -> Tensor:
        """Sum the gradients over ranks, clip by global norm and step; skip the step if the norm is not finite."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        sum_gradients(parameters)
        norm = whole(nn.utils.clip_grad_norm_(parameters, self._settings.clip_norm))
        if torch.isfinite(norm):  # the same number on every rank
            self._take_step()
        self._optimizer.zero_grad()
        return norm.detach()

    def _take_step(self) -> None:
        """One optimizer step; once more when memory runs out while the first one allocates the moments."""
        try:
            self._optimizer.step()
            return
        except RuntimeError as error:
            begun = any(bool(state["step"] > 0) for state in self._optimizer.state.values())  # weights may have changed
            if not is_out_of_memory(error) or begun:
                raise
        release_reserve()
        self._optimizer.step()

    def _skip(self, loss: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        return torch.full_like(loss, torch.nan)

    def _give_up(self, loss: Tensor, contents: Mapping[str, object]) -> None:
        file = self._folder / f"bad_minibatch-{self._name}-rank{self._runtime.rank}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"loss": float(loss), **contents}, file)
        raise InputError(
            f"{self._skipped} consecutive steps of the {self._name} had a loss or gradient that is not finite, and "
            f"were skipped; the last minibatch is in {file}; lower model.{self._name}_optimizer.lr, or look for "
            f"values out of range in it (model.{self._name}_optimizer.max_skipped_steps sets how many are tolerated)"
        )
