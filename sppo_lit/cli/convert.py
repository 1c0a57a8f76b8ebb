"""`sppo convert`: a checkpoint in distributed form as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sppo_lit.errors import InputError
from sppo_lit.utils.command import CommandParser


def convert(arguments: Sequence[str]) -> int:
    """Write a checkpoint in distributed form, a folder, to one file that resumes, validates and exports as it does.

    All of it passes through the memory of this process.

    Args:
        arguments: checkpoint and file.

    Raises:
        InputError: the checkpoint is not a folder or not whole, or the file exists.
    """
    parser = CommandParser(prog="sppo convert", description="Write a checkpoint of a sharded run to one file.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a folder, e.g. RUN/checkpoints/last.ckpt")
    parser.add_argument("file", metavar="FILE", type=Path, help="the file to write, e.g. whole.ckpt")
    options = parser.parse_args(list(arguments))
    if not options.checkpoint.is_dir():
        what = "is one file already" if options.checkpoint.is_file() else "does not exist"
        raise InputError(f"convert: {options.checkpoint} {what}; give a folder written under --strategy fsdp")
    if options.file.exists():
        raise InputError(f"convert: {options.file} exists; give another name")

    import torch

    from sppo_lit.cli.resume import check_checkpoint
    from sppo_lit.distributed.checkpoints import whole_checkpoint
    from sppo_lit.utils.files import flush, written_whole

    iterations = check_checkpoint(options.checkpoint, resume=False)
    with written_whole(options.file) as temporary:
        torch.save(whole_checkpoint(options.checkpoint), temporary)
        flush(temporary)
    print(f"{options.file}: {options.checkpoint} after {iterations} iterations, {options.file.stat().st_size:,} bytes")
    return 0
