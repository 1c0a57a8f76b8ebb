"""``run fit --help``: the settings that matter on a page, and ``--help all``; read from the sources, without torch."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sppo_lit.cli import SHORT_FLAGS
from sppo_lit.utils.paths import PACKAGE

WIDTH, LEFT = 80, 34
"""Columns of a page, and of the flags on it."""

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
DATA = "sppo_lit.training.datamodule.MathDataModule"
CONTROL_DATA = "sppo_lit.control.datamodule.ControlDataModule"
MODULE = "sppo_lit.training.module.SPPOModule"
COMMAND_LINE = "sppo_lit.cli.recipe_cli"
"""Where settings and the words for them are written."""

SHORT = {
    "The run": (
        "max_epochs",
        "seed_everything",
        "run_name",
        "ckpt_path",
        "clock.max_seconds",
        "logger",
        "trainer.default_root_dir",
    ),
    "Models and algorithm": (
        "model.algorithm",
        "model.policy.path",
        "model.critic.path",
        "model.lora.rank",
        "model.reward.custom",
    ),
    "Problems": (
        "data.train.path",
        "data.val",
        "data.problems_per_epoch",
        "data.max_prompt_tokens",
        "data.prompt.suffix",
    ),
    "Sampling": (
        "model.batch.samples_per_prompt",
        "model.sampling.temperature",
        "model.sampling.max_new_tokens",
        "model.rollout.engine",
    ),
    "Update": (
        "model.batch.minibatch_size",
        "model.policy_optimizer.lr",
        "model.critic_optimizer.lr",
        "model.ppo.epochs",
        "model.kl.coef",
    ),
    "Evaluation and files": (
        "trainer.check_val_every_n_epoch",
        "model.evaluation.samples",
        "checkpoint.every_n_iterations",
        "export.repo",
    ),
    "Machine and memory": (
        "accelerator",
        "devices",
        "strategy",
        "precision",
        "model.memory.micro_batch_tokens",
        "model.memory.gradient_checkpointing",
    ),
}
"""Heading -> settings of the short page."""

WORDS = {
    "max_epochs": "iterations of the run; on resume the total, not those to come",
    "seed_everything": "seed of weights, problems and sampling, from 0 to 4,294,967,295",
    "run_name": "folder of its runs in lightning_logs; by default the recipe's name",
    "ckpt_path": "last goes on with the newest run of this recipe, or a .ckpt file; best is the one with the highest "
    "held-out accuracy",
    "logger": "beside CSV and TensorBoard, which are always kept: wandb, mlflow, or both with a comma",
    "wandb": "as --logger wandb, in this project",
    "trainer.default_root_dir": "folder that holds the runs of all recipes; lightning_logs by default",
    "data.val": "held-out sets, e.g. '[{path: gsm8k, limit: 200}]'; each takes the settings of data.train",
    "trainer.check_val_every_n_epoch": "iterations from one evaluation to the next",
    "trainer.max_steps": "not supported: set trainer.max_epochs",
    "trainer.overfit_batches": "not supported: set data.train.limit",
    "trainer.accumulate_grad_batches": "not supported: set model.memory.micro_batch_tokens",
    "trainer.gradient_clip_val": "not supported: set model.policy_optimizer.clip_norm",
    "trainer.enable_checkpointing": "not supported: see checkpoint.every_n_iterations",
    "trainer.enable_progress_bar": "not supported: see progress.plain_every_n_iterations",
    "trainer.barebones": "not supported in a recipe",
    "trainer.logger": "Lightning loggers of your own, beside CSV and TensorBoard; false: none, and nothing is logged",
    "trainer.callbacks": "Lightning callbacks of your own, beside the built-in ones",
    "accelerator": "cpu, gpu or auto",
    "devices": "processes of this machine, one for each GPU",
    "data.train.path": "a name such as gsm8k, a Hub id, a local file or folder, arithmetic or reasoning_gym/NAME",
    "model.algorithm": "sppo, a baseline (ppo, grpo, rloo, reinforce_pp, …: 'sppo list' shows recipes), or a spec of "
    "your own as path/to/file.py:SPEC",
    "clock.max_seconds": "seconds of training, without evaluations, after which the run ends; no limit by default",
    "num_nodes": "machines; start the same command on each",
    "strategy": "auto (one process or ddp), ddp, or fsdp, which shards models and optimizers",
    "precision": "32-true or bf16-mixed",
    "model.policy": "see model.policy.path",
    "model.critic": "where the critic comes from: path, init, config, revision as of the policy; null: as the policy",
    "model.critic.path": "the critic's, as of the policy; by default the policy's. May be far smaller than the policy",
    "model.lora.rank": "train adapters of this rank instead of the policy's weights; off by default",
    "weights_only": "how torch reads the checkpoint; leave it out",
    "verbose": "Lightning's own table beside the one of this program",
}
"""What the sources do not say, or in other words than this project's."""

