"""Whether the Hugging Face Hub can be reached."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit

SECONDS = 3.0
"""How long a connection may take."""

ADVICE = "give the path of a local copy, or, if it is in the Hub's cache (HF_HOME), set HF_HUB_OFFLINE=1"


def endpoint() -> str:
    """Address of the Hub, as `huggingface_hub` reads it."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def told_offline() -> bool:
    """Whether the user wants nothing to be asked of the Hub."""
    return os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0")


@cache
def reachable() -> bool:
    """Whether the Hub takes connections; asked once a process. Behind a proxy it is believed to."""
    url = urlsplit(endpoint())
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        with socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), SECONDS):
            return True
    except OSError:
        return False


def no_retries_offline() -> None:
    """Without a connection, have the Hub's libraries read their caches only, instead of asking for half a minute."""
    import huggingface_hub.constants as constants

    if constants.HF_HUB_OFFLINE or reachable():
        return
    constants.HF_HUB_OFFLINE = True
    import datasets

    datasets.config.HF_HUB_OFFLINE = True


def why_not() -> str:
    """What to say of something on the Hub that could not be read; empty if the connection is not the reason."""
    import huggingface_hub.constants as constants

    if told_offline():
        return "it is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or give the path of a local copy"
    if constants.HF_HUB_OFFLINE or not reachable():
        return f"there is no connection to {urlsplit(endpoint()).hostname}: {ADVICE}"
    return ""
