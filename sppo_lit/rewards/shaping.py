"""Reward shaping: what may be added to the policy's reward. The critic learns the verdict, which is never shaped."""

from __future__ import annotations


def overlong_penalty(length: int, max_length: int, buffer: int, scale: float = 1.0) -> float:
    """Soft penalty on long responses (DAPO, arXiv 2503.14476, equation 13), at most 0.

    Args:
        length: response length in tokens.
        max_length: limit on the response length in tokens.
        buffer: number of tokens before the limit over which the penalty grows linearly; 0 for a hard limit.
        scale: size of the full penalty, reached at `max_length` and constant beyond.

    Raises:
        ValueError: `buffer` is negative or above `max_length`.
    """
    if not 0 <= buffer <= max_length:
        raise ValueError(f"overlong buffer {buffer} is not between 0 and max_length {max_length}")
    over = length - (max_length - buffer)
    if over <= 0:
        return 0.0
    return -scale * min(1.0, over / buffer) if buffer else -scale
