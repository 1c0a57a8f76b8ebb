"""Export of the trained models as Hugging Face folders."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from sppo_lit.callbacks.card import Origin, model_card
from sppo_lit.callbacks.evaluation import Evaluation
from sppo_lit.distributed.sharding import whole_value
from sppo_lit.errors import InputError, refuse
from sppo_lit.models.loading import on_hub
from sppo_lit.models.lora import merged, save_adapters
from sppo_lit.problems.sources import hub_id
from sppo_lit.training.datamodule import MathDataModule
from sppo_lit.training.metrics import Result
from sppo_lit.training.protocols import LanguageModule, callbacks_of, language_module
from sppo_lit.training.run_folder import is_trial, run_folder
from sppo_lit.utils.console import console
from sppo_lit.utils.files import is_name, written_whole
from sppo_lit.utils.upload import Target, check, upload


class HuggingFaceExport(Callback):
    """At the end of training writes ``<run>/hf/policy`` and ``<run>/hf/critic``: safetensors, tokenizer, model card.

    With LoRA, the policy is written with merged adapters, and the adapters alone to ``<run>/hf/adapter`` for PEFT.

    They load with ``AutoModelForCausalLM.from_pretrained`` and ``AutoModelForSequenceClassification.from_pretrained``.
    Folders are written atomically.

    Args:
        critic: export the critic too, if there is one.
        folder: name of the folder in the run folder.
        repo: upload to this repository of the Hugging Face Hub too, and the critic to the same name with ``-critic``.
            Name, login and connection are checked before training; an upload that fails at its end does not fail the
            run, and ``sppo push`` repeats it.
        private: make these repositories private.
        license: licence in the model cards, as an identifier of the Hub such as ``apache-2.0``; None: on upload that of
            a base model on the Hub.

    Raises:
        InputError: `repo` is not the name of a repository, or `folder` not that of a folder.
    """

    def __init__(
        self,
        critic: bool = True,
        folder: str = "hf",
        repo: str | None = None,
        private: bool = False,
        license: str | None = None,
    ) -> None:
        refuse("export", folder=(repr(folder), is_name(folder), "the name of one folder, without '/'"))
        self.critic = critic
        self.folder = folder
        self.license = license
        self.target = None if repo is None else Target(repo, private, license)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Hub would take an upload.

        Raises:
            InputError: no connection, no login, or no right to write there.
        """
        if self.target is not None and trainer.is_global_zero and not is_trial(trainer):
            check(self.target)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folders; all ranks gather sharded weights, rank zero writes."""
        if is_trial(trainer):
            return
        run = run_folder(trainer)
        module = language_module(pl_module)
        models = {name: model for name, model in module.exports().items() if name != "critic" or self.critic}
        first, last = held_out(trainer)
        for name, model in models.items():
            weights = full_state(model)
            if trainer.is_global_zero:
                kind, origin = type(model).__name__.removeprefix("FSDP"), origin_of(name, module, trainer, self.license)
                card = model_card(name, kind, run, module.iteration, origin, first, last)
                save(run / self.folder / name, model, weights, module.tokenizer, card)
        if (base := module.adapter_base()) is not None:
            with written_whole(run / self.folder / "adapter") if trainer.is_global_zero else nullcontext() as folder:
                save_adapters(folder, models["policy"], base, whole_value)
        trainer.strategy.barrier("HuggingFaceExport")
        if self.target is not None and trainer.is_global_zero:
            try:
                for url in upload(run / self.folder, self.target):
                    console.print(f"uploaded: {url}", markup=False, soft_wrap=True)
            except InputError as error:
                again = f"sppo push {run} --repo {self.target.repo}"
                console.print(f"not uploaded: {error}; later: {again}", markup=False, soft_wrap=True)
        trainer.strategy.barrier("upload")


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


def held_out(trainer: pl.Trainer) -> tuple[dict[str, Result], dict[str, Result]]:
    """Held-out metrics by set before and after training; empty without an evaluation."""
    evaluation = next((c for c in callbacks_of(trainer) if isinstance(c, Evaluation)), None)
    if evaluation is None:
        return {}, {}
    return (evaluation.first if len(evaluation.history) > 1 else {}), evaluation.last


def origin_of(part: str, module: LanguageModule, trainer: pl.Trainer, licence: str | None) -> Origin:
    """What an exported model was made from, as its card says it."""
    source = module.sources()[part]
    model = source.path if source.init == "pretrained" else None
    data = getattr(trainer, "datamodule", None)  # of Lightning; the data may also be a plain data loader
    if not isinstance(data, MathDataModule):
        return Origin(model, on_hub(source), licence=licence)
    sets = {name: hub_id(given.path) for name, given in zip(data.val_names, data.val, strict=False)}
    train = hub_id(data.train.path)
    return Origin(
        model=model,
        model_on_hub=on_hub(source),
        train=train or data.train.path,
        datasets=(train,) if train else (),
        held_out={name: found for name, found in sets.items() if found},
        licence=licence,
    )