STAGE = {
    "fit": (("ckpt_path", "PATH | last | best"), ("weights_only", "bool")),
    "validate": (("ckpt_path", "PATH | last | best"), ("verbose", "bool"), ("weights_only", "bool")),
}
"""Settings of a stage: name, and what it takes."""

TOP = (("seed_everything", "int"), ("run_name", "str"), ("logger", "str"), ("wandb", "str"))
"""Settings of the command line itself."""


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: dotted name, as in a recipe.
        kind: what it takes.
        default: its default as a recipe writes it; None if there is none to show.
        text: what it is, with its unit.
        off: whether its group is not there by default, such as `model.lora`.
    """

    key: str
    kind: str
    default: str | None
    text: str
    off: bool = False


def page(stage: str, recipe: Path | None, everything: bool, name: str = "sppo") -> str:
    """The help of ``run STAGE``, at most 80 columns wide.

    Args:
        stage: fit or validate.
        recipe: recipe, whose own values are shown as defaults.
        everything: all settings instead of those that matter most.
        name: name of the command.
    """
    content = _content(recipe)
    settings = {setting.key: setting for setting in all_settings(stage, content)}
    given = dict(_flat(content))
    values = {key: _text(given[key]) if key in given else s.default for key, s in settings.items()}
    values |= {key: None for key, s in settings.items() if s.off and key not in given and not everything}
    shown = recipe or "RECIPE"
    lines = [f"usage: {name} run {stage} {shown} [--SETTING VALUE …]", ""]
    if everything:
        groups: dict[str, list[str]] = {}
        for key in settings:
            groups.setdefault(key.partition(".")[0] if "." in key else "the run", []).append(key)
    else:
        groups = {head: [found for key in keys if (found := _long(key, settings))] for head, keys in SHORT.items()}
    which = "Every setting" if everything else "The settings that matter most"
    whose = f"the values of {recipe.name}" if recipe else "their defaults"
    lines += textwrap.wrap(f"{which}, with {whose} in brackets. In a recipe they are keys: a.b is b below a.", WIDTH)
    for heading, keys in groups.items():
        lines += ["", heading] if keys else []
        for key in keys:
            lines += _entry(settings[key], values[key], everything)
    lines += ["", *_footer(stage, everything, name, shown)]
    return "\n".join(lines)


def all_settings(stage: str, content: Mapping[str, Any] | None = None) -> list[Setting]:
    """Every setting of a stage, in the order in which the help lists them.

    Args:
        stage: fit or validate.
        content: a recipe, which may name another class of its model.
    """
    model = (content or {}).get("model")
    kind = model.get("class_path") if isinstance(model, dict) else None
    found = [Setting(key, kind, None, WORDS.get(key, "")) for key, kind in (*TOP, *STAGE[stage])]
    if found and found[0].key == "seed_everything":
        found[0] = Setting("seed_everything", "int", "1", WORDS["seed_everything"])
    found += _of_class("model.init_args" if kind else "model", str(kind or MODULE))
    control = str(kind).endswith("ControlModule")
    found += _of_class("data", CONTROL_DATA if control else DATA)
    for key, callback in _callbacks():
        found += [] if control and key in ("completions", "export") else _of_class(key, callback)
    defaults = _trainer_defaults()
    for setting in _of_class("trainer", TRAINER):
        key = setting.key.removeprefix("trainer.")
        default = defaults.get(key, setting.default)
        text = WORDS.get(setting.key) or (WORDS[key] if key in SHORT_FLAGS else setting.text)
        found.append(replace(setting, default=default, text=text))
    return found


# ------------------------------------------------------------------------------------------------------------ printing


def _long(key: str, settings: Mapping[str, Setting]) -> str | None:
    """The key in a recipe of a setting of the short page; None where the recipe's module has none such."""
    keys = (f"trainer.{key}" if key in SHORT_FLAGS else key, key.replace("model.", "model.init_args.", 1))
    return next((key for key in keys if key in settings), None)


