r"""A procedural reasoning task: nested integer expressions of graded difficulty.

A problem of level k has k operations. Its worked solution reduces one operation per line, leftmost innermost first, and
ends with the boxed answer::

    (3+4)*(9-7)=        <- prompt
    7*(9-7)
    7*2
    \boxed{14}

Problem i of a split is a pure function of (seed, split, i): any position of the endless stream can be reached without
producing the problems before it. Splits are disjoint by construction: a checksum of the expression decides which split
it belongs to.
"""

from __future__ import annotations

import operator
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from sppo_lit.errors import InputError
from sppo_lit.types import Problem

Tree = int | tuple[str, "Tree", "Tree"]

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
HELD_OUT_SHARE = 8
"""One expression in this many belongs to the held-out split."""


@dataclass(frozen=True)
class ArithmeticTask:
    """Settings of the arithmetic task.

    Attributes:
        min_operations: fewest operations in an expression (level of the easiest problem), at least 1.
        max_operations: most operations; levels are drawn uniformly. 10 to 14 with `modulus` 10 is the long-horizon
            setting: solutions of 189 to 373 characters (of k operations: 2·k·(k − 1) + 9).
        largest: no intermediate result or answer is negative or larger than this (without `modulus`).
        modulus: if set, every operation is reduced modulo this number, so that all numbers stay small. A list: each
            problem draws one of them, and its level is 100 · modulus + operations: the same horizon, but a difficulty
            that the prompt tells, since the larger the modulus the more products and differences there are to know.
        hasty: share (0 to 1) of worked solutions that state the answer at once, without reasoning: correct, but hard
            to imitate. Only the supervised warm-up reads solutions; the policy it gives can reason but often does
            not, which reinforcement learning then changes.
        seed: selects the stream of problems.

    Raises:
        InputError: a setting out of its range.
    """

    min_operations: int = 1
    max_operations: int = 6
    largest: int = 99
    modulus: int | list[int] | None = None
    hasty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_operations <= self.max_operations:
            raise InputError(
                f"arithmetic: needs 1 <= min_operations <= max_operations, got {self.min_operations} and "
                f"{self.max_operations}"
            )
        if self.largest < 9:
            raise InputError(f"arithmetic: largest is {self.largest}; it must be at least 9, the largest digit")
        moduli = self.modulus if isinstance(self.modulus, list) else [self.modulus]
        if not moduli or any(modulus is not None and modulus < 2 for modulus in moduli):
            raise InputError(f"arithmetic: modulus is {self.modulus}; it must be at least 2, or null for none")
        if not 0 <= self.hasty <= 1:
            raise InputError(f"arithmetic: hasty is {self.hasty}; it is a share, from 0 to 1")

    def problem(self, index: int, split: str = "train") -> Problem:
        """Problem number `index`, from 0, of `split` ("train"; anything else is the held-out split)."""
        rng = random.Random(f"{self.seed}/{split}/{index}")
        operations = rng.randint(self.min_operations, self.max_operations)
        modulus, level = self.modulus, operations
        if isinstance(modulus, list):
            modulus = rng.choice(modulus)
            level += 100 * modulus
        while True:
            tree = self._tree(rng, operations)
            prompt = _render(tree) + (f" mod {modulus}=" if modulus else "=")
            if self._in_range(tree, modulus) and held_out(prompt) == (split != "train"):
                break
        lines = []
        while not isinstance(tree, int):
            tree = _reduce(tree, modulus)
            lines.append(_render(tree))
        answer = lines.pop()
        if rng.random() < self.hasty:
            lines = []
        return Problem(
            key=f"arithmetic/{split}/{index}",
            prompt=prompt,
            answer=answer,
            source="arithmetic",
            level=level,
            solution="\n".join([*lines, f"\\boxed{{{answer}}}"]),
        )

    def _tree(self, rng: random.Random, operations: int) -> Tree:
        if operations == 0:
            return rng.randint(1, 9)
        left = rng.randint(0, operations - 1)
        return (
            rng.choice(list(OPERATIONS)),
            self._tree(rng, left),
            self._tree(rng, operations - 1 - left),
        )

    def _in_range(self, tree: Tree, modulus: int | None) -> bool:
        """Whether no intermediate result is negative or too large (always true with a modulus)."""
        return modulus is not None or _value(tree, self.largest) is not None


def _apply(symbol: str, left: int, right: int, modulus: int | None) -> int:
    """`left symbol right`, reduced modulo `modulus` if there is one."""
    value = OPERATIONS[symbol](left, right)
    return value % modulus if modulus else value


def _reduce(tree: Tree, modulus: int | None) -> Tree:
    """One step: the leftmost operation whose two operands are numbers."""
    assert not isinstance(tree, int)
    symbol, left, right = tree
    if not isinstance(left, int):
        return (symbol, _reduce(left, modulus), right)
    if not isinstance(right, int):
        return (symbol, left, _reduce(right, modulus))
    return _apply(symbol, left, right, modulus)


def _value(tree: Tree, largest: int) -> int | None:
    """What `tree` is worth, or None if it or a part of it lies outside 0 to `largest`."""
    if isinstance(tree, int):
        return tree
    left, right = _value(tree[1], largest), _value(tree[2], largest)
    if left is None or right is None:
        return None
    value = OPERATIONS[tree[0]](left, right)
    return value if 0 <= value <= largest else None


def _render(tree: Tree, nested: bool = False) -> str:
    if isinstance(tree, int):
        return str(tree)
    text = f"{_render(tree[1], True)}{tree[0]}{_render(tree[2], True)}"
    return f"({text})" if nested else text


def held_out(prompt: str) -> bool:
    """Whether a generated problem belongs to the held-out split: decided by a checksum of its text."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0
