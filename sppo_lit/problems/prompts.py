"""Tokenization of a problem's text for the policy and the critic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.types import Problem


def render_prompt(tokenizer: Any, text: str, system: str | None = None) -> list[int]:
    """Token ids of one prompt, ready to be continued by the policy.

    With a chat template: `text` as the user's turn (after `system`), the generation prompt added, and no
    beginning-of-sequence token besides the template's. Without one: the text unchanged (after `system` and a blank
    line), with the special tokens that the tokenizer puts before it, and none after it.

    Args:
        tokenizer: of the policy.
        text: the problem's prompt.
        system: system message, if any.

    Raises:
        InputError: the chat template refuses a system message.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _plain_ids(tokenizer, f"{system}\n\n{text}" if system else text)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    try:
        # The template writes its special tokens as text, so they are not added again when it is tokenized.
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        if system:
            raise InputError(
                f"The tokenizer's chat template refuses a system message: leave it out ({error})"
            ) from error
        raise
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids, bare = list(tokenizer(text)["input_ids"]), list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # A tokenizer that closes a text with an end-of-sequence token would have the policy continue after the end.
    while len(ids) > len(bare) and ids[-1:] != bare[-1:]:
        ids.pop()
    return ids


def encode_problems(
    problems: Iterable[Problem], tokenizer: Any, max_prompt_tokens: int, system: str | None = None
) -> tuple[list[tuple[Problem, list[int]]], int]:
    """Tokenize prompts and drop those of more than `max_prompt_tokens` tokens.

    Args:
        problems: to encode.
        tokenizer: of the policy.
        max_prompt_tokens: length of the longest prompt kept, in tokens.
        system: system message of every prompt, if any.

    Returns:
        The problems kept, in order, each with its prompt ids; and how many were too long.

    Raises:
        InputError: there are no problems, or all prompts are too long.
    """
    encoded = [(problem, render_prompt(tokenizer, problem.prompt, system)) for problem in problems]
    kept = [pair for pair in encoded if len(pair[1]) <= max_prompt_tokens]
    if not encoded:
        raise InputError("No problems to encode: the data set is empty")
    if not kept:
        shortest = min(len(ids) for _, ids in encoded)
        raise InputError(
            f"All {len(encoded)} prompts are longer than max_prompt_tokens = {max_prompt_tokens} (the shortest has "
            f"{shortest} tokens): raise the limit"
        )
    return kept, len(encoded) - len(kept)
