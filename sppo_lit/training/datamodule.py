"""Streams problems and generates rollouts for every epoch: one epoch = one batch = one iteration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from sppo_lit.errors import InputError
from sppo_lit.problems.arithmetic import ArithmeticTask
from sppo_lit.problems.procedural import ProceduralSource, procedural
from sppo_lit.problems.prompts import Columns, PromptSettings, encode_problems
from sppo_lit.problems.sources import ProblemSource, open_problems
from sppo_lit.settings import SelectSettings
from sppo_lit.training.protocols import LanguageModule, language_module
from sppo_lit.types import Encoded, Intact, Problem, Sequences
from sppo_lit.utils.console import console

T = TypeVar("T")
MOST_PROBLEMS = 1_000_000
"""Of one iteration: the rollouts of more would fill the memory before the first is sampled."""

AT_ONCE = 1024
"""Problems that an iteration takes from its stream before it looks for a request to stop."""


@dataclass(frozen=True)
class ProblemSet:
    """One set of problems.

    Attributes:
        path: a name such as "gsm8k", a Hub id, a local file or folder, or a generated task: "arithmetic" (see
            `data.arithmetic`) or "reasoning_gym/NAME" (extra `gym`).
        split: split to read; None uses the source's default.
        limit: maximum number of problems; of a generated task, the number generated (None: 1,000 for validation,
            endless for training).
        name: name in keys and results; the source's own by default.
        streaming: stream a large Hub source instead of loading it (training only; in source order).
        skip_bad_rows: skip and count rows without problem or answer and corrupt lines, instead of raising an error.
        columns: which column of a row holds what; by default they are recognised. Not for generated tasks.
        prompt: how the text of its problems becomes prompts, instead of `data.prompt`.
        settings: of a "reasoning_gym/NAME", by the names of that package, e.g. ``{min_terms: 2, max_terms: 3}``.
    """

    path: str
    split: str | None = None
    limit: int | None = None
    name: str | None = None
    streaming: bool = False
    skip_bad_rows: bool = False
    columns: Columns = Columns()  # noqa: RUF009 - frozen
    prompt: PromptSettings | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"{self.path}: limit is {self.limit}; it must be at least 1, or null for all problems")
        source = procedural(self.path)
        if source is None and self.settings:
            raise InputError(f"{self.path}: settings are those of a generated task; remove them")
        if source is not None:
            source.check(self.path, self.settings)
            if self.columns != Columns():
                raise InputError(
                    f"{self.path}: columns name those of a file's rows, and this task is generated; remove them"
                )


class ProblemStream(Protocol):
    """An endless sequence of problems with random access."""

    def take(self, start: int, count: int) -> list[Encoded]:
        """Problems `start` … `start + count − 1` of the stream."""


class MathDataModule(pl.LightningDataModule):
    """Problems for training and validation.

    Iteration i trains on problems i·n … (i+1)·n − 1 of an endless stream, so that resuming needs no saved position.
    Each of w ranks takes every w-th of them. With `select` it draws `select.pool` · n problems, and answers n of them.

    Args:
        train: training problems; needed only for training.
        val: validation sets.
        arithmetic: the procedural task, if `train` or `val` names it.
        problems_per_epoch: n, problems of one iteration over all ranks.
        max_prompt_tokens: longer prompts are dropped and counted.
        prompt: how the text of a problem becomes a prompt, in all sets that have no `prompt` of their own.
        select: which of the problems drawn for an iteration are answered.
    """

    def __init__(
        self,
        train: ProblemSet = ProblemSet(""),
        val: list[ProblemSet] | None = None,
        arithmetic: ArithmeticTask = ArithmeticTask(),  # noqa: B008 - frozen
        problems_per_epoch: int = 256,
        max_prompt_tokens: int = 1024,
        prompt: PromptSettings = PromptSettings(),  # noqa: B008
        select: SelectSettings = SelectSettings(),  # noqa: B008
    ) -> None:
        super().__init__()
        for name, value in (("problems_per_epoch", problems_per_epoch), ("max_prompt_tokens", max_prompt_tokens)):
            if value < 1:
                raise InputError(f"data.{name} is {value}; it must be at least 1")
        if (drawn := select.drawn(problems_per_epoch)) > MOST_PROBLEMS:
            times = "" if select.by == "none" else f" × data.select.pool {select.pool}"
            raise InputError(
                f"data.problems_per_epoch is {problems_per_epoch:,}{times}, the problems of one iteration; it must be "
                f"at most {MOST_PROBLEMS:,}"
            )
        self.train, self.val = train, val or []
        self.arithmetic = arithmetic
        self.problems_per_epoch = problems_per_epoch
        self.max_prompt_tokens = max_prompt_tokens
        self.prompt, self.select = prompt, select
        self.problems_drawn = drawn
        self.stream: ProblemStream | None = None
        self.val_sets: dict[str, list[Encoded]] = {}

    @property
    def module(self) -> LanguageModule:
        """The trained module, which has tokenizer, verifier and collector."""
        assert self.trainer is not None
        return language_module(self.trainer.lightning_module)

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of their data loaders."""
        return list(self.val_sets)

    @property
    def problems_in_a_pass(self) -> float | None:
        """Number of training problems after which they come again; infinite if they never do, None if unknown."""
        if isinstance(self.stream, _Generated):
            return math.inf
        return len(self.stream.encoded) if isinstance(self.stream, _Shuffled) else None

    def setup(self, stage: str) -> None:
        """Read, check and encode the problems of this stage.

        Raises:
            InputError: missing or empty source, bad row, or all prompts too long.
        """
        if stage == "fit" and self.stream is None:
            self.stream = self._open_train()
        if not self.val_sets:
            for problem_set in self.val:
                encoded = self._load(problem_set, "val")
                self.val_sets[_unique(_name_of(problem_set, encoded), self.val_sets)] = encoded

    def train_dataloader(self) -> DataLoader[Intact[Sequences]]:
        """One batch: the rollouts of this iteration on this rank."""
        module = self.module

        def collect() -> Sequences:
            problems = self.problems_of(module.iteration, partial(module.stop.check, boundary=True))
            return module.collector.collect(problems, module.iteration)

        return batches_of(GeneratedBatch(collect))

    def val_dataloader(self) -> list[DataLoader[Intact[list[Encoded]]]]:
        """This rank's share of each set: in one batch, or in chunks in `validate`, which can be resumed.

        (Chunks cost some speed, since the last responses of each are decoded in small batches.)
        """
        size = None
        if self.trainer is not None and self.trainer.state.fn == "validate":
            evaluation = self.module.evaluation
            size = max(1, evaluation.chunk // evaluation.responses)
        return [batches_of(_chunks(self.trainer, encoded, size)) for encoded in self.val_sets.values()]

    def transfer_batch_to_device(self, batch: T, device: torch.device, dataloader_idx: int) -> T:
        """No-op: the collector creates batches on their device, and problems have no tensors."""
        return batch

    def problems_of(self, iteration: int, check: Callable[[], None] | None = None) -> list[Encoded]:
        """This rank's problems of an iteration, those that `select` leaves of the drawn ones.

        Args:
            iteration: 0-based.
            check: called now and then; may raise, to stop the run.
        """
        draw = partial(self._draw, iteration, check)
        if self.select.by == "none":
            return _share(self.trainer, draw())
        return _share(self.trainer, self.module.selector.choose(draw, self.problems_per_epoch))

    def _draw(self, iteration: int, check: Callable[[], None] | None) -> list[Encoded]:
        """The problems of an iteration on all ranks, in the order of the stream."""
        assert self.stream is not None
        n, entries = self.problems_drawn, list[Encoded]()
        for done in range(0, n, AT_ONCE):
            if check is not None:
                check()
            entries += self.stream.take(iteration * n + done, min(AT_ONCE, n - done))
        return entries

    def _open_train(self) -> ProblemStream:
        if not self.train.path:
            raise InputError("data.train.path is missing: name the problems to train on, e.g. ProblemSet('gsm8k')")
        seed = self.module.seed
        source = procedural(self.train.path)
        if source is not None and self.train.limit is None:
            return _Generated(self, source, seed)
        if self.train.streaming and source is None:
            return _Streamed(self)
        return _Shuffled(self._load(self.train, "train"), seed)

    def _load(self, problem_set: ProblemSet, use: str) -> list[Encoded]:
        """Read, check and encode a set, and print one line about it."""
        dropped: Counter[str] = Counter()
        if generated := procedural(problem_set.path):
            problems, suffixes = self.generated(generated, problem_set, problem_set.limit or 1000, use)
        else:
            source = self.open_source(problem_set)
            problems, suffixes = source.problems(), source.suffixes
            dropped.update(source.dropped)
        problems, wrong = self.parsable(problems)
        dropped["gold_unparsable"] += wrong
        if not problems:
            raise InputError(
                f"{problem_set.path}: none of its {wrong} gold answers can be checked; give answers as numbers or "
                "LaTeX, without \\boxed"
            )
        encoded, too_long = self.encode(problems, problem_set, self.max_prompt_tokens, suffixes)
        dropped["prompt_too_long"] += too_long
        self.report(f"{use}: {_name_of(problem_set, encoded)}", len(encoded), dropped, suffixes)
        return encoded

    def open_source(self, problem_set: ProblemSet) -> ProblemSource:
        """The source of a set; see `open_problems`."""
        return open_problems(
            problem_set.path,
            problem_set.split,
            streaming=problem_set.streaming,
            limit=problem_set.limit,
            skip_bad_rows=problem_set.skip_bad_rows,
            name=problem_set.name,
            columns=problem_set.columns,
            prompt=self.prompt_of(problem_set),
        )

    def prompt_of(self, problem_set: ProblemSet) -> PromptSettings:
        """How the prompts of a set are made."""
        return problem_set.prompt or self.prompt

    def generator(self, source: ProceduralSource, problem_set: ProblemSet) -> Callable[[int, str], Problem]:
        """What makes the problems of a generated set, with its prompts, from index and split."""
        task = source.make(problem_set.path, problem_set.settings, self.arithmetic)
        prompt = self.prompt_of(problem_set)

        def make(index: int, split: str) -> Problem:
            problem = task.problem(index, split)
            return replace(problem, prompt=prompt.user_turn(problem.prompt, source.suffix))

        return make

    def suffixes(self, source: ProceduralSource, problem_set: ProblemSet, count: int) -> Counter[str]:
        """The suffix of a generated set's problems, with their number."""
        return Counter({self.prompt_of(problem_set).suffix_after(source.suffix): count})

    def generated(
        self, source: ProceduralSource, problem_set: ProblemSet, count: int, use: str
    ) -> tuple[list[Problem], Counter[str]]:
        """The first problems of a generated set, from the split `use` by default, and the suffix that they got."""
        make, split = self.generator(source, problem_set), problem_set.split or use
        return [make(index, split) for index in range(count)], self.suffixes(source, problem_set, count)

    def parsable(self, problems: Sequence[Problem]) -> tuple[list[Problem], int]:
        """Problems whose gold answer is verified as correct, and the number of the others.

        With one sample per prompt, a gold answer that cannot be matched would give a wrong advantage.
        """
        verdicts = self.module.verifier.score([f"\\boxed{{{p.answer}}}" for p in problems], [p.gold for p in problems])
        kept = [p for p, v in zip(problems, verdicts, strict=True) if v.reward == 1]
        return kept, len(problems) - len(kept)

    def encode(
        self, problems: Sequence[Problem], problem_set: ProblemSet, limit: int, suffixes: Counter[str]
    ) -> tuple[list[Encoded], int]:
        """Problems with their prompt ids, and the number of those dropped for a prompt of more than `limit` tokens.

        The examples get the suffix that most of the problems have.

        Raises:
            InputError: every prompt of the set is longer.
        """
        prompt = self.prompt_of(problem_set)
        examples = prompt.turns(max(suffixes, key=suffixes.__getitem__, default=""))
        try:
            return encode_problems(problems, self.module.tokenizer, limit, prompt.system, examples)
        except InputError as error:
            raise InputError(f"{problem_set.path}: {error}") from error

    def report(self, what: str, kept: int, dropped: Counter[str], suffixes: Counter[str]) -> None:
        """Print how many problems were kept, why others were dropped, and what was added to them."""
        if self.trainer is not None and self.trainer.is_global_zero:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items()) if n)
            line = f"{what}: {kept:,} problems" + (f"; dropped {reasons}" if reasons else "")
            if added := " or ".join(f'"{suffix}"' for suffix, n in suffixes.items() if suffix and n):
                line += f"; followed by {added} (prompt.suffix)"
            console.print(line, markup=False)


