"""What a run leaves behind: progress lines, exported models, curves, the summary."""

import builtins
import io
import re
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from sppo_lit.callbacks import Curves, Evaluation, HuggingFaceExport, IterationCheckpoint, RunProgress, RunSummary
from sppo_lit.callbacks.card import Origin, model_card
from sppo_lit.callbacks.curves import draw
from sppo_lit.callbacks.panels import moving_average
from sppo_lit.callbacks.picture import FACTS, View, picture, plain, sparkline
from sppo_lit.callbacks.progress import Pace
from sppo_lit.callbacks.summary import commands
from sppo_lit.utils import console as shared
from sppo_lit.utils.console import duration
from sppo_lit.utils.files import UMASK, written_whole
from sppo_lit.utils.run_log import read_metrics

pytestmark = pytest.mark.curves

PNG = b"\x89PNG"


# --- progress


def test_log_file_gets_one_line_per_iteration(fake, screen):
    fake([RunProgress(), Evaluation()], epochs=3)
    lines = [line for line in screen().splitlines() if line.startswith("iteration ")]
    assert [line.split(" · ")[0] for line in lines] == ["iteration 1/3", "iteration 2/3", "iteration 3/3"]
    assert "accuracy 41.0%" in lines[0] and "KL 1.0e-03" in lines[0] and lines[0].endswith(" left")


