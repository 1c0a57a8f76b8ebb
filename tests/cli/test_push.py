"""Uploads to a stand-in of the Hugging Face Hub, by the real client: `sppo push`, the callback's setting, mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import HELD_OUT, ROOT, recipe, refused
from hub_server import TOKEN, Hub, hub

from sppo_lit.cli.main import main

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
policy = AutoModelForCausalLM.from_pretrained(sys.argv[1])
critic = AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + "-critic")
prompt = AutoTokenizer.from_pretrained(sys.argv[1])("1+2=", return_tensors="pt")
print(policy(**prompt).logits.shape[-1] > 9, critic.num_labels)
"""


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Hub]:
    with hub() as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, whose recipe names a Hub id among its held-out sets' licences."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["run", str(recipe(folder, HELD_OUT))]) == 0
    return folder / "runs" / "tiny" / "version_0"


def sppo(server: Hub | None, home: Path, *arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, since the Hub's client reads its settings when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    if server is not None:
        environment |= {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN}
    command = [sys.executable, *(["-m", "sppo_lit.cli"] if arguments[0] != "-c" else []), *map(str, arguments)]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=120)


def card_of(server: Hub, repo: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a repository's model card."""
    _, data, text = server.repos[repo]["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(data), text


def test_policy_and_critic_are_uploaded_with_cards_and_load_again(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    done = sppo(stand_in, tmp_path, "push", run, "--repo", "me/tiny", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    for repo in ("me/tiny", "me/tiny-critic"):
        assert f"uploaded: {stand_in.address}/{repo}" in done.stdout
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= stand_in.repos[repo].keys()
    for part, repo in (("policy", "me/tiny"), ("critic", "me/tiny-critic")):
        assert stand_in.repos[repo]["model.safetensors"] == (run / "hf" / part / "model.safetensors").read_bytes()

    data, text = card_of(stand_in, "me/tiny")
    assert data["license"] == "apache-2.0" and data["pipeline_tag"] == "text-generation"
    assert data["metrics"] == ["accuracy"] and "base_model" not in data, "random weights"
    [result] = data["model-index"][0]["results"]
    assert result["dataset"]["name"] == "arithmetic" and result["metrics"][0]["name"] == "greedy"
    assert 'from_pretrained("me/tiny")' in text and 'from_pretrained("policy")' not in text
    assert f"[me/tiny-critic]({stand_in.address}/me/tiny-critic)" in text
    assert all(name in text for name in re.findall(r"family-names: (\w+)", (ROOT / "CITATION.cff").read_text("utf-8")))
    data, text = card_of(stand_in, "me/tiny-critic")
    assert data["license"] == "apache-2.0" and data["pipeline_tag"] == "text-classification"
    assert 'AutoModelForSequenceClassification.from_pretrained("me/tiny-critic")' in text

    loaded = sppo(stand_in, tmp_path, "-c", LOAD, "me/tiny")
    assert loaded.stdout.split() == ["True", "1"], loaded.stderr


def test_what_a_repository_held_before_is_replaced(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    stand_in.repos["me/again"] = {".gitattributes": b"", "model-00001-of-00002.safetensors": b"old"}
    done = sppo(stand_in, tmp_path, "push", run.parent, "--repo", "again")  # any version; the login's own name
    assert done.returncode == 0, done.stderr
    assert "model-00001-of-00002.safetensors" not in stand_in.repos["me/again"]
    assert ".gitattributes" in stand_in.repos["me/again"]
    assert [message for repo, message in stand_in.commits if repo == "me/again"] == ["Upload the policy"]


def test_a_base_model_on_the_hub_gives_its_licence(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    models = tmp_path / "run" / "hf" / "policy"
    models.mkdir(parents=True)
    card = (run / "hf" / "policy" / "README.md").read_text(encoding="utf-8")
    (models / "README.md").write_text(card.replace("---\n", "---\nbase_model: somebody/base\n", 1), encoding="utf-8")
    done = sppo(stand_in, tmp_path, "push", tmp_path / "run", "--repo", "me/licensed", "--private")
    assert done.returncode == 0, done.stderr
    assert card_of(stand_in, "me/licensed")[0]["license"] == "mit" and stand_in.private["me/licensed"]
    assert "me/licensed-critic" not in stand_in.repos


def test_a_run_uploads_at_its_end_if_its_recipe_says_so(stand_in: Hub, tmp_path: Path) -> None:
    file = recipe(tmp_path, {**HELD_OUT, "export": {"repo": "me/at-the-end", "license": "mit"}})
    done = sppo(stand_in, tmp_path, "run", file)
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {stand_in.address}/me/at-the-end-critic" in done.stdout
    assert card_of(stand_in, "me/at-the-end")[0]["license"] == "mit"


def test_a_run_that_may_not_upload_says_so_before_it_trains(stand_in: Hub, tmp_path: Path) -> None:
    file = recipe(tmp_path, {"export": {"repo": "me/never"}})
    done = sppo(stand_in, tmp_path, "run", file, HF_TOKEN="hf_" + "b" * 34)
    assert done.returncode == 2 and "does not know this login" in done.stderr and done.stderr.count("\n") == 1
    assert not list((tmp_path / "runs").rglob("*.ckpt")) and "me/never" not in stand_in.repos


def test_mistakes_get_one_line(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    def line(*arguments: Any, server: Hub | None = stand_in, **variables: str) -> str:
        done = sppo(server, tmp_path, "push", *arguments, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("sppo: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "no login" in line(run, "--repo", "me/x", HF_TOKEN="")
    assert "does not know this login" in line(run, "--repo", "me/x", HF_TOKEN="hf_" + "b" * 34)
    assert "may not write to other/x" in line(run, "--repo", "other/x")
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "no connection to http://127.0.0.1:9" in line(run, "--repo", "me/x", **gone)
    assert "HF_HUB_OFFLINE" in line(run, "--repo", "me/x", HF_HUB_OFFLINE="1")


def test_mistakes_that_need_no_hub(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["push", tmp_path / "nowhere", "--repo", "me/x"], "no such run")
    refused(capsys, tmp_path, ["push", run, "--repo", "me/a b"], "'me/a b' is not the name of a repository")
    refused(capsys, tmp_path, ["push", run, "--repo", "a/b/c"], "is not the name of a repository")
    refused(capsys, tmp_path, ["push", run, "--repo", "me/" + "x" * 90], "at most 96")
    refused(capsys, tmp_path, ["push", run], "--repo")
    refused(capsys, tmp_path, ["push", tmp_path, "--repo", "me/x"], "not a run folder")
    unfinished = tmp_path / "version_0"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("{}", encoding="utf-8")
    refused(capsys, tmp_path, ["push", unfinished, "--repo", "me/x"], "nothing is exported yet", "--ckpt_path last")