class GeneratedBatch(Dataset[Intact[Sequences]]):
    """The only batch of an epoch, generated on demand.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Sequences]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Intact[Sequences]:
        return Intact(self._make())


class _Generated:
    """Endless stream of a generated task, different for every seed."""

    STRIDE = 10_000_000
    ATTEMPTS = 100

    def __init__(self, data: MathDataModule, source: ProceduralSource, seed: int) -> None:
        self.data, self.offset, self.split = data, seed * self.STRIDE, data.train.split or "train"
        self.source, self.make = source, data.generator(source, data.train)
        self.take(0, 1)

    def take(self, start: int, count: int) -> list[Encoded]:
        indices = [self.offset + i for i in range(start, start + count)]
        pairs = zip(indices, self._encoded(indices), strict=True)
        limit = self.data.max_prompt_tokens
        return [entry if len(entry[1]) <= limit else self._instead(index, len(entry[1])) for index, entry in pairs]

    def _encoded(self, indices: Sequence[int]) -> list[Encoded]:
        problems, data = [self.make(index, self.split) for index in indices], self.data
        return data.encode(problems, data.train, 10**9, data.suffixes(self.source, data.train, 1))[0]

    def _instead(self, index: int, shortest: int) -> Encoded:
        """A replacement of a problem whose prompt is too long, so that all iterations have the same size."""
        for attempt in range(1, self.ATTEMPTS):
            [entry] = self._encoded([index + attempt * self.STRIDE * 1_000_000])
            shortest = min(shortest, len(entry[1]))
            if shortest <= self.data.max_prompt_tokens:
                return entry
        raise InputError(
            f"{self.data.train.path}: all prompts are longer than max_prompt_tokens = {self.data.max_prompt_tokens} "
            f"(the shortest has {shortest} tokens): raise the limit or lower {self.source.shorter}"
        )


class _Shuffled:
    """A finite set, shuffled anew in every pass."""

    def __init__(self, encoded: list[Encoded], seed: int) -> None:
        self.encoded, self.seed = encoded, seed
        self.orders: dict[int, list[int]] = {}

    def take(self, start: int, count: int) -> list[Encoded]:
        size = len(self.encoded)
        return [self.encoded[self._order(i // size)[i % size]] for i in range(start, start + count)]

    def _order(self, turn: int) -> list[int]:
        if turn not in self.orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            self.orders = {turn: torch.randperm(len(self.encoded), generator=generator).tolist()}
        return self.orders[turn]


class _Streamed:
    """A streamed source in its own order; a resumed run skips to its position."""

    CHUNK = 256

    def __init__(self, data: MathDataModule) -> None:
        self.data = data
        self.position = 0
        self.entries = self._entries()

    def take(self, start: int, count: int) -> list[Encoded]:
        if start < self.position:
            self.position, self.entries = 0, self._entries()
        for _ in range(start - self.position):
            next(self.entries)
        self.position = start + count
        return [next(self.entries) for _ in range(count)]

    def _entries(self) -> Iterator[Encoded]:
        data = self.data
        while True:
            source = data.open_source(data.train)
            dropped: Counter[str] = Counter()
            problems, kept = iter(source), 0
            while chunk := list(islice(problems, self.CHUNK)):
                parsable, wrong = data.parsable(chunk)
                encoded, too_long = data.encode(parsable, data.train, 10**9, source.suffixes) if parsable else ([], 0)
                short = [entry for entry in encoded if len(entry[1]) <= data.max_prompt_tokens]
                dropped.update(gold_unparsable=wrong, prompt_too_long=too_long + len(encoded) - len(short))
                kept += len(short)
                yield from short
            if not kept:
                reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()) if n)
                raise InputError(
                    f"{data.train.path}: no usable problem in it ({reasons}); raise data.max_prompt_tokens or use "
                    "other data"
                )
            data.report(f"train: {data.train.path}, one pass", kept, dropped + source.dropped, source.suffixes)


def batches_of(batches: Dataset[T] | list[T]) -> DataLoader[T]:
    """A loader of whole batches."""
    # A list works as a map-style dataset.
    return DataLoader(cast(Dataset[T], batches), batch_size=None, collate_fn=_identity)


def _identity(batch: T) -> T:
    return batch


def _share(trainer: pl.Trainer | None, entries: list[Encoded]) -> list[Encoded]:
    """This rank's share: every world-size-th entry."""
    return entries if trainer is None else entries[trainer.global_rank :: trainer.world_size]


def _chunks(trainer: pl.Trainer | None, entries: list[Encoded], size: int | None) -> list[Intact[list[Encoded]]]:
    """This rank's entries in chunks of `size` (None: one), equally many on all ranks; the last may be empty."""
    share = _share(trainer, entries)
    most = len(entries) if trainer is None else -(-len(entries) // trainer.world_size)
    size = size or most
    return [Intact(share[start : start + size]) for start in range(0, most, size)]


def _name_of(problem_set: ProblemSet, encoded: list[Encoded]) -> str:
    return problem_set.name or encoded[0][0].source or problem_set.path


def _unique(name: str, taken: Collection[str]) -> str:
    return name if name not in taken else f"{name}_{len(taken)}"
