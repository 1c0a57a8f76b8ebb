"""Build hooks of the documentation site (mkdocs): a page for each recipe, the usage text, links out of docs/."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.site")  # a warning of this logger fails `mkdocs build --strict`
ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
FOLDERS = {
    "": "First of all",
    "arithmetic": "Arithmetic: minutes on a CPU",
    "gsm8k": "GSM8K: a small pretrained model",
    "deepscaler_1.5b": "DeepScaleR, 1.5B: the paper's first setting",
    "dapo17k_7b": "DAPO-17k, 7B: the paper's second setting",
    "study": "Studies: grids of runs",
}
"""Folder of recipes -> heading, in the order of the navigation."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the recipes into the navigation, folder by folder."""
    sections: list[Any] = ["recipes/index.md"]
    for folder, files in by_folder().items():
        pages = [{file.stem: page_of(file)} for file in files]
        sections.extend(pages if not folder else [{folder: pages}])
    for entry in config.nav or []:
        if "Recipes" in entry:
            entry["Recipes"] = sections
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages of the recipes."""
    files.append(File.generated(config, "recipes/index.md", content=index()))
    for paths in by_folder().values():
        for path in paths:
            files.append(File.generated(config, page_of(path), content=recipe_page(path, config.extra["repository"])))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the usage text, and lead links out of docs/ to the repository."""
    if "<!-- usage -->" in markdown:
        from sppo_lit.cli.main import USAGE

        markdown = markdown.replace("<!-- usage -->", f"```text\n{USAGE.format(name='sppo')}\n```")

    def outward(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if re.match(r"[a-z]+:|#|/", match[2]) or not target:
            return match[0]
        source = PurePosixPath("docs", page.file.src_uri).parent
        path = Path(ROOT, source, target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]  # within the site: mkdocs checks it
        if not path.exists() or not path.is_relative_to(ROOT):
            log.warning("%s: link to %s, which does not exist", page.file.src_uri, match[2])
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return (
            f"{match[1]}({config.extra['repository']}/{kind}/main/{path.relative_to(ROOT).as_posix()}{hash_}{anchor})"
        )

    return re.sub(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)", outward, markdown)


def by_folder() -> dict[str, list[Path]]:
    """Recipes by their folder, the folders in the order of `FOLDERS`."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(RECIPES.rglob("*.yaml"), key=lambda path: (not path.stem.startswith("sppo"), path.stem)):
        found[path.parent.relative_to(RECIPES).as_posix().removeprefix(".")].append(path)
    order = [*FOLDERS, *sorted(found)]
    return {folder: found[folder] for folder in sorted(found, key=order.index)}


def page_of(path: Path) -> str:
    """Source of a recipe's page on the site."""
    return f"recipes/{path.relative_to(RECIPES).with_suffix('.md').as_posix()}"


def header(path: Path) -> tuple[str, list[str], str]:
    """First line of a recipe's opening comment, its other lines, and the YAML below it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = [line.removeprefix("#").removeprefix(" ") for line in lines[:end]]
    return comment[0], comment[1:], "\n".join(lines[end:])


def index() -> str:
    """The page that lists the recipes."""
    lines = [
        "# Recipes",
        "",
        "One YAML is one experiment. `sppo list` prints this list; every setting can be changed by a flag",
        "([all of them](../reference/settings.md)), and a copy of a recipe is a recipe.",
        "",
    ]
    for folder, files in by_folder().items():
        lines += [f"## {FOLDERS.get(folder, folder)}", "", "| recipe | what it is |", "|---|---|"]
        for path in files:
            target = page_of(path).removeprefix("recipes/")
            lines.append(f"| [`{path.stem}`]({target}) | {header(path)[0]} |")
        lines.append("")
    return "\n".join(lines)


def recipe_page(path: Path, repository: str) -> str:
    """A recipe's page: what its header says, how it is started, the YAML."""
    name = path.relative_to(ROOT).as_posix()
    first, rest, yaml = header(path)
    start = "lightning run" if "cells:" not in yaml else "sppo study"
    if "validate" in first or name == "recipes/benchmarks.yaml":
        start = "lightning run validate"
    title = "" if name == "recipes/quickstart.yaml" else ' title="not run in CI, where the recipe is only parsed"'
    quoted, prose = [line[2:] for line in rest if line.startswith("  ")], [x for x in rest if not x.startswith("  ")]
    lines = [f"# {path.relative_to(RECIPES).with_suffix('').as_posix()}", "", first, "", *prose, ""]
    if quoted:
        lines += ['```bash title="not run in CI"', *quoted, "```", ""]
    if not quoted:
        lines += [f"```bash{title}", f"{start} {name}", "```", ""]
    lines += [f"[{name}]({repository}/blob/main/{name}):", "", "```yaml", yaml, "```", ""]
    return "\n".join(lines)
