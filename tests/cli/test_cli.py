"""The command line as its users meet it: help, list, quiet runs, resuming, Ctrl-C, handing over to lightning-sdk."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from cli_helpers import BASE, ROOT, recipe
from run_files import csv_rows

from sppo_lit import __version__
from sppo_lit.cli import SHORT_FLAGS
from sppo_lit.cli.main import COMMANDS, lightning_main, main, run_settings, translate
from sppo_lit.errors import InputError
from sppo_lit.utils.console import console

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.filterwarnings("ignore")]
RATES = ("rollout/tokens_per_second", "clock/seconds")
HELD_OUT = {"data.val": [{"path": "arithmetic", "limit": 6}], "trainer.check_val_every_n_epoch": 1}


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "sppo_lit.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


# ---------------------------------------------------------------------------------------------------- help and recipes


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr()
        assert "sppo run [fit|validate] RECIPE" in shown.out and "--ckpt_path last" in shown.out and not shown.err
        assert "sppo run list" in shown.out
        assert max(map(len, shown.out.splitlines())) <= 80
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sppo-lit {__version__}\n"


def flags_of(page: str) -> set[str]:
    """The settings that a help page lists, by their long names."""
    flags = re.findall(r"^  --([\w.]+)", page, re.M)
    return {f"trainer.{flag}" if flag in SHORT_FLAGS else flag for flag in flags}


def test_help_lists_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optional = {"model.lora": {"rank": 4}, "model.critic": {"path": str(BASE)}, "model.kl.reference": {"path": "x"}}
    optional["data.train.prompt"] = {"suffix": ""}
    file = recipe(tmp_path, optional)
    assert main(["run", "fit", str(file), "--help", "all"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(file) not in line) <= 80
    assert not re.search(r" :\w+:|``|Optional\[|Union\[", shown)
    known = set(run_settings([str(file)]).keys())
    mappings = [key for key in known if re.search(r"\.config$|reward\.custom$", key)]
    assert flags_of(shown) == {k for k in known if not k.startswith((*(f"{m}." for m in mappings), "config"))}
    file = recipe(tmp_path, {"model": {"class_path": "sppo_lit.SupervisedModule"}})
    assert main(["run", "fit", str(file), "--help", "all"]) == 0
    assert "model.init_args.policy.path" in flags_of(capsys.readouterr().out)
    assert main(["run", "fit", "recipes/control/cartpole.yaml", "--help", "all"]) == 0
    control = flags_of(capsys.readouterr().out)
    assert {key for key in control if key.startswith("data.")} == {"data.problems_per_epoch", "data.held_out"}
    assert not {key for key in control if key.startswith(("completions", "export"))}
    assert main(["run", "fit", "recipes/control/cartpole.yaml", "--help"]) == 0
    assert "model.init_args.algorithm" in flags_of(capsys.readouterr().out)


def test_help_is_a_page_of_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("fit", "validate"):
        assert main(["run", stage, "recipes/quickstart.yaml", "--help"]) == 0
        shown = capsys.readouterr().out
        listed = flags_of(shown)
        assert 25 <= len(listed) <= 40 and max(map(len, shown.splitlines())) <= 80
        assert {"ckpt_path", "trainer.max_epochs", "model.policy.path", "data.train.path"} <= listed
        assert "[120]" in shown and "--help all" in shown and "newest run of this" in shown
        main(["run", stage, "--help", "all"])
        assert listed <= flags_of(capsys.readouterr().out)
    assert main(["run", "nosuch.yaml", "--help"]) == 2


@pytest.mark.parametrize("flags", ["--help", "--help all"])
def test_help_comes_at_once(flags: str) -> None:
    code = (
        "import sys, time, sppo_lit.cli.main as m; m.main(); assert not {'torch', 'lightning'} & sys.modules.keys(); "
        "assert time.process_time() < 1.5"  # of this process, however busy the machine is
    )
    command = [sys.executable, "-c", code, "run", "fit", "recipes/quickstart.yaml", *flags.split()]
    subprocess.run(command, check=True, capture_output=True, env=environment(), cwd=ROOT)


def test_print_config_is_a_recipe_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", str(recipe(tmp_path)), "--model.batch.minibatch_size", "8", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert end.value.code in (0, None)
    assert printed["model"]["batch"]["minibatch_size"] == 8 and printed["model"]["ppo"]["dual_clip"] == 3.0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("algorithm", "own"),
    [("gspo", (8, 3e-4, 4e-4, None)), ("vc_ppo", (1, 0.2, 0.2, 1.0)), ("sppo", (1, 0.2, 0.1, None))],
)
def test_print_config_shows_what_the_algorithm_sets(
    algorithm: str, own: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model.ppo": {"clip_high": 0.1}} if algorithm == "sppo" else {}
    file = recipe(tmp_path, {"model.algorithm": algorithm, **given})
    with pytest.raises(SystemExit):
        main(["run", str(file), "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    ppo = model["ppo"]
    shown = (model["batch"]["samples_per_prompt"], ppo["clip_low"], ppo["clip_high"], model["advantage"]["critic_lam"])
    assert shown == own and ppo["aggregation"] and model["advantage"]["whiten"] is not None
    (tmp_path / "recipes" / "again.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
    assert run_settings([str(tmp_path / "recipes" / "again.yaml"), "--data.train.path", "arithmetic"])
    assert run_settings([str(file)]).model.batch.samples_per_prompt is None, "only what is printed is filled in"


def test_a_run_keeps_its_settings_as_hyperparameters(tmp_path: Path) -> None:
    file = recipe(tmp_path, {"model.algorithm": "rloo", "trainer.max_epochs": 1, "model.batch.minibatch_size": 10})
    assert main(["run", str(file), "--data.problems_per_epoch", "4"]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    kept = yaml.safe_load((run / "hparams.yaml").read_text(encoding="utf-8"))
    assert kept["model"]["batch"] == {"samples_per_prompt": 5, "minibatch_size": 10}
    assert kept["model"]["evaluation"]["max_new_tokens"] == 8 and kept["data"]["problems_per_epoch"] == 4
    assert kept["seed_everything"] == 3 and kept["trainer"]["max_epochs"] == 1
    assert "hp_metric" not in "".join(csv_rows(run / "metrics.csv")[0])


@pytest.mark.parametrize("width", [80, 120])
def test_list_names_every_recipe_with_its_title(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", width)
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width and "…" not in shown
    rows = folders_of(shown)
    for file in (ROOT / "recipes").rglob("*.yaml"):
        folder = file.parent.relative_to(ROOT / "recipes").as_posix()
        files, text = rows["" if folder == "." else f"{folder}/"]
        assert file.stem in files
        title = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert title in text or title.endswith(("as sppo.yaml beside it.", "as cartpole.yaml beside it."))
    assert len([line for line in shown.splitlines() if "gsm8k/ " in line]) == 1
    assert len(shown.splitlines()) < 75


def folders_of(shown: str) -> dict[str, tuple[list[str], str]]:
    """Folder in the output of `sppo list` → its files and the text beside them."""
    rows: dict[str, tuple[list[str], str]] = {"": ([], "")}
    heading, _, *lines = shown.splitlines()
    at, folder = [heading.index(name) for name in ("FILE", "what")], ""
    for line in lines[:-1]:
        folder = line[: at[0]].strip() or folder
        files, text = rows.get(folder, ([], ""))
        rows[folder] = ([*files, *line[at[0] : at[1]].split()], f"{text} {line[at[1] :].strip()}".strip())
    return rows


def test_list_works_elsewhere_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "own").mkdir(parents=True)
    (tmp_path / "recipes" / "own" / "mine.yaml").write_text("# My own.\n")
    assert main(["list"]) == 0
    rows = folders_of(capsys.readouterr().out)
    assert "quickstart" in rows[""][0] and rows["own/"] == (["mine"], "My own.")
    assert translate(["recipes/quickstart.yaml"])[2] == str(ROOT / "recipes" / "quickstart.yaml")


@pytest.mark.parametrize("start", [main, lightning_main])
def test_every_command_answers_after_run_too(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    for name in COMMANDS:
        monkeypatch.setitem(COMMANDS, name, lambda rest, name=name: calls.append((name, rest)) or 7)
        assert start(["run", name, "x", "--flag"]) == 7
    assert calls == [
        (name, ["x", "--flag"]) for name in ("list", "doctor", "audit", "study", "figure", "score", "convert", "push")
    ]


def test_list_after_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for start in (main, lightning_main):
        assert start(["run", "list"]) == 0
        assert capsys.readouterr().out == shown


def test_short_flags_stand_for_the_trainers() -> None:
    file = str(ROOT / "recipes" / "quickstart.yaml")
    given = [file, "--max_epochs", "3", "--strategy=ddp", "--model.batch.minibatch_size", "4", "--ckpt_path", "last"]
    flags = ["--trainer.max_epochs", "3", "--trainer.strategy=ddp", "--model.batch.minibatch_size", "4"]
    assert translate(given) == ["fit", "--config", file, *flags, "--ckpt_path", "last"]
    assert translate(["validate", file]) == ["validate", "--config", file]
    with pytest.raises(InputError):
        translate(["--max_epochs", "3"])


# ------------------------------------------------------------------------------------------------ the name `lightning`


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if lightning-sdk were not installed."""
    monkeypatch.setitem(sys.modules, "lightning_sdk", None)


