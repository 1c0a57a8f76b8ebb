"""``sppo list``: the recipes, one row a folder, with the algorithms that it has in a column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sppo_lit.utils.paths import shipped_root

VARIANT = re.compile(r"\bas (\w+)\.yaml beside it\.?$")
"""The end of a title: another algorithm in the setting of that recipe."""


def show(console: Console) -> None:
    """Print the recipes that are shipped, and those below ``recipes/`` here, with the first line of each."""
    recipes: dict[str, Path] = {}
    for root in (shipped_root() / "recipes", Path("recipes")):  # the user's own override those shipped, as in `find`
        recipes |= {path.relative_to(root).as_posix(): path for path in root.rglob("*.yaml")}
    titles = {name: title(path) for name, path in recipes.items()}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("recipes/", no_wrap=True)
    table.add_column("FILE.yaml", max_width=23, overflow="fold")
    table.add_column("what it is for", overflow="fold")
    for folder in sorted({name.rpartition("/")[0] for name in titles}, key=lambda f: (f.count("/"), bool(f), f)):
        inside = {name.rpartition("/")[2]: text for name, text in titles.items() if name.rpartition("/")[0] == folder}
        label = Text(f"{folder}/" if folder else "", "bold")
        for names, text in grouped(inside):
            table.add_row(label, Text(" ".join(names), "cyan"), Text(text))
            label = Text()
    console.print(table)
    console.print(Text("e.g. 'sppo run recipes/gsm8k/sppo.yaml'; those of study/ by 'sppo study'", "dim"))


def title(recipe: Path) -> str:
    """The first line of a recipe's opening comment."""
    return recipe.read_text(encoding="utf-8", errors="replace").partition("\n")[0].removeprefix("#").strip()


def grouped(titles: Mapping[str, str]) -> list[tuple[Sequence[str], str]]:
    """Names that share a row, with their title: a recipe, and the variants of it in the same folder.

    Args:
        titles: file name → title, of one folder.
    """
    stems = {name.removesuffix(".yaml"): text for name, text in sorted(titles.items())}
    main = {stem: match[1] for stem, text in stems.items() if (match := VARIANT.search(text)) and match[1] in stems}
    # Long names fill a line each, and would leave the one before it half empty.
    variants = sorted(main, key=lambda stem: (len(stem) > 16, stem))
    rows = [([stem, *(s for s in variants if main[s] == stem)], text) for stem, text in stems.items()]
    return sorted([(names, text) for names, text in rows if names[0] not in main], key=lambda row: -len(row[0]))
