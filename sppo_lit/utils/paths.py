"""Paths of files shipped with the package (recipes, small weights), in a clone or an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """Folder that contains `recipes/` and `data/`: the root of a clone, or `sppo_lit/share` of a wheel."""
    clone = PACKAGE.parent
    return clone if (clone / "recipes").is_dir() and (clone / "pyproject.toml").is_file() else PACKAGE / "share"


def find(path: str) -> str:
    """`path` if it exists, else the same path among the shipped files, else `path` unchanged.

    Args:
        path: path relative to the current folder, or absolute.
    """
    shipped = shipped_root() / path
    return str(shipped) if not Path(path).exists() and path and shipped.exists() else path