def test_log_file_lines_can_be_rarer(fake, screen):
    fake([RunProgress(plain_every_n_iterations=3)], epochs=5)
    assert re.findall(r"^iteration (\d)", screen(), re.M) == ["3", "5"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    file = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(shared, "console", Console(file=file, force_terminal=True, width=120))
    return file


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_terminal_is_given_back(fake, terminal, error):
    progress = RunProgress()
    module = fake.module(fail_at=2 if error else None, error=error or RuntimeError)
    if error is None:
        fake([progress], epochs=3, module=module)
    else:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            fake([progress], epochs=3, module=module)
    written = terminal.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is visible again"
    assert ("3/3" if error is None else "1/3") in written
    assert progress._live is None and not shared.console._live_stack


def test_picture_shows_phase_speed_and_facts():
    view = View(
        iteration=37,
        iterations=200,
        elapsed=187,
        remaining=750,
        phase="sampling",
        done=96,
        total=128,
        facts={"tokens_per_second": 1234.5},
        metrics={"rollout/reward": 0.3, "rollout/accuracy": 0.41, "policy/approx_kl": 0.0012},
        accuracies=[0.1, 0.2, 0.4],
        held_out=[0.408, 0.521],
    )
    console = Console(record=True, width=110, file=io.StringIO())
    console.print(picture(view))
    text = console.export_text()
    for part in ("37/200", "3:07 min elapsed", "12:30 min left", "96/128", "1,234 tokens/s", "accuracy 41.0%", "▁▃█"):
        assert part in text, part
    assert "reward 0.300" in text and "40.8% → 52.1%" in text


def test_nothing_of_the_picture_is_cut_at_80_columns():
    view = View(
        iteration=1137,
        iterations=1200,
        elapsed=18700,
        remaining=7500,
        phase="sampling",
        done=1296,
        total=2048,
        facts={"tokens_per_second": 12345.5},
        metrics={name: 0.3 if name == "rollout/reward" else 0.41 for name, *_ in FACTS},
        accuracies=[i % 7 / 7 for i in range(500)],
        held_out=[1.0, 1.0],
    )
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(picture(view))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for part in ("5:11:40 h elapsed · 2:05:00 h left", "12,346 tokens/s", "100.0% → 100.0%"):
        assert part in text, part
    assert len(text.splitlines()) <= 5 and all(f"{label} " in text for _, label, _ in FACTS)


def test_supervised_run_shows_its_loss_and_held_out_accuracy():
    view = View(1, 2, metrics={"policy/loss": 1.25}, accuracies=[float("nan")] * 2, held_out=[0.1, 0.4])
    console = Console(record=True, width=110, file=io.StringIO())
    console.print(picture(view))
    text = console.export_text()
    assert "loss 1.2500" in text and "held-out 10.0% → 40.0%" in text and "training accuracy" not in text
    assert "loss 1.2500" in plain(view, 1.0)


def test_remaining_time():
    clock = Pace()
    assert clock.remaining(10, 2, 0) is None
    clock.iterations.extend([50, 4, 4, 4])  # a slow first iteration does not count
    clock.evaluations.append(20)
    assert clock.remaining(10, 2, 1) == 3 + 9 * 4 + 2 * 20
    assert clock.remaining(10, 0, 99) == 9 * 4, "an iteration that takes longer does not go negative"
    assert clock.remaining(0, 0, 0) == 0
    assert clock.remaining(0, 1, 0, evaluating=15) == 5, "the last evaluation is still running"


def test_times_and_sparkline_are_readable():
    assert [duration(x) for x in (0.84, 42, 187.2, 3729)] == ["0.8 s", "42 s", "3:07 min", "1:02:09 h"]
    assert sparkline([0, 0.5, 1]) == "▁▅█" and sparkline([1, 1]) == "▄▄" and sparkline([float("nan")]) == ""
    assert len(sparkline(list(range(1000)))) <= 40


# --- exported models


def test_a_card_names_no_folder_of_the_machine(tmp_path):
    base = Path(__file__).resolve().parents[2] / "data" / "arithmetic" / "base"
    mine = tmp_path / "my data" / ("of a name so long that YAML breaks its line " * 2) / "own.jsonl"
    recipe = {"model": {"policy": {"path": str(base)}, "reward": {"custom": {f"{tmp_path}/rewards.py:short": 1.0}}}}
    recipe["data"] = {"train": {"path": str(mine)}, "prompt": {"suffix": "/no_think"}, "val": [{"path": "a/b"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**recipe, "trainer": {"default_root_dir": str(tmp_path)}}))
    origin = Origin(str(tmp_path / "models" / "mine"), train=str(mine))
    card = model_card("policy", "LlamaForCausalLM", tmp_path, 3, origin, {}, {})
    assert str(tmp_path) not in card and str(base.parents[2]) not in card
    shown = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert shown["model"]["policy"] == {"path": "data/arithmetic/base"}
    assert shown["model"]["reward"] == {"custom": {"rewards.py:short": 1.0}}
    assert shown["data"] == {**recipe["data"], "train": {"path": "own.jsonl"}}
    assert "the weights of `mine`, on the problems `own.jsonl`" in card


def test_exported_files_have_the_usual_mode(fake):
    _, _, folder = fake([HuggingFaceExport()], epochs=1)
    files = [path for path in folder.rglob("hf/*/*") if path.is_file()]
    assert files and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~UMASK}


