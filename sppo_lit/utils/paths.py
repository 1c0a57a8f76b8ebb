"""Finding what the project ships: recipes and small weights, in a clone as in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """Folder that holds `recipes/` and `data/`: the clone's root, or the package's share of a wheel."""
    clone = PACKAGE.parent
    return clone if (clone / "recipes").is_dir() and (clone / "pyproject.toml").is_file() else PACKAGE / "share"


def find(path: str) -> str:
    """`path` if it exists from here, else the same path among the shipped files, else `path` unchanged."""
    shipped = shipped_root() / path
    return str(shipped) if not Path(path).exists() and path and shipped.exists() else path
