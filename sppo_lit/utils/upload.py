"""Upload of exported models to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from sppo_lit.errors import InputError
from sppo_lit.utils.hub import endpoint, reachable, told_offline

PARTS = {"policy": "", "critic": "-critic"}
"""Exported models, in the order of their upload, and what is put behind the name of the repository."""
UNUSABLE = (HTTPError, OSError, ValueError)
"""What the Hub's client raises where the user can do something; a lost connection is an HTTPError."""


@dataclass(frozen=True)
class Target:
    """Where models are uploaded.

    Attributes:
        repo: ``owner/name`` on the Hub, or ``name`` alone for the owner of the login.
        private: whether repositories made for it are private.
        licence: identifier of the Hub; None keeps that of the card, or takes that of the base model.

    Raises:
        InputError: `repo` is not the name of a repository.
    """

    repo: str
    private: bool = False
    licence: str | None = None

    def __post_init__(self) -> None:
        try:
            for end in PARTS.values():
                validate_repo_id(self.repo + end)
        except HFValidationError as error:
            raise InputError(
                f"{self.repo!r} is not the name of a repository: give owner/name of letters, digits, '-', '_' and '.', "
                "at most 96 characters with '-critic'"
            ) from error


def check(target: Target) -> None:
    """Check connection and login.

    Raises:
        InputError: the Hub cannot be reached, or does not know the login.
    """
    if told_offline():
        raise InputError(f"nothing can be uploaded to {target.repo} while HF_HUB_OFFLINE is set; unset it")
    if not reachable():
        raise InputError(
            f"there is no connection to {endpoint()}: nothing was uploaded to {target.repo}; try again later"
        )
    try:
        HfApi().whoami()
    except UNUSABLE as error:
        raise InputError(reason(error, target.repo)) from error


def upload(models: Path, target: Target) -> list[str]:
    """Upload the exported models of a run, each as one commit that replaces what its repository holds.

    Args:
        models: folder with ``policy`` and perhaps ``critic``, as the callback `HuggingFaceExport` writes them.
        target: repository of the policy; the critic's has ``-critic`` behind its name.

    Returns:
        Addresses of the repositories.

    Raises:
        InputError: the Hub cannot be reached or refuses.
    """
    check(target)
    found = {part: target.repo + end for part, end in PARTS.items() if (models / part).is_dir()}
    urls = []
    for part, repo in found.items():
        api = HfApi()
        try:
            url = api.create_repo(repo, private=target.private, exist_ok=True)
            old = set(api.list_repo_files(url.repo_id)) - {".gitattributes"}
            others = {p: url.repo_id.removesuffix(PARTS[part]) + PARTS[p] for p in found if p != part}
            card = published_card(models / part / "README.md", part, url.repo_id, others, target.licence)
            files = [path for path in sorted((models / part).iterdir()) if path.is_file() and path.name != "README.md"]
            gone = old - {path.name for path in files} - {"README.md"}
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd("README.md", card.encode()),
                *(CommitOperationAdd(path.name, path) for path in files),
                *(CommitOperationDelete(name) for name in sorted(gone)),
            ]
            api.create_commit(url.repo_id, operations, commit_message=f"Upload the {part}")
        except UNUSABLE as error:
            raise InputError(reason(error, repo)) from error
        urls.append(str(url))
    return urls


def published_card(file: Path, part: str, repo: str, others: dict[str, str], licence: str | None) -> str:
    """A model card as it is uploaded: with its licence, the repositories' names, and no name of a local folder.

    Args:
        file: the exported card.
        part: ``policy`` or ``critic``.
        repo: where it goes.
        others: repositories of the other models of the run.
        licence: identifier of the Hub; None keeps the card's, or takes that of its base model.
    """
    card = ModelCard.load(file)
    base = card.data.base_model
    card.data.license = licence or card.data.license or (licence_of(base) if isinstance(base, str) else None)
    text = str(card).replace(f'from_pretrained("{part}")  # this folder', f'from_pretrained("{repo}")')
    text = text.replace(f'from_pretrained("{part}")', f'from_pretrained("{repo}")')
    links = [f"The {name} of the same run: [{other}]({endpoint()}/{other})." for name, other in others.items()]
    beside = "".join(f"{link}\n\n" for link in links)
    return text.replace("## Citation\n", f"{beside}## Citation\n", 1)


def licence_of(model: str) -> str | None:
    """Licence of a model on the Hub as its card says; None if it does not, or cannot be asked."""
    try:
        data = HfApi().model_info(model).card_data
    except UNUSABLE:
        return None
    return None if data is None else data.license


def reason(error: Exception, repo: str) -> str:
    """One line of what the Hub's client has against an upload, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, LocalTokenNotFoundError):
        return "no login at the Hugging Face Hub: run 'hf auth login', or set HF_TOKEN to a token that may write"
    if status == 401:
        return "the Hub does not know this login: run 'hf auth login --force', or set HF_TOKEN to a valid token"
    if status == 403:
        return f"this login may not write to {repo}: take a token with the right to write, or a repository of your own"
    if status is None and isinstance(error, HTTPError):
        return f"the connection to {endpoint()} was lost: the same command uploads what is missing"
    text = " ".join(str(error).split())
    return f"{repo} could not be uploaded: {text[:300]}"
