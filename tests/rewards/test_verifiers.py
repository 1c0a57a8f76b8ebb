"""Verifiers by name, and one of the user's own."""

import sys
from pathlib import Path

import pytest

from sppo_lit.errors import InputError
from sppo_lit.rewards.verifier import VerifierPool
from sppo_lit.rewards.verifiers import make_verifier
from sppo_lit.settings import VerifierSettings

OWN = """
from sppo_lit.types import Verdict

class LastWord:
    def __init__(self, settings, functions):
        self.settings, self.functions = settings, functions

    def score(self, responses, golds, finished=None):
        right = [response.split()[-1] == gold for response, gold in zip(responses, golds)]
        return [Verdict(float(r), "correct" if r else "wrong") for r in right]

    def custom(self, responses, golds):
        return {name: [0.0] * len(responses) for name in self.functions}

    def close(self):
        pass

word = "not callable"
"""


def test_math_is_the_pool_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def length(response, gold):\n    return len(response)\n")
    spec = f"{tmp_path}/mine.py:length"
    verifier = make_verifier(VerifierSettings(workers=1, deadline=3.0, memory_mb=1024), [spec])
    assert isinstance(verifier, VerifierPool)
    assert (verifier.size, verifier.settings["deadline"], verifier.settings["memory_mb"]) == (1, 3.0, 1024)
    assert verifier.score([r"\boxed{0.5}"], [r"\frac{1}{2}"])[0].reward == 1
    assert verifier.custom(["four"], ["1"]) == {spec: [4.0]}
    verifier.close()


@pytest.mark.parametrize(
    "form", ["{folder}/own_verifier.py:LastWord", "own_verifier.LastWord", "own_verifier:LastWord"]
)
def test_a_verifier_of_the_users_own(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By file, or as a module in the working directory, which a console script's import path lacks."""
    (tmp_path / "own_verifier.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    settings = VerifierSettings(kind=form.format(folder=tmp_path), deadline=7.0)
    verifier = make_verifier(settings, ["a:b"])
    assert [v.reward for v in verifier.score(["it is 5", "it is 6"], ["5", "5"])] == [1, 0]
    assert verifier.custom(["x"], ["1"]) == {"a:b": [0.0]}
    assert verifier.settings is settings  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("maths", "'maths': unknown; choose one of math"),
        ("no/such.py:f", "no file no/such.py"),
        ("sppo_lit.rewards:nothing", "has no function nothing"),
        ("{folder}/own_verifier.py:word", "of type str, not a function"),
    ],
)
def test_an_unknown_verifier_is_one_clear_line(kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own_verifier.py").write_text(OWN)
    with pytest.raises(InputError, match=rf"^model\.verifier\.kind .*{message}") as error:
        make_verifier(VerifierSettings(kind=kind.format(folder=tmp_path)))
    assert "\n" not in str(error.value)
