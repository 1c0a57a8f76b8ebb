"""Random numbers that belong to a sequence, not to a batch.

A response is drawn from its own row of uniforms, keyed by (seed, iteration, problem, sample index). Then samples do not
depend on batch size, order, refills or the number of ranks, a resumed run needs no
generator state, and one response can be replayed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK64 = 2**64 - 1


def sequence_key(*parts: int | str) -> int:
    """A 64-bit key of the parts that name a response, e.g. ``sequence_key(seed, iteration, problem.key, sample)``.

    The same on every machine and in every process. ``1`` and ``"1"`` differ, and so do
    ``("ab", "c")`` and ``("a", "bc")``.

    Returns:
        An int in [0, 2**64).
    """
    text = "".join(f"{type(part).__name__}{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(keys: Sequence[int], length: int) -> NDArray[np.float64]:
    """One row of uniforms in [0, 1) per key: the Philox-4x64 counter stream under that key.

    A row depends on its key alone, and a shorter row is a prefix of a longer one.

    Args:
        keys: N integers, of which the low 64 bits are used.
        length: numbers per row.

    Returns:
        [N, length] float64, multiples of 2**-53.
    """
    raw = np.empty((len(keys), length), dtype=np.uint64)
    # One generator whose key is replaced row by row: building one per row costs forty times as much.
    generator = np.random.Philox(key=0)
    state = generator.state
    for row, key in zip(raw, keys, strict=True):
        state["state"]["key"][0] = key & _MASK64
        generator.state = state
        row[:] = generator.random_raw(length)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
