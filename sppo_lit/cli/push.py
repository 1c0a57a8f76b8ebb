"""``sppo push RUN --repo NAME``: upload a run's exported models to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo_lit.errors import InputError
from sppo_lit.utils.command import CommandParser
from sppo_lit.utils.console import console
from sppo_lit.utils.upload import Target, check, upload


def push(arguments: Sequence[str]) -> int:
    """Upload policy and critic of a run, each with its model card; returns 0.

    Args:
        arguments: command-line arguments after ``sppo push``.

    Raises:
        InputError: no such run, nothing exported, a wrong name, no login, no connection, or the Hub refuses.
    """
    parser = CommandParser(
        prog="sppo push", description="Upload a run's policy and critic, with model cards, to the Hugging Face Hub."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or one that holds version_0, version_1, …")
    parser.add_argument(
        "--repo", metavar="NAME", required=True, help="owner/name; the critic goes to owner/name-critic"
    )
    parser.add_argument("--private", action="store_true", help="make the repositories private")
    parser.add_argument("--license", metavar="ID", help="licence, e.g. apache-2.0; default: that of the base model")
    args = parser.parse_args(list(arguments))
    target = Target(args.repo, args.private, args.license)
    models = exported(args.run)
    check(target)
    console.print(f"uploading {models}", markup=False, soft_wrap=True)
    for url in upload(models, target):
        console.print(f"uploaded: {url}", markup=False, soft_wrap=True)
    return 0


def exported(run: Path) -> Path:
    """Folder of a run's exported models; of several versions the newest that has any.

    Raises:
        InputError: no such run, or it has exported nothing.
    """
    if not run.is_dir():
        raise InputError(f"{run}: no such run; give the folder of one, e.g. lightning_logs/quickstart/version_0")
    runs = [run, *sorted(run.glob("version_*"), key=lambda folder: folder.stat().st_mtime, reverse=True)]
    for folder in runs:
        if (folder / "hf" / "policy" / "README.md").is_file():
            return folder / "hf"
    recipe = next((folder / "config.yaml" for folder in runs if (folder / "config.yaml").is_file()), None)
    if recipe is None:
        raise InputError(f"{run}: not a run folder (it has neither config.yaml nor exported models)")
    raise InputError(
        f"{run}: nothing is exported yet, which a run does at its end; go on with: "
        f"sppo run fit {recipe} --ckpt_path last"
    )
