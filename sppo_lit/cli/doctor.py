"""`sppo doctor`: builds the recipe's module and data as for a run, and checks them instead of training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace

from sppo_lit.algorithms.specs import algorithm
from sppo_lit.cli.recipe_checks import check_together
from sppo_lit.cli.recipe_cli import RecipeCLI, run
from sppo_lit.doctor.checks import Examination
from sppo_lit.doctor.memory import Plan, disk_bytes, needs
from sppo_lit.doctor.report import Check, Prompt, show, show_prompts
from sppo_lit.doctor.resources import available_memory, disk_check, memory_check
from sppo_lit.errors import InputError
from sppo_lit.settings import LoraSettings, ModelSource
from sppo_lit.training.protocols import callbacks_of
from sppo_lit.utils.console import console
from sppo_lit.utils.files import free_bytes

SINGLE_PROCESS = {"strategy": "auto", "devices": 1, "num_nodes": 1, "logger": False, "num_sanity_val_steps": 0}
"""Trainer settings for the checks."""


class DoctorCLI(RecipeCLI):
    """Checks a recipe: memory for the devices and strategy given, everything else in one process."""

    args: argparse.Namespace
    writes = False
    prompts: Sequence[Prompt] = ()

    def before_instantiate_classes(self) -> None:
        """Estimate memory and disk from the configuration, before anything is loaded."""
        super().before_instantiate_classes()
        if not self.kind.responses:
            raise InputError(f"{self.recipe}: the doctor examines runs of language models; just run this recipe")
        self.save_config_callback = None
        if not (self.args.no_load or self.args.memory):  # which ask about another machine
            self.choose_precision()
        settings = self.config[self.subcommand]
        cuda = settings.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        available, kind = available_memory(cuda)
        if self.args.memory:
            available, kind = int(self.args.memory * 2**30), "--memory"
        local = local_processes(settings.trainer.devices, cuda)
        gpu = settings.trainer.accelerator != "cpu" and (cuda or bool(self.args.memory))
        plan = plan_of(settings, local, available if gpu else None)
        self.estimate, self.ranks = needs(plan), plan.ranks
        sharing = 1 if cuda or self.args.memory else local
        check = memory_check(self.estimate, plan, sharing, available, kind)
        free = None if self.args.memory else free_bytes(self._runs())  # with --memory, another machine is asked about
        self.checks = [check, disk_check(disk_bytes(plan), free, self._runs())]
        if cuda and local > torch.cuda.device_count():
            detail = f"{local} GPUs are requested, {torch.cuda.device_count()} are available"
            self.checks.append(Check("devices", False, detail, "change --devices"))

    def instantiate_classes(self) -> None:
        """Skipped by `--no-load`."""
        if not self.args.no_load:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """One process that neither logs nor validates first."""
        trainer = self._get(self.config_init, "trainer")
        for key, value in SINGLE_PROCESS.items():
            trainer[key] = value
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Check for all ranks of the run what module and data must agree on."""
        if not self.args.no_load:
            check_together(self.model, self.datamodule, self.ranks)

    def _run_subcommand(self, subcommand: str) -> None:
        if self.args.no_load:
            return
        examination = Examination(self.args.problems)
        callbacks_of(self.trainer)[:] = [examination]  # without the built-in ones, which plot, save and evaluate
        self.trainer.fit(self.model, datamodule=self.datamodule)
        self.checks += examination.checks
        self.prompts = examination.prompts


def doctor(args: argparse.Namespace, arguments: list[str]) -> int:
    """Check a recipe and print the report; returns 0 if all checks pass, else 1.

    Args:
        args: see `sppo_lit.doctor.report.options`.
        arguments: command line, as for a run.

    Raises:
        InputError: anything the user can fix.
    """
    kind: type[DoctorCLI] = type("DoctorCLI", (DoctorCLI,), {"args": args})
    cli = run(arguments, kind)
    show_prompts(cli.prompts, console)
    show(cli.checks, cli.estimate, console)
    return int(any(not check.good for check in cli.checks))


def plan_of(settings: Namespace, processes: int, gpu_memory: int | None = None) -> Plan:
    """The sizes of a recipe's run.

    Args:
        settings: the parsed recipe.
        processes: number of processes on each node.
        gpu_memory: bytes of each GPU; None on a CPU.
    """
    trainer, data = settings.trainer, settings.data
    model = settings.model.get("init_args", settings.model)
    ranks = processes * int(trainer.num_nodes)
    kl, lora, policy = model.get("kl"), model.get("lora"), _source(model.policy)
    reference = None
    if kl and kl.coef:
        reference = _source(kl.reference) if kl.reference else None if lora else policy
    spec = algorithm(model.algorithm) if "algorithm" in model else None  # supervised training has none
    limits = (model.sampling.max_new_tokens, model.evaluation.max_new_tokens or 0)
    return Plan(
        policy=policy,
        critic=_source(model.critic) if model.get("critic") else policy,
        critic_kind=spec.critic if spec else "none",
        reference=reference,
        precision=str(trainer.precision or "32-true"),
        ranks=ranks,
        sharded=trainer.strategy == "fsdp",
        micro_batch_tokens=model.memory.micro_batch_tokens,
        prompt_tokens=data.max_prompt_tokens,
        response_tokens=max(limits),
        concurrent=model.rollout.max_concurrent,
        gradient_checkpointing=model.memory.gradient_checkpointing,
        cpu_offload=model.memory.cpu_offload,
        offload_while_sampling=model.memory.offload_while_sampling,
        gpu_memory=gpu_memory,
        lora=LoraSettings(**lora.as_dict()) if lora else None,
    )


def local_processes(devices: int | str | Sequence[int], cuda: bool) -> int:
    """Number of processes on this machine for Lightning's `devices`.

    Raises:
        InputError: it is no number of processes and no list.
    """
    if isinstance(devices, (list, tuple)):
        return len(devices)
    text = str(devices)
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if cuda else 1
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--devices {devices}: give a number of processes, auto, or a list such as 0,1")
    return int(text)


def _source(entry: Namespace) -> ModelSource:
    return ModelSource(**entry.as_dict())