def _entry(setting: Setting, value: str | None, everything: bool) -> list[str]:
    short = setting.key.removeprefix("trainer.")
    flag = f"  --{short if short in SHORT_FLAGS else setting.key}"
    text = " ".join((setting.text if everything else _first_sentence(setting.text)).split())
    if everything:
        text = f"{setting.kind}: {text}" if text else setting.kind
    if value not in (None, "null"):
        text += f" [{value if len(str(value)) <= 60 else str(value)[:59] + '…'}]"
    indented = textwrap.wrap(text, WIDTH - LEFT, break_on_hyphens=False) or [""]
    if len(flag) >= LEFT:
        return [flag, *(" " * LEFT + line for line in indented)]
    return [f"{flag:<{LEFT}}{indented[0]}", *(" " * LEFT + line for line in indented[1:])]


def _first_sentence(text: str) -> str:
    return re.split(r"\.(?:\s+(?=[A-Z0-9])|$)", text, maxsplit=1)[0]


def _footer(stage: str, everything: bool, name: str, recipe: Path | str) -> list[str]:
    own = "" if everything else f"{name} run {stage} {recipe} --help all\n{' ' * 27}every setting\n"
    text = f"""\
{own}{name} run {stage} {recipe} --print_config
                           all values of this run, as a recipe
{name} run {stage} --trainer.callbacks.help CLASS
                           settings of a callback that a recipe names"""
    return text.splitlines()


def _text(value: object) -> str:
    if isinstance(value, str):
        return value or "''"
    flow = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return flow.removesuffix("\n").removesuffix("\n...")


def _content(recipe: Path | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}  # a run of it says what is wrong
    return content if isinstance(content, dict) else {}


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        yield f"{before}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")


# ------------------------------------------------------------------------------------------------- reading the sources


@cache
def _module(name: str) -> ast.Module:
    """The parsed source of a module; none of it is imported.

    Raises:
        FileNotFoundError: there is no such source.
    """
    parts = name.split(".")
    roots = [PACKAGE.parent] if parts[0] == PACKAGE.name else [Path(p or ".") for p in sys.path]
    for root in roots:
        base = root.joinpath(*parts)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    raise FileNotFoundError(name)


@cache
def _found(path: str) -> tuple[ast.ClassDef | ast.expr, str] | None:
    """Source of a class or of what a name stands for, and its module; this project's imports are followed."""
    module, _, name = path.rpartition(".")
    try:
        tree = _module(module)
    except FileNotFoundError:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value, module
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sppo_lit"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _found(f"{node.module}.{alias.name}")
    public = _assigned(tree, "_PUBLIC").get(name) if module == "sppo_lit" else None
    return _found(f"{public.value}.{name}") if public else None


