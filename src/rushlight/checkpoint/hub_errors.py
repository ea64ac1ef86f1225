"""What an exception of huggingface_hub means to a user, and the next step."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rushlight.errors import RushlightError, SourceError, printable_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["translate_errors"]

_SIGN_IN = "set HF_TOKEN to a token that may read it, or run `hf auth login`"
_REMEDIES = {
    401: _SIGN_IN,
    403: _SIGN_IN,
    404: "check the spelling, and HF_ENDPOINT if it is set",
    429: f"too many requests came from here: wait some minutes, or {_SIGN_IN}",
}


@contextmanager
def translate_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises inside, in terms of the model that was asked for.

    Raises:
        SourceError: the model is not there, not public, or cannot be had now; with the next step.
    """
    try:
        yield
    except RushlightError:
        raise
    except Exception as error:
        # Not a list of types: which ones come depends on the transport below huggingface_hub, and that changes.
        raise _explain(error, repo_id, revision) from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> SourceError:
    """What an exception of huggingface_hub means to a user, and the next step."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{repo_id}"
    nowhere = f"no path {repo_id} exists"  # a folder may have been meant
    file = None
    # When the cache could not help either, the first failure is the cause; without one, the network was not asked.
    cache_failed = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError)
    reason = error.__cause__ if cache_failed else error
    match reason:
        case None:
            message = f"{nowhere}, and it is not in the cache, or not whole, and the network is not to be asked"
            remedy = "load it once without --offline and without HF_HUB_OFFLINE"
        case errors.HFValidationError():
            message = f"{repo_id} is neither a path that exists nor the name of a model on the hub"
            remedy = "check the spelling"
        case errors.GatedRepoError():
            message = f"{repo_id} is gated"
            remedy = f"ask for access at {page}, then {_SIGN_IN}"
        case errors.RepositoryNotFoundError():
            message = f"{nowhere}, and the hub shows no model of that name"
            remedy = f"check the spelling; if it is private, {_SIGN_IN}"
        case errors.RevisionNotFoundError():
            message = f"{repo_id} has no revision {revision}"
            remedy = f"see {page}/tree/main for those it has"
        case errors.HfHubHTTPError():
            status = reason.response.status_code
            message = f"the hub answered {status} for {repo_id}"
            remedy = _REMEDIES.get(status, f"try again later, or see {page}")
        case OSError() if reason.filename and reason.strerror:
            file = reason.filename
            message = f"the cache of the hub cannot be used: {reason.strerror}"
            remedy = "free or change it, or name another place in HF_HUB_CACHE"
        case _:
            first_line = str(reason).strip().partition("\n")[0] or type(reason).__name__
            message = f"{nowhere}, and it cannot be downloaded from the hub: {printable_name(first_line)}"
            remedy = f"check that {ENDPOINT} can be reached, and try again"
    return SourceError(message, file=file, remedy=remedy)
