"""One-line messages for users' mistakes, from the exceptions of the underlying libraries."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Sequence
from pathlib import Path

import jsonargparse
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sppo_lit.cli.renamed import renamed
from sppo_lit.errors import USE_ITS_RECIPE
from sppo_lit.utils.out_of_memory import is_out_of_memory

HELP = "'sppo run fit RECIPE --help' lists every setting"
OTHER_FOLDER = "choose another folder with --trainer.default_root_dir"


def explain(error: BaseException, recipe: Path | None, arguments: Sequence[str], known: Sequence[str]) -> str | None:
    """One line (what, where, what to do) for an error that the user can fix; None for any other, which is a bug.

    Args:
        error: the exception.
        recipe: recipe file.
        arguments: the command line.
        known: every key of a recipe, for suggestions.
    """
    text = one_line(error)
    if isinstance(error, jsonargparse.ArgumentError):
        return renamed(str(error), recipe, arguments) or parse_error(str(error), recipe, arguments, known)
    if isinstance(error, ValueError) and (
        match := re.search(r"Union subtypes.*?Errors:\s+- ([^\n]+)", str(error), re.S)
    ):
        if value := re.search(r"cannot represent an object', <(\w+)\.(\w+)", match[1]):
            where = f"of type {value[1]} among trainer's callbacks or loggers cannot be written to config.yaml"
            return f"a default {where}; write it into the recipe as text ({value[2]})"
        return match[1]  # the error of an optional group of settings
    if isinstance(error, MisconfigurationException):
        return f"trainer: {text}"
    if isinstance(error, RuntimeError) and (match := re.match(r"Early stopping conditioned on metric `(.+?)`", text)):
        return (
            f"trainer.callbacks: EarlyStopping looks at {match[1]}, which is not logged; 'val/…' needs data.val and an "
            "evaluation in every iteration that it looks at (trainer.check_val_every_n_epoch)"
        )
    if is_out_of_memory(error):
        return (
            "the accelerator ran out of memory; lower model.memory.micro_batch_tokens or "
            "model.rollout.max_concurrent, or set model.memory.gradient_checkpointing true"
        )
    if isinstance(error, FloatingPointError):
        return f"{text}; resume from an earlier checkpoint (previous.ckpt, best.ckpt) if the weights are broken"
    if "EADDRINUSE" in text or "address already in use" in text:
        port = re.search(r"port: (\d+)", text)
        name = f"port {port[1]}" if port else "the port of the processes' rendezvous"
        return f"{name} is in use by another program; set MASTER_PORT to a free one"
    if is_lost_connection(error):
        return "the connection to another rank was lost: it has ended, and this one ends too; see its output"
    if isinstance(error, OSError):
        return _disk_error(error)
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in text:
        return f"a checkpoint could not be written, the disk may be full; free some space or {OTHER_FOLDER}"
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        difference = _first_difference(str(error))
        return f"the checkpoint is of a different model than this recipe's ({difference}); {USE_ITS_RECIPE}"
    if isinstance(error, ValueError) and "loaded state dict" in text:
        return f"the checkpoint's optimizers are not this recipe's ({text}); {USE_ITS_RECIPE}"
    return None


def is_lost_connection(error: BaseException) -> bool:
    """Whether another rank was lost; the error does not say why."""
    text = str(error)
    return isinstance(error, (dist.DistError, ConnectionError)) or (
        isinstance(error, RuntimeError) and "gloo" in text and ("onnection" in text or "peer" in text)
    )


_NESTED = re.compile(
    r"Problem with given class_path '.+?':\s+Parser key \"(.+?)\":(.*?)(?=\n {2,5}- |\n {0,3}Given|\Z)", re.DOTALL
)


def parse_error(text: str, recipe: Path | None, arguments: Sequence[str], known: Sequence[str]) -> str:
    """Shorten a message of jsonargparse.

    Args:
        text: the message, several lines.
        recipe: recipe file.
        arguments: the command line; a key that is not in it comes from the recipe.
        known: every key, for suggestions.
    """

    def where(key: str) -> str:
        """The flag that sets the key or a mapping around it, or else the recipe's key."""
        flags, parts = {a.partition("=")[0] for a in arguments}, key.split(".")
        for end in range(len(parts), 0, -1):
            if (flag := "--" + ".".join(parts[:end])) in flags:
                return ": ".join([flag, ".".join(parts[end:])]).removesuffix(": ")
        return f"--{key}" if recipe is None else f"{recipe}: {key}"

    if match := re.match(r"unrecognized arguments: (\S+)", text):
        flag = match[1].partition("=")[0]
        return f"unknown flag {flag}{_like(flag.lstrip('-'), known, '--')}; {HELP}"
    if match := re.match(r"Subcommand '\w+' does not accept option '(.+)'", text):
        return f"{recipe or 'command line'}: unknown key {match[1]}{_like(match[1], known)}; correct or remove it"
    key_given = re.match(r'Parser key "(.+?)":', text)
    if key_given and (
        match := re.search(r"Problem with given class_path '.+?':\s+the following.*?required: (.+)", text)
    ):
        return f"{where(key_given[1])}: {match[1]} is missing in it; add it"
    if key_given and (match := _NESTED.search(text)):  # a group of settings, which jsonargparse treats as a class
        return parse_error(f'Parser key "{key_given[1]}.{match[1]}":{match[2]}', recipe, arguments, known)
    if match := re.search(r"arguments are required: (\S+)", text):
        key = re.sub(r"^(fit|validate)\.", "", match[1].rstrip(","))
        return f"{recipe or 'command line'}: {key} is missing; give it in the recipe or as --{key} VALUE"
    if key_given is None:
        return f"{recipe or 'command line'}: {' '.join(text.split())[:300]}; {HELP}"
    key = key_given[1]
    if match := re.search(r"Option '(.+?)' is not accepted", text):
        return f"{where(key)}: unknown key {match[1]} in it; correct or remove it"
    if match := re.search(r"Problem with given class_path '(.+?)':\s+(.+)", text):
        return f"{where(key)}: class_path {match[1]}: {match[2].strip(' -')}; correct it"
    if match := re.search(r"'class_path': '(.+?)'", text):
        base = re.search(r"Subtypes: \[<class '(?:\S+\.)?(\w+)'>", text)
        kind = f" of {base[1]}" if base else " of the right kind"
        hint = f"write {match[1].replace(':', '.')}" if ":" in match[1] else "correct it"
        return f"{where(key)}: class_path {match[1]} is not a subclass{kind}, or does not exist; {hint}"
    if match := re.search(r"Unable to load config ['\"](.+?)['\"]", text):
        return f"{where(key)}: {match[1]!r} is not a mapping; set its entries, e.g. {_entry(key, match[1], known)}"
    value = re.search(r"(?:Got value|Given value): (.*)", text)
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", text, re.MULTILINE)
    if value is None or not kinds:
        return f"{where(key)}: {' '.join(text.split())[:300]}; {HELP}"
    wanted = dict.fromkeys(part for kind in kinds if "path" not in kind for part in _kind(kind).split(", "))
    if list(wanted) == ["null"]:
        return f"{where(key)}: {value[1]!r} is not a mapping; set its entries, e.g. {_entry(key, value[1], known)}"
    one_of = "one of " if len(wanted) > 2 else ""
    return f"{where(key)}: {value[1]!r} is not valid; it must be {one_of}{' or '.join(wanted)}"


