"""Turns exceptions of huggingface_hub into SourceError, with the cause and the next step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.errors import RushlightError, SourceError, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["translate_errors"]

_SIGN_IN = "run `hf auth login`, or set HF_TOKEN to a token with read access"
_REMEDIES = {
    401: _SIGN_IN,
    403: _SIGN_IN,
    404: "check the spelling, and HF_ENDPOINT if it is set",
    429: f"too many requests from this address: wait some minutes, or {_SIGN_IN}",
}


@contextmanager
def translate_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translates every exception of huggingface_hub in the block.

    Raises:
        SourceError: the model does not exist, is not public, or cannot be downloaded now.
    """
    try:
        yield
    except RushlightError:
        raise
    except Exception as error:
        # Not a list of types: they depend on the transport below huggingface_hub, which changes between versions.
        raise _explain(error, repo_id, revision) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> SourceError:
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{repo_id}"
    no_path = f"no path {repo_id} exists"  # the user may have meant a folder
    file = None
    # If the cache lacks the model too, the cause is the first failure; without one, the network was not used.
    cache_failed = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError)
    reason = error.__cause__ if cache_failed else error
    match reason:
        case None:
            message = f"{no_path}, the cache does not have the complete model, and the network is disabled"
            remedy = f"download it with `rushlight pull {repo_id}`, without --offline and HF_HUB_OFFLINE"
        case errors.HFValidationError():
            message = f"{repo_id} is neither an existing path nor a valid hub id"
            remedy = "check the spelling"
        case errors.GatedRepoError():
            message = f"{repo_id} is gated: its authors ask you to accept a licence first"
            remedy = f"accept it at {page}, then {_SIGN_IN}"
        case errors.RepositoryNotFoundError():
            message = f"{no_path}, and the hub has no public model of that name"
            remedy = f"check the spelling; if it is private, {_SIGN_IN}"
        case errors.RevisionNotFoundError():
            message = f"{repo_id} has no revision {revision}"
            remedy = f"{page}/tree/main lists its revisions"
        case errors.HfHubHTTPError():
            status = reason.response.status_code
            message = f"the hub answered {status} for {repo_id}"
            remedy = _REMEDIES.get(status, f"try again later, or see {page}")
        case OSError() if reason.filename and reason.strerror:
            file = reason.filename
            message = f"the hub's cache cannot be used: {reason.strerror}"
            remedy = "fix it, or set HF_HUB_CACHE to another folder"
        case _:
            first_line = str(reason).strip().partition("\n")[0] or type(reason).__name__
            message = f"{no_path}, and the model cannot be downloaded from the hub: {printable_name(first_line)}"
            remedy = f"check that {ENDPOINT} can be reached, and try again"
    return SourceError(message, file=file, remedy=remedy)
