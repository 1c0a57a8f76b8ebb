"""The shared rich console, and functions that make text safe and short for printing."""

from __future__ import annotations

import os
import sys
import unicodedata

from rich.console import Console


def _new_console() -> Console:
    stream = sys.stdout
    if hasattr(stream, "reconfigure") and not (stream.encoding or "").lower().startswith("utf"):
        stream.reconfigure(errors="replace")  # a ± must not fail in a log file whose encoding lacks it
    new = Console(highlight=False)
    if not new.is_terminal and "COLUMNS" not in os.environ:
        new.width = 120
    return new


console = _new_console()
"""Everything is printed through this console, so that lines appear above a live display."""


def is_interactive(console: Console) -> bool:
    """Whether a live display makes sense: a real terminal, also where colours are forced into a log file.

    Args:
        console: the console that the display would be drawn on.
    """
    isatty = getattr(console.file, "isatty", None)
    return bool(isatty and isatty()) and console.is_terminal and not console.is_dumb_terminal


def visible(text: str, tabs: str = "    ") -> str:
    """Text safe to print: control and invisible characters (except line ends) are shown as symbols or codes.

    Args:
        text: anything a tokenizer may decode.
        tabs: replacement for a tab.
    """
    return "".join(_visible_character(c) for c in text.replace("\r\n", "\n").replace("\t", tabs))


def _visible_character(c: str) -> str:
    if c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return c
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    return "␡" if ord(c) == 0x7F else f"\\u{ord(c):04x}"


def shorten(text: str, limit: int, keep: str = "start") -> str:
    """Shorten `text` to at most `limit` characters, with … where something was left out.

    Args:
        text: the text.
        limit: characters, … included.
        keep: the part to keep: "start", "end", or "both".
    """
    if len(text) <= limit:
        return text
    if keep == "start":
        return text[: limit - 1] + "…"
    if keep == "end":
        return "…" + text[-(limit - 1) :]
    half = (limit - 1) // 2
    return text[: limit - 1 - half] + "…" + text[-half:]


def duration(seconds: float) -> str:
    """Format wall-clock seconds for reading, e.g. ``0.8 s``, ``42 s``, ``3:07 min``, ``1:02:09 h``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60}:{total % 60:02d} min"
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d} h"
