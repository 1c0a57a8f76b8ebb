"""Extraction of the final answer from a response: the last box after the last ``</think>``, or nothing."""

from __future__ import annotations

import re

THINK_END = "</think>"
_BOX = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])")
_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])[ \t]*\{|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\{1,2}(?:boxed|fbox)(?![A-Za-z])[ \t]*(?=[^\s{$])")


def extract_answer(response: str) -> str | None:
    r"""The content of the last ``\boxed{…}``/``\fbox{…}`` after the last ``</think>``, stripped, or None.

    Braces are matched and escaped ones skipped, in one pass (linear in the length, whatever the nesting). The last box
    decides: if it is unclosed or empty there is no answer, earlier boxes and the free text are never searched. A box
    inside a box is unwrapped. ``\boxed 5`` without braces ends at the next space or dollar sign, without trailing
    punctuation.
    """
    text = response[response.rfind(THINK_END) + len(THINK_END) :] if THINK_END in response else response
    if not _BOX.search(text):
        return None
    content = _last_outer_box(text)
    if content is None:
        return None
    for _ in range(3):
        inner = _whole_box(content)
        if inner is None:
            break
        content = inner
    return content.strip() or None


def _last_outer_box(text: str) -> str | None:
    """Content of the last box that is not inside a closed box; None if that one is unclosed."""
    stack: list[tuple[int, int]] = []  # (start of the box or -1 for a plain brace, start of the content)
    closed: list[tuple[int, int, int]] = []  # closed boxes that no later-closed box contains: start, content, end
    for m in _TOKEN.finditer(text):
        token = m.group()
        if token == "{":
            stack.append((-1, m.end()))
        elif token == "}":
            if stack:
                start, content = stack.pop()
                if start >= 0:
                    while closed and closed[-1][0] > start:
                        closed.pop()
                    closed.append((start, content, m.start()))
        elif token[-1] == "{" and len(token) > 2:
            stack.append((m.start(), m.end()))
    last_open = max((start for start, _ in stack), default=-1)
    start, content, end = closed[-1] if closed else (-1, 0, 0)
    bare = _last_bare(text, max(start, end, last_open))
    if bare is not None:
        return bare
    return text[content:end] if start > last_open else None


def _last_bare(text: str, after: int) -> str | None:
    r"""Content of a brace-less ``\boxed 5`` that begins after position `after`."""
    last = None
    for m in _BARE.finditer(text, max(after, 0)):
        last = m
    if last is None:
        return None
    depth = 0
    rest = text[last.end() :]
    for i, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth < 0 or char == "$" or (depth == 0 and char.isspace()):
            rest = rest[:i]
            break
    return rest.rstrip(".,;:") if depth <= 0 else None


def _whole_box(text: str) -> str | None:
    """What is inside `text` if `text` is itself one box."""
    text = text.strip()
    m = _TOKEN.match(text)
    if m is None or len(m.group()) <= 2 or not text.endswith("}"):
        return None
    return _last_outer_box(text) if text.count("{") == text.count("}") else None
