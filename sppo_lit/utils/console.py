"""What all callbacks share: one console, readable text from a model, the run folder, all-or-nothing writing."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console


def _new_console() -> Console:
    stream = sys.stdout
    if hasattr(stream, "reconfigure") and not (stream.encoding or "").lower().startswith("utf"):
        stream.reconfigure(errors="replace")  # a run never dies of a ± that a log file's encoding lacks
    made = Console(highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120
    return made


console = _new_console()
"""Everything is printed through this console, so that lines appear above a live display and not through it."""


def visible(text: str, tabs: str = "    ") -> str:
    """Text of a model, safe to print: control and invisible characters (but line ends) are shown as symbols or codes.

    Args:
        text: anything a tokenizer may decode.
        tabs: what a tab becomes.
    """
    return "".join(_visible_character(c) for c in text.replace("\r\n", "\n").replace("\t", tabs))


def _visible_character(c: str) -> str:
    if c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return c
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    return "␡" if ord(c) == 0x7F else f"\\u{ord(c):04x}"


def shorten(text: str, limit: int, keep: str = "start") -> str:
    """At most `limit` characters of `text`: its start, its end, or both, with … where something was left out."""
    if len(text) <= limit:
        return text
    if keep == "start":
        return text[: limit - 1] + "…"
    if keep == "end":
        return "…" + text[-(limit - 1) :]
    half = (limit - 1) // 2
    return text[: limit - 1 - half] + "…" + text[-half:]


def run_folder(trainer: pl.Trainer) -> Path:
    """Where this run writes. To be called on every rank, before training has ended: rank zero broadcasts it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def duration(seconds: float) -> str:
    """Wall-clock time for reading, e.g. ``0.8 s``, ``42 s``, ``3:07 min``, ``1:02:09 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60}:{total % 60:02d} min"
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d} h"


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary file or folder beside `target` that takes its place if the block ends well, else vanishes.

    Args:
        target: what shall be there afterwards; an older one stays untouched until then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    remove(temporary)
    try:
        yield temporary
        replace(temporary, target)
    finally:
        remove(temporary)


def replace(new: Path, target: Path) -> None:
    """Move a file or folder to `target`, whatever is there."""
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".{target.name}.old")
        remove(old)
        target.rename(old)
        new.rename(target)
        remove(old)
    else:
        os.replace(new, target)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