def test_lightning_without_sdk(no_sdk: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lightning_main(["login"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lightning: 'login'") and "pip install lightning-sdk" in error
    assert lightning_main(["list"]) == 0 and lightning_main(["--help"]) == 0 and lightning_main([]) == 0
    assert "lightning run [fit|validate] RECIPE" in capsys.readouterr().out
    assert lightning_main(["run", "nothing.yaml"]) == 2
    assert capsys.readouterr().err.startswith("lightning: recipe nothing.yaml")


def test_lightning_with_sdk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[list[str]] = []
    entry = types.ModuleType("lightning_sdk.cli.entrypoint")
    entry.main_cli = lambda: calls.append(sys.argv[1:])  # type: ignore[attr-defined]
    for name in ("lightning_sdk", "lightning_sdk.cli"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lightning_sdk.cli.entrypoint", entry)
    for arguments in (["login"], ["list", "jobs"], ["--help"], []):
        monkeypatch.setattr(sys, "argv", ["lightning", *arguments])
        assert lightning_main() == 0
    assert calls == [["login"], ["list", "jobs"], ["--help"], []]
    monkeypatch.setattr(sys, "argv", ["lightning", "run", "nothing.yaml"])
    assert lightning_main() == 2 and len(calls) == 4  # `run` stays ours
    assert "recipe nothing.yaml" in capsys.readouterr().err


def test_a_broken_sdk_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lightning_sdk" / "cli"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "entrypoint.py").write_text("import something_it_lacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_lacks"):
        lightning_main(["login"])
    for name in ("lightning_sdk", "lightning_sdk.cli"):
        sys.modules.pop(name, None)


# --------------------------------------------------------------------------------------------------------------- runs


def metrics(folder: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` without what depends on the machine."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and k not in RATES}
        for row in csv_rows(folder / "metrics.csv")
    ]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of the TensorBoard files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    file = str(recipe(tmp_path, HELD_OUT))
    assert main(["run", file, "--max_epochs", "4", "--trainer.default_root_dir", str(whole)]) == 0
    arguments = [file, "--trainer.default_root_dir", str(halves), "--max_epochs"]
    assert main(["run", *arguments, "2"]) == 0
    assert main(["run", "fit", *arguments, "4", "--ckpt_path", "last"]) == 0

    assert [p.name for p in (halves / "tiny").iterdir()] == ["version_0"]
    a, b = whole / "tiny" / "version_0", halves / "tiny" / "version_0"
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (a, b))
    assert int(one["state_dict"]["iterations_done"]) == 4
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, weights in one["state_dict"].items():
        assert torch.equal(weights, two["state_dict"][name]), name
    assert str(one["optimizer_states"]) == str(two["optimizer_states"])
    assert one["epoch"] == two["epoch"] == 3
    assert [row["step"] for row in metrics(a)] == ["0", "1", "1", "2", "2", "3", "3", "4", "4"]
    assert metrics(a) == metrics(b)
    curves = scalars(b)
    assert [step for step, _ in curves["policy/loss"]] == [1, 2, 3, 4]
    assert curves["policy/loss"] == scalars(a)["policy/loss"]
    assert yaml.safe_load((b / "config.yaml").read_text())["ckpt_path"] is None
    assert {p.name for p in (b / "evaluations").iterdir()} == {f"arithmetic-iteration-{i}.jsonl" for i in range(5)}


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A run killed between two checkpoints has logged iterations that the resumed run does again."""
    file = str(recipe(tmp_path, {"trainer.max_epochs": 2}))
    assert main(["run", file]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    with (run / "metrics.csv").open(newline="") as opened:
        names = next(csv.reader(opened))
    with (run / "metrics.csv").open("a", newline="") as opened:
        csv.DictWriter(opened, names).writerow({"step": "3", "rollout/reward": "9"})
        opened.write("0.5,0.")  # cut short by the kill
    assert main(["run", "fit", file, "--ckpt_path", "last", "--max_epochs", "3"]) == 0
    rows = metrics(run)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert rows[-1]["rollout/reward"] != "9"


def test_the_saved_recipe_of_a_run_resumes_and_evaluates_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(tmp_path, HELD_OUT))]) == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    trained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("arithmetic ")][-1]
    config, last = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    assert main(["run", "fit", config, "--ckpt_path", last, "--max_epochs", "3"]) == 0
    assert [row["step"] for row in metrics(run) if row["policy/loss"]] == ["1", "2", "3"]
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(Path(last).read_bytes())
    assert main(["run", "fit", config, "--ckpt_path", str(copy), "--max_epochs", "4"]) == 0
    assert sorted(p.name for p in run.parent.iterdir()) == ["version_0", "version_1"]  # not the run's own: a new one
    capsys.readouterr()
    assert main(["run", "validate", str(recipe(tmp_path, HELD_OUT)), "--ckpt_path", "last"]) == 0
    shown = capsys.readouterr().out
    assert "Evaluation after iteration 4" in shown and trained.split()[2] in shown
    assert "Validate metric" not in shown
    assert (run.parent.parent / "tiny-validate" / "version_0" / "evaluations").is_dir()


def test_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppo_lit.training.collector import Collector

    collect = Collector.collect

    def interrupted(self: Collector, problems: Any, iteration: int) -> Any:
        if iteration == 2:
            raise KeyboardInterrupt
        return collect(self, problems, iteration)

    monkeypatch.setattr(Collector, "collect", interrupted)
    assert main(["run", str(recipe(tmp_path, {"trainer.max_epochs": 5}))]) == 130
    shown = capsys.readouterr()
    last = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    assert last.is_file()
    lines = [line for line in (shown.out + shown.err).splitlines() if "interrupted" in line]
    assert len(lines) == 1 and "after iteration 2" in lines[0] and str(last) in lines[0]
    assert "Traceback" not in shown.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_before_the_first_iteration_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sppo_lit.training.module.load_tokenizer", interrupted)
    assert main(["run", str(recipe(tmp_path))]) == 130
    assert capsys.readouterr().err == "sppo: interrupted\n"
    assert not (tmp_path / "runs").exists()
    monkeypatch.undo()
    monkeypatch.setattr("sppo_lit.training.collector.Collector.collect", interrupted)
    assert main(["run", str(recipe(tmp_path))]) == 130
    assert not (tmp_path / "runs").exists()


def test_a_run_prints_only_its_own_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        command("run", recipe(tmp_path, HELD_OUT)), env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    alien = re.compile("available|Seed|Tip|litlogger|Loading weights|LOAD REPORT|eval mode|args parameter|sys.argv")
    assert not alien.search(done.stdout), done.stdout
    assert done.stdout.startswith("val: arithmetic: 6 problems\nEvaluation before training")
    assert "Run finished" in done.stdout


def test_refusal_and_bug_as_the_shell_sees_them(tmp_path: Path) -> None:
    def run(*arguments: Any, code: str = "") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *map(str, arguments)] if code else command(*arguments)
        return subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True)

    refused = run("run", recipe(tmp_path, {"modle": 1}))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "unknown key modle" in refused.stderr
    code = (
        "import sys, sppo_lit.training.collector as m, sppo_lit.cli.main as c\n"
        "m.Collector.collect = lambda self, problems, iteration: 1 // 0\n"
        "sys.exit(c.main())"
    )
    bug = run("run", recipe(tmp_path), code=code)
    assert bug.returncode == 1 and "Traceback" in bug.stderr and "ZeroDivisionError" in bug.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [("--help",), ("run", "fit", "--help"), ("list",)], ids=" ".join)
def test_a_reader_that_has_had_enough_is_no_error(arguments: tuple[str, ...]) -> None:
    """As of `sppo list | head -1`."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """A real signal to a real process in the middle of a run."""
    file = recipe(tmp_path, {"trainer.max_epochs": 100000})
    process = subprocess.Popen(
        command("run", file),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    last = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "interrupted after iteration" in out and str(last) in out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_disk_that_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk of 256 KiB: large enough for the log, too small for a checkpoint; later filled by somebody else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        file = recipe(tmp_path, {"trainer.default_root_dir": str(disk / "runs")})
        larger = ["--model.policy.config", "{hidden_size: 64, intermediate_size: 256, num_hidden_layers: 4}"]
        assert main(["run", str(file), *larger]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "not enough free disk space" in error
        assert not any(disk.iterdir())
        (disk / "large").write_bytes(b"0" * 250_000)
        assert main(["run", str(file)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("space" in error or "disk" in error), error
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("moment", ["start", "connecting", "running"])
def test_ctrl_c_at_the_start_of_ddp_leaves_no_process(moment: str, tmp_path: Path) -> None:
    file = recipe(tmp_path, {"trainer.max_epochs": 400})
    flags = ("--strategy", "ddp", "--devices", "2")
    process = subprocess.Popen(
        command("run", file, *flags),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Where the tests themselves run in the background of a shell, it has made them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if moment == "connecting":  # the first process waits in the collective's rendezvous, which no signal interrupts
        _wait_for(lambda: psutil.Process(process.pid).children())
        time.sleep(1)
    else:
        time.sleep({"start": 0.5, "running": 4}[moment])
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)  # until the last one that holds the pipe has ended
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    # Both are 130 in a shell; Python ends itself by the signal if it came within `exec`, as in making a dataclass.
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in output, output
    assert output.count("interrupted") <= 1 and "zombies" not in output, output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (tmp_path / "runs").exists()


def _wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which no folder can be made")
def test_run_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(tmp_path)), "--trainer.default_root_dir", "/proc/runs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--trainer.default_root_dir" in error
