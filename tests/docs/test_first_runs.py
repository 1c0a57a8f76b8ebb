"""What the pages of the site have a new user do, from a wheel in an empty folder and a fresh environment."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from cli_helpers import ROOT

PAGES = ("start.md", "reference/cli.md")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""Blocks without a title: the others say that they are not run."""
SHORTER = """\
#!/usr/bin/env bash
# Two iterations instead of a recipe's number, one more after a resume, and twenty held-out problems.
few=(--data.val '[{path: arithmetic, limit: 20}]')
case "$*" in
  *--print_config*) ;;
  run\\ validate*) set -- "$@" "${few[@]}" ;;
  *--ckpt_path*) set -- "$@" --max_epochs 3 --trainer.check_val_every_n_epoch 1 "${few[@]}" ;;
  run*) set -- "$@" --max_epochs 2 --trainer.check_val_every_n_epoch 1 "${few[@]}" ;;
esac
exec PROGRAM "$@"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A virtual environment with a wheel of the project and, besides, only what is installed here already."""
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("fresh")
    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))
    venv.create(folder / "venv", with_pip=True)
    bin_, site = folder / "venv" / "bin", next((folder / "venv").glob("lib/python*/site-packages"))
    # A line in a .pth file: .pth files there, such as that of an editable install, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    subprocess.run(
        [bin_ / "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel], check=True
    )
    shorter = folder / "shorter"
    shorter.mkdir()
    for name in ("sppo", "lightning"):
        script = shorter / name
        script.write_text(SHORTER.replace("PROGRAM", str(bin_ / name)), encoding="utf-8")
        script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    path = f"{shorter}:{bin_}:{kept['PATH']}"
    return folder, {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1", "COLUMNS": "100"}


@pytest.mark.slow
def test_the_pages_work_from_a_wheel(environment: tuple[Path, dict[str, str]]) -> None:
    folder, variables = environment
    work = folder / "empty"
    work.mkdir()

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=work,
            env=variables,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    where = run("python -c 'import sppo_lit; print(sppo_lit.__file__)'")
    assert where.startswith(str(folder / "venv")), "the clone, not the wheel"
    said = {}
    for page in PAGES:
        for language, text in BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
            if language == "python":
                name = re.match(r"# (\w+\.py)\n", text)[1]  # type: ignore[index]
                (work / name).write_text(text, encoding="utf-8")
            else:
                said[text.split("\n")[0]] = run(text)

    assert "recipes/gsm8k/sppo.yaml" in said["sppo list"] or "gsm8k" in said["sppo list"]
    runs = work / "lightning_logs"
    quickstart = runs / "quickstart" / "version_0"
    rows = (quickstart / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) >= 4, "two iterations, and one after the resume"
    assert (quickstart / "hf" / "critic" / "model.safetensors").is_file()
    assert list(runs.glob("quickstart-validate/version_*/evaluations/*.jsonl"))
    assert re.search(r"V = 0\.\d\d\n\(2\+3\)\*4=", said["python load.py"])
    assert (runs / "mine" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    script = (work / "train.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 16  # the name of the file and 15 lines
    assert list(runs.glob("version_*/hf/policy/model.safetensors")), "the script's export"
    assert "seed_everything" in (work / "quickstart.yaml").read_text(encoding="utf-8")