def _assigned(tree: ast.Module, name: str) -> dict[str, Any]:
    """A literal mapping of a module: key -> node."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {str(k.value): v for k, v in pairs if isinstance(k, ast.Constant)}
    return {}


def _callbacks() -> list[tuple[str, str]]:
    """Key in a recipe -> class of the built-in callbacks."""
    found = _assigned(_module(COMMAND_LINE), "CALLBACKS")
    return [(key, f"{COMMAND_LINE}.{node.id}") for key, node in found.items()]


def _trainer_defaults() -> dict[str, str]:
    return {key: _default(node) or "" for key, node in _assigned(_module(COMMAND_LINE), "TRAINER_DEFAULTS").items()}


def _of_class(prefix: str, path: str, off: bool = False) -> list[Setting]:
    """The settings of a class, groups of settings included; `off`: of a group that is not there by default."""
    node, module = _found(path) or (None, "")
    if not isinstance(node, ast.ClassDef):
        return []
    start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    words = _described(ast.get_docstring(node) or "") | _described(ast.get_docstring(start) or "" if start else "")
    settings: list[Setting] = []
    for name, annotation, value in _arguments(start) if start else _fields(node):
        key = f"{prefix}.{name}"
        inner = _found(f"{module}.{ast.unparse(annotation).removesuffix(' | None')}") if annotation else None
        if inner is not None and isinstance(inner[0], ast.ClassDef):
            own = {k.arg: _default(k.value) for k in value.keywords} if isinstance(value, ast.Call) else {}
            group = _of_class(key, f"{inner[1]}.{inner[0].name}", off or _default(value) == "null")
            settings += [replace(s, default=own.get(s.key.removeprefix(f"{key}."), s.default)) for s in group]
        else:
            text = WORDS.get(key) or words.get(name, "")
            settings.append(Setting(key, _kind(annotation, module), _default(value), text, off))
    return settings


def _arguments(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    given = function.args
    positional = given.args[1:]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    for argument, default in pairs:
        yield argument.arg, argument.annotation, default


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield field.target.id, field.annotation, field.value


def _described(docstring: str) -> dict[str, str]:
    """Name -> text, of the sections Args and Attributes of a docstring in Google's convention."""
    found: dict[str, str] = {}
    name, inside, indent = "", False, 0
    for line in docstring.splitlines():
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if stripped in ("Args:", "Attributes:"):
            inside, indent, name = True, 0, ""
        elif stripped and depth == 0:
            inside = False
        elif inside and stripped:
            indent = indent or depth
            head, colon, rest = stripped.partition(":")
            if depth == indent and colon and head.isidentifier():
                name = head
                found[name] = rest.strip()
            elif name:
                found[name] = f"{found[name]} {stripped}".strip()
    return {key: re.sub(r":\w+:~?(?:[\w.]+\.)?(?=\w)", "", text.replace("`", "")) for key, text in found.items()}


def _default(value: ast.expr | None) -> str | None:
    if value is None:
        return None
    try:
        return _text(ast.literal_eval(value))
    except ValueError:
        if isinstance(value, ast.Call):  # a group of settings, or field(default_factory=…)
            factory = next((k.value for k in value.keywords if k.arg == "default_factory"), None)
            return {"dict": "{}", "list": "[]"}.get(getattr(factory, "id", ""))
        return None


def _kind(node: ast.expr | None, module: str) -> str:
    """A type as the help writes it: alternatives with | between them, without None."""
    if node is None:
        return "any"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _either([node.left, node.right], module)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id in ("Literal", "Optional", "Union"):
            return _either(inside, module)
    if isinstance(node, ast.Constant):
        return "" if node.value is None else str(node.value)
    if isinstance(node, ast.Name) and (alias := _found(f"{module}.{node.id}")) and isinstance(alias[0], ast.expr):
        return _kind(alias[0], alias[1])
    written = ast.unparse(node)
    return "str" if written.startswith("_") else written


def _either(nodes: list[ast.expr], module: str) -> str:
    return " | ".join(dict.fromkeys(kind for node in nodes if (kind := _kind(node, module))))
