"""The documentation site: it builds without warnings, no link on it is dead, no command on it is unchecked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from cli_helpers import ROOT

DOCS = ROOT / "docs"
RUN = ("start.md", "reference/cli.md")
"""Pages whose commands `test_first_runs.py` runs, but for blocks whose title says that they are not run."""
BLOCK = re.compile(r"^ *```(\w+)(?: title=\"(.*?)\")?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
REPOSITORY = "https://github.com/sppo-lit/sppo-lit/"


def test_every_command_is_run_or_marked() -> None:
    """A block of commands is run by CI, or its title (which the reader sees) says that it is not."""
    [quickstart] = re.findall(r"<!-- quickstart -->\n```bash\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"))
    blocks = 0
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        for language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert language not in ("sh", "shell", "console"), f"{name}: call it bash"
            if language != "bash":
                continue
            blocks += 1
            if title == "run in CI with two iterations":  # by .ci/run, which reads it from the README
                assert " ".join(text.replace("\\\n", " ").split()) == quickstart, name
            elif not title.startswith(("not run in CI", "run in CI against")):
                assert name in RUN and not title, f"{name}: neither run nor marked as not run in CI:\n{text}"
    assert blocks > 10


class Page(HTMLParser):
    """Ids, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])
        elif tag in ("img", "script", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])


@pytest.mark.slow
def test_the_site_builds_and_no_link_is_dead(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")  # the extra `docs`, which .ci/run installs
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

    pages = {path: Page(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    dead, links = [], 0
    for path, page in pages.items():
        where = path.relative_to(tmp_path).as_posix()
        if where == "404.html":
            continue  # served under any address, so its links are absolute
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data"):
                dead.append(f"{where}: asks another server for {link}")
        for link in [*page.links, *page.loaded]:
            links += 1
            url = urlsplit(link)
            if link.startswith((f"{REPOSITORY}blob/main/", f"{REPOSITORY}tree/main/")):
                file = ROOT / url.path.split("/main/")[1]
                if not file.exists():
                    dead.append(f"{where}: {link}")
            elif url.scheme:
                if url.scheme not in ("https", "data"):
                    dead.append(f"{where}: {link}")
            else:
                target = (path.parent / unquote(url.path)).resolve() if url.path else path
                target = target / "index.html" if target.is_dir() else target
                if not target.is_file() or (url.fragment and unquote(url.fragment) not in pages[target].ids):
                    dead.append(f"{where}: {link}")
    assert not dead, "\n".join(sorted(set(dead)))
    assert links > 1000

    recipes = [path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")]
    for recipe in recipes:
        text = (tmp_path / "recipes" / recipe.with_suffix("") / "index.html").read_text(encoding="utf-8")
        assert recipe.stem in text and ("not run in CI" in text or recipe.stem == "quickstart")
