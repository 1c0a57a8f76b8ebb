"""Export of the trained models as Hugging Face folders."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.distributed.sharding import whole_value
from sppo_lit.models.lora import merged, save_adapters
from sppo_lit.training.protocols import callbacks_of, training_module
from sppo_lit.training.run_folder import is_trial, run_folder
from sppo_lit.utils.files import written_whole

CITATION = """@misc{sppo2026,
  title         = {SPPO: Sequence-Level PPO for Long-Horizon Reasoning Tasks},
  author        = {Wang and others},
  year          = {2026},
  eprint        = {2604.08865},
  archivePrefix = {arXiv},
}"""


class HuggingFaceExport(Callback):
    """At the end of training writes ``<run>/hf/policy`` and ``<run>/hf/critic``: safetensors, tokenizer, model card.

    With LoRA, the policy is written with merged adapters, and the adapters alone to ``<run>/hf/adapter`` for PEFT.

    They load with ``AutoModelForCausalLM.from_pretrained`` and ``AutoModelForSequenceClassification.from_pretrained``.
    Folders are written atomically.

    Args:
        critic: export the critic too, if there is one.
        folder: name of the folder in the run folder.
    """

    def __init__(self, critic: bool = True, folder: str = "hf") -> None:
        self.critic = critic
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folders; all ranks gather sharded weights, rank zero writes."""
        if is_trial(trainer):
            return
        run = run_folder(trainer)
        module = training_module(pl_module)
        models = {name: model for name, model in module.exports().items() if name != "critic" or self.critic}
        for name, model in models.items():
            weights = full_state(model)
            if trainer.is_global_zero:
                kind, done = type(model).__name__.removeprefix("FSDP"), module.iteration
                card = model_card(name, kind, run, done, results(trainer))
                save(run / self.folder / name, model, weights, module.tokenizer, card)
        if (base := module.adapter_base()) is not None:
            with written_whole(run / self.folder / "adapter") if trainer.is_global_zero else nullcontext() as folder:
                save_adapters(folder, models["policy"], base, whole_value)
        trainer.strategy.barrier("HuggingFaceExport")


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Unsharded weights on the CPU with merged adapters; tied weights stay one tensor. Collective if sharded."""
    seen: dict[int, Tensor] = {}

    def once(value: Tensor) -> Tensor:
        if id(value) not in seen:
            seen[id(value)] = whole_value(value).cpu()
        return seen[id(value)]

    return dict(merged(model, iter(model.state_dict(keep_vars=True).items()), once))


def save(
    folder: Path,
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write one model folder, atomically.

    Args:
        folder: target; an existing one is replaced.
        model: its class and configuration are saved.
        weights: its unsharded state dict on the CPU.
        tokenizer: saved in the same folder.
        card: text of ``README.md``.
    """
    bars = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        _save(folder, model, weights, tokenizer, card)
    finally:
        if bars:
            enable_progress_bar()


def _save(
    folder: Path, model: PreTrainedModel, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, card: str
) -> None:
    with written_whole(folder) as temporary:
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        if model.can_generate():
            generation(model, tokenizer).save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Pure temperature sampling, as in training, without top-k, top-p or penalties of the base model."""
    old = model.generation_config
    ends = old.eos_token_id if old is not None and old.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=pad,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )


def results(trainer: pl.Trainer) -> list[str]:
    """The held-out metrics before and after training as a Markdown table; empty without an evaluation."""
    callbacks = callbacks_of(trainer)
    evaluation = next((c for c in callbacks if isinstance(c, Evaluation)), None)
    if evaluation is None or not evaluation.last:
        return []
    lines = ["| set | problems | measure | before training | after training |", "|---|---:|---|---:|---:|"]
    measures = {"greedy": "greedy", "avg_at_k": "avg@{k}", "pass_at_k": "pass@{k}", "maj_at_k": "maj@{k}"}
    for name, last in evaluation.last.items():
        first = evaluation.first.get(name, {}) if len(evaluation.history) > 1 else {}
        for key, label in measures.items():
            if key in last:
                cells = [
                    name,
                    f"{last['problems']:.0f}",
                    label.format(k=int(last["k"])),
                    cell(first, key),
                    cell(last, key),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def cell(result: dict[str, float], key: str) -> str:
    """A metric in percent with its 95 % interval; – if missing."""
    if key not in result:
        return "–"
    interval = f" ± {100 * result[f'{key}_ci']:.1f}" if f"{key}_ci" in result else ""
    return f"{100 * result[key]:.1f}{interval}"


def auto_class(model_class: str) -> str:
    """The Auto class of transformers that loads a policy or critic of this class."""
    suffixes = {"ForSequenceClassification": "SequenceClassification", "ForTokenClassification": "TokenClassification"}
    kind = next((kind for end, kind in suffixes.items() if model_class.endswith(end)), "CausalLM")
    return f"AutoModelFor{kind}"


def model_card(part: str, model_class: str, run: Path, iteration: int, table: list[str]) -> str:
    """README of an exported model: description, usage, results, recipe and citation.

    Args:
        part: ``policy`` or ``critic``.
        model_class: transformers class of the model.
        run: run folder, whose ``config.yaml`` (if present) is the recipe.
        iteration: iterations completed.
        table: lines of the table of results.
    """
    auto = auto_class(model_class)
    about = {
        "AutoModelForCausalLM": "a language model trained to solve problems whose answers can be checked",
        "AutoModelForSequenceClassification": "the critic of that training: sigmoid(logit) at the last prompt token is "
        "the policy's probability of solving the prompt",
        "AutoModelForTokenClassification": "the critic of that training: its output at a token is the value of prompt "
        "and response up to that token (a logit if the algorithm of the recipe is ppo_bce)",
    }[auto]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'text-generation' if part == 'policy' else 'text-classification'}",
        "tags: [reinforcement-learning, reasoning, sequence-level-ppo, sppo-lit]",
        "---",
        "",
        f"# {part.capitalize()} after {iteration} iterations of training",
        "",
        f"A `{model_class}`: {about}. Made with sppo-lit.",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{part}")  # this folder',
        f'tokenizer = AutoTokenizer.from_pretrained("{part}")',
        "```",
        "",
    ]
    if table:
        lines += ["## Held-out results of the policy", "", "Percent, with 95 % intervals.", "", *table, ""]
    recipe = run / "config.yaml"
    if recipe.is_file():
        text = recipe.read_text(encoding="utf-8").strip()
        fence = "`" * (4 if "```" in text else 3)
        lines += ["## Recipe", "", f"{fence}yaml", text, fence, ""]
    lines += ["## Citation", "", "```bibtex", CITATION, "```", ""]
    return "\n".join(lines)
