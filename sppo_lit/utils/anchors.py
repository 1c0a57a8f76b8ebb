"""YAML files whose anchors make a mapping or list part of itself, which nothing that walks through it survives."""

from __future__ import annotations

ITSELF = "an anchor (&) refers to a place inside itself; write the values out"
"""What to say of such a file."""


def contains_itself(content: object, inside: tuple[int, ...] = ()) -> bool:
    """Whether a mapping or list is part of itself, as YAML's anchors allow."""
    if not isinstance(content, (dict, list)):
        return False
    if id(content) in inside:
        return True
    parts = content.values() if isinstance(content, dict) else content
    return any(contains_itself(part, (*inside, id(content))) for part in parts)