def _entry(key: str, value: str, known: Sequence[str]) -> str:
    """An example of an entry of the group `key`."""
    if f"{key}.path" in known or key.endswith("critic"):
        return f"--{key}.path {value}"
    first = next((k for k in known if k.startswith(f"{key}.") and not k.endswith(".help")), f"{key}.KEY")
    return f"--{first} VALUE"


def one_line(error: BaseException) -> str:
    """A message folded into one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def _like(key: str, known: Sequence[str], prefix: str = "") -> str:
    name = key.rpartition(".")[2]
    # A name without its groups does not resemble any full key.
    ends = [k for k in known if difflib.get_close_matches(name, [k.rpartition(".")[2]], cutoff=0.8)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8) or difflib.get_close_matches(key, ends, 1, 0.0)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _kind(kind: str) -> str:
    """`<class 'int'>` → int, `typing.Literal['a', 'b']` → a, b."""
    if match := re.match(r"<class '(.+)'>", kind):
        return {"NoneType": "null", "str": "text"}.get(match[1], match[1].rpartition(".")[2])
    if match := re.match(r"(?:typing\.)?Literal\[(.+)\]", kind):
        return match[1].replace("'", "")
    return re.sub(r"[\w.]+\.(\w+)", r"\1", kind)


def _disk_error(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk{_at(error)}; free some space or {OTHER_FOLDER}"
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR) and error.filename:
        return f"{error.filename} cannot be written or read ({error.strerror}); {OTHER_FOLDER}"
    if error.errno == errno.EFBIG:
        return f"a file exceeded the size limit{_at(error)} (see ulimit -f); {OTHER_FOLDER}"
    return None


def _at(error: OSError) -> str:
    return f" of {error.filename}" if error.filename else ""


def _first_difference(text: str) -> str:
    """The first parameter on which a checkpoint and the model disagree."""
    if match := re.search(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", text, re.DOTALL):
        return f"{match[1]} is {match[2]} there, {match[3]} here"
    if match := re.search(r'(Missing|Unexpected) key\(s\) in state_dict: "(.+?)"', text):
        return f"{match[2]} is {'missing there' if match[1] == 'Missing' else 'not in this model'}"
    return " ".join(text.split())[:200]