def test_exported_models_load_and_are_equal(fake):
    module = fake.module()
    trainer = fake.trainer([Evaluation(), HuggingFaceExport()], epochs=2)
    folder = Path(trainer.log_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("trainer:\n  max_epochs: 2  # ```\n")
    trainer.fit(module, fake.problems())
    hf = folder / "hf"
    policy = AutoModelForCausalLM.from_pretrained(hf / "policy")
    critic = AutoModelForSequenceClassification.from_pretrained(hf / "critic")
    for loaded, trained in ((policy, module.policy.model), (critic, module.critic.model)):
        state = trained.state_dict()
        assert state.keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(policy(ids).logits, module.policy.model(ids).logits)
    assert AutoTokenizer.from_pretrained(hf / "policy")("12").input_ids == module.tokenizer("12").input_ids
    generation = GenerationConfig.from_pretrained(hf / "policy")
    assert (generation.eos_token_id, generation.pad_token_id, generation.top_k) == (2, 0, 0)
    card = (hf / "policy" / "README.md").read_text()
    assert "2604.08865" in card and "max_epochs: 2" in card and "````yaml" in card
    assert re.search(r"\| easy \| 4 \| greedy \| 0\.0 ± \S+ \| 50\.0 ± \S+ \|", card)
    assert "AutoModelForSequenceClassification" in (hf / "critic" / "README.md").read_text()
    assert sorted(p.name for p in hf.iterdir()) == ["critic", "policy"], "no temporary folder is left"
    modes = {p.stat().st_mode for p in hf.rglob("*.*")}
    assert modes == {(folder / "config.yaml").stat().st_mode}, "as the user's umask says, not the owner's alone"


def test_export_without_a_critic(fake):
    module = fake.module()
    module.critic = None
    _, _, folder = fake([HuggingFaceExport()], epochs=1, module=module)
    assert [p.name for p in (folder / "hf").iterdir()] == ["policy"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "policy"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(OSError, match="full"), written_whole(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        raise OSError("disk full")
    assert [p.name for p in tmp_path.rglob("*")] == ["policy", "old"]
    with written_whole(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["policy", "new"]


# --- curves


def test_curves_from_the_log_of_a_run(fake):
    _, _, folder = fake([Evaluation(), Curves()], epochs=4, check_val_every_n_epoch=2)
    assert (folder / "curves.png").read_bytes().startswith(PNG)
    series = read_metrics(folder / "metrics.csv")
    assert series["rollout/response_length"] == ([1, 2, 3, 4], [81, 82, 83, 84]), "iterations, not epochs"
    assert series["val/accuracy"] == ([0, 2, 4], [0, 0.5, 1])


def test_curves_of_an_interrupted_run(fake):
    with pytest.raises(RuntimeError, match="planned"):
        fake([Curves()], epochs=9, module=fake.module(fail_at=3))
    (picture,) = Path(fake.trainer([]).log_dir).parent.rglob("curves.png")
    assert picture.read_bytes().startswith(PNG)


def test_curves_with_odd_values(tmp_path):
    odd = {"policy/grad_norm": ([1, 2], [0.0, float("inf")]), "critic/explained_variance": ([1, 2], [float("nan")] * 2)}
    draw(odd, tmp_path / "a.png")
    draw({"policy/ratio_max": ([1], [1.0])}, tmp_path / "b.png")
    assert all((tmp_path / f"{x}.png").read_bytes().startswith(PNG) for x in "ab")
    assert moving_average([1, float("nan"), 3], 3) == [1, 2, 3]


def test_missing_matplotlib_is_one_line_and_no_error(fake, screen, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    _, module, folder = fake([Curves()], epochs=2)
    assert module.iteration == 2 and not (folder / "curves.png").exists()
    assert [line for line in screen().splitlines() if "sppo-lit[plots]" in line]


# --- summary


def test_summary_names_what_is_there(fake, screen):
    callbacks = [RunSummary(), Evaluation(), HuggingFaceExport(), Curves(), IterationCheckpoint()]
    _, _, folder = fake(callbacks, epochs=4)
    text = re.sub(r"[│\s]+", "", screen())
    assert "0.0%→100.0%+100.0points" in text
    for place in ("curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "hf/policy", "hf/critic"):
        assert f"{folder / place}" in text, place
    assert f'AutoModelForCausalLM.from_pretrained("{folder / "hf/policy"}")' in text
    (folder / "config.yaml").touch()
    command = commands(folder)[0].plain
    assert command.endswith(f"lightning run validate {folder}/config.yaml --ckpt_path {folder}/checkpoints/best.ckpt")


def test_summary_of_a_bare_run(fake, screen):
    fake([RunSummary()], epochs=1)
    assert "Run finished" in screen() and "curves" not in screen()


def test_interrupted_run_says_how_to_go_on(fake, screen):
    class Config(RunSummary):
        def on_train_start(self, trainer, pl_module):
            (self._folder / "config.yaml").touch()

    with pytest.raises(SystemExit):
        fake([Config(), IterationCheckpoint()], module=fake.module(fail_at=3, error=KeyboardInterrupt))
    text = screen()
    assert "interrupted after iteration 2" in text and "--ckpt_path" in text and "last.ckpt" in text
