"""From a problem's text to the prompt that the model reads, as text and as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sppo_lit.errors import InputError
from sppo_lit.types import Problem

BOXED_SUFFIX = "Please output the final answer within \\boxed{}."
PLACE = "{problem}"


@dataclass(frozen=True)
class Example:
    """A worked example that stands before every problem.

    Attributes:
        problem: its text; template and suffix are applied to it as to the problems.
        response: the answer that the model is shown, from its first character on: where there is no chat template, it
            follows the example's prompt directly.
    """

    problem: str
    response: str


@dataclass(frozen=True)
class PromptSettings:
    r"""How the text of a problem becomes a prompt.

    Attributes:
        template: text around the problem in the user's turn; ``{problem}`` stands for the problem with its suffix,
            other braces for themselves.
        suffix: follows the problem after a space. None: "Please output the final answer within \boxed{}." after
            problems of files, of the Hub, of reasoning-gym and after rows of a function of your own, nothing after
            arithmetic and ready `Problem` records. An empty text: nothing after any.
        system: system message; where there is no chat template, it stands before all else, and a blank line after it.
        examples: worked examples (few-shot): earlier turns of the conversation; where there is no chat template, each
            is followed by a blank line.
    """

    template: str = PLACE
    suffix: str | None = None
    system: str | None = None
    examples: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        if PLACE not in self.template:
            raise InputError(f"prompt.template {self.template!r} has no {PLACE}: write it where the problem belongs")

    def suffix_after(self, default: str) -> str:
        """The suffix of problems whose source has the suffix `default` (empty: none)."""
        return default if self.suffix is None else self.suffix

    def user_turn(self, text: str, default_suffix: str) -> str:
        """A problem's text with suffix and template, as `Problem.prompt` holds it."""
        suffix = self.suffix_after(default_suffix)
        return self.template.replace(PLACE, f"{text} {suffix}" if suffix else text)

    def turns(self, default_suffix: str) -> list[tuple[str, str]]:
        """User's turn and response of each example."""
        return [(self.user_turn(e.problem, default_suffix), e.response) for e in self.examples]


@dataclass(frozen=True)
class Columns:
    """Which column of a row holds what, e.g. ``{problem: question, answer: meta.gold}``; a dot goes into a mapping.

    With any of these, the others are looked for under their usual names.

    Attributes:
        problem: the problem's text, or a list of messages (the last one of the user).
        answer: the gold answer; a number, text, text with ``####`` or a box before it.
        solution: a worked response, for supervised warm-up.
        level: graded difficulty, a number.
    """

    problem: str | None = None
    answer: str | None = None
    solution: str | None = None
    level: str | None = None


def render_prompts(
    tokenizer: Any, texts: Sequence[str], system: str | None = None, examples: Iterable[tuple[str, str]] = ()
) -> list[list[int]]:
    """Token ids of prompts, ready to be continued by the policy.

    With a chat template: a text as the user's turn (after `system` and the examples' turns), the generation prompt
    added, and no beginning-of-sequence token besides the template's. Without one: the text unchanged (after `system`
    and each example, with a blank line after either), with the special tokens that the tokenizer puts before it, and
    none after it.

    Args:
        tokenizer: of the policy.
        texts: prompts of problems, at least one.
        system: system message, if any.
        examples: user's turn and response of each worked example.

    Raises:
        InputError: the chat template refuses a system message, or the turns of examples.
    """
    if not getattr(tokenizer, "chat_template", None):
        before = [system] if system else []
        before += [turn + response for turn, response in examples]
        return _plain_ids(tokenizer, ["\n\n".join([*before, text]) for text in texts])
    messages = [{"role": "system", "content": system}] if system else []
    for turn, response in examples:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": response}]
    conversations = [[*messages, {"role": "user", "content": text}] for text in texts]
    try:
        # The template writes its special tokens as text, so they are not added again when it is tokenized.
        rendered = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        refused = "a system message: leave prompt.system out" if system else "examples: leave prompt.examples out"
        if messages:
            raise InputError(f"The tokenizer's chat template refuses {refused} ({error})") from error
        raise InputError(f"The tokenizer's chat template fails ({error}): correct it in the model's folder") from error
    return [list(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]


def _plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    prompts = [list(ids) for ids in tokenizer(texts)["input_ids"]]
    for ids, bare in zip(prompts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        # A tokenizer that closes a text with an end-of-sequence token would have the policy continue after the end.
        while len(ids) > len(bare) and ids[-1:] != list(bare[-1:]):
            ids.pop()
    return prompts


def encode_problems(
    problems: Iterable[Problem],
    tokenizer: Any,
    max_prompt_tokens: int,
    system: str | None = None,
    examples: Iterable[tuple[str, str]] = (),
) -> tuple[list[tuple[Problem, list[int]]], int]:
    """Tokenize prompts and drop those of more than `max_prompt_tokens` tokens.

    Args:
        problems: to encode.
        tokenizer: of the policy.
        max_prompt_tokens: length of the longest prompt kept, in tokens.
        system: system message of every prompt, if any.
        examples: user's turn and response of each worked example of every prompt.

    Returns:
        The problems kept, in order, each with its prompt ids; and how many were too long.

    Raises:
        InputError: there are no problems, or all prompts are too long.
    """
    problems = list(problems)
    if not problems:
        raise InputError("No problems to encode: the data set is empty")
    prompts = render_prompts(tokenizer, [problem.prompt for problem in problems], system, examples)
    encoded = list(zip(problems, prompts, strict=True))
    kept = [pair for pair in encoded if len(pair[1]) <= max_prompt_tokens]
    if not kept:
        shortest = min(len(ids) for _, ids in encoded)
        raise InputError(
            f"All {len(encoded)} prompts are longer than max_prompt_tokens = {max_prompt_tokens} (the shortest has "
            f"{shortest} tokens): raise the limit"
        )
    return kept, len(encoded) - len(kept)
