"""Models on the Hugging Face Hub, through huggingface_hub: its cache, its progress bar, its environment variables.

Only what rushlight reads is downloaded: safetensors and the small files beside them, at the root of the repository.
Each new file is held against the hash that the hub names for it; huggingface_hub itself compares the size alone.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rushlight.checkpoint.listing import first_ten
from rushlight.checkpoint.sniff import PICKLE_SUFFIXES
from rushlight.errors import CheckpointError, SourceError, printable_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from huggingface_hub import ResolvedRevision

__all__ = ["RemoteWeights", "authorization", "download", "locate"]

_SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")
_INDEX = "model.safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_CLOCK_SLACK_S = 2.0
"""How much older than the start of a download a file that it wrote may look: file systems round."""
_SIGN_IN = "set HF_TOKEN to a token that may read it, or run `hf auth login`"
_REMEDIES = {
    401: _SIGN_IN,
    403: _SIGN_IN,
    404: "check the spelling, and HF_ENDPOINT if it is set",
    429: f"too many requests came from here: wait some minutes, or {_SIGN_IN}",
}


def download(repo_id: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of the cache that holds a model, after what is missing in it was downloaded.

    With `offline`, or HF_HUB_OFFLINE=1 in the environment, nothing is asked of the network.

    Raises:
        SourceError: the model is not there, not public, has no safetensors, or cannot be had now; with the next step.
        CheckpointError: a file arrived damaged; it is removed from the cache again.
    """
    started = time.time() - _CLOCK_SLACK_S
    try:
        folder = _fetch(repo_id, revision, offline)
    except SourceError:
        raise
    except Exception as error:
        # Not a list of types: which ones come depends on the transport below huggingface_hub, and that changes.
        raise _explain(error, repo_id, revision) from error
    for file in folder.rglob("*"):
        if file.is_symlink() and file.exists() and file.stat().st_mtime >= started:
            _verify(file, repo_id)
    return folder


class RemoteWeights(NamedTuple):
    """Weights on the hub: the address of the file or of the index, and the folder of the cache with config.json."""

    url: str
    folder: Path | None


def locate(repo_id: str, *, revision: str | None = None, offline: bool = False) -> Path | RemoteWeights:
    """The folder of the cache that holds a model, if its weights are there, and else where on the hub they are.

    Of the files beside the weights only config.json is downloaded; with `offline`, nothing.

    Raises:
        SourceError: as `download`.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode

    try:
        if offline or is_offline_mode():
            return _fetch(repo_id, revision, offline=True)
        listing = _listing(repo_id, revision, offline=False)
        if isinstance(listing, Path):
            return listing
        commit, names = listing
        weights = _weights(repo_id, names)
        cached = [try_to_load_from_cache(repo_id, name, revision=commit) for name in weights]
        if isinstance(cached[0], str) and all(isinstance(path, str) for path in cached):
            return Path(cached[0]).parent
        folder = None
        if "config.json" in names:
            folder = Path(hf_hub_download(repo_id, "config.json", revision=commit, library_name="rushlight")).parent
        return RemoteWeights(hf_hub_url(repo_id, weights[0], revision=commit.resolved), folder)
    except SourceError:
        raise
    except Exception as error:
        raise _explain(error, repo_id, revision) from error


def authorization(url: str) -> str | None:
    """The user's token, as a header's value, if `url` is on the hub itself; None for every other host."""
    from urllib.parse import urlsplit

    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    asked, endpoint = urlsplit(url), urlsplit(ENDPOINT)
    if (asked.scheme, asked.netloc) != (endpoint.scheme, endpoint.netloc):
        return None
    token = get_token()
    return f"Bearer {token}" if token else None


def _fetch(repo_id: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import is_offline_mode

    offline = offline or is_offline_mode()
    listing = _listing(repo_id, revision, offline)
    if isinstance(listing, Path):
        return listing
    commit, names = listing
    wanted = [*filter(_SIDECARS.__contains__, names), *_weights(repo_id, names)]
    wanted += filter(_TEMPLATE.fullmatch, names)  # the root's files first: the folder is that of the first
    # One by one and in this thread, where Ctrl-C arrives: snapshot_download would first end its downloads.
    paths = [
        hf_hub_download(repo_id, name, revision=commit, local_files_only=offline, library_name="rushlight")
        for name in wanted
    ]
    return Path(paths[0]).parent


def _listing(repo_id: str, revision: str | None, offline: bool) -> tuple[ResolvedRevision, list[str]] | Path:
    """The commit of a revision and the names of its files; or the folder of the cache, if that is all there is."""
    from huggingface_hub import resolve_revision, snapshot_download

    commit = resolve_revision(repo_id, revision=revision, local_files_only=offline)
    if (names := _cached_listing(repo_id, commit)) is None:
        # For one small file, and for the list of all files that this leaves in the cache.
        folder = snapshot_download(
            repo_id,
            revision=commit,
            local_files_only=offline,
            allow_patterns=["config.json"],
            library_name="rushlight",
        )
        if (names := _cached_listing(repo_id, commit)) is None:  # no network, and another program filled the cache
            return Path(folder)
    return commit, names


def _cached_listing(repo_id: str, commit: str) -> list[str] | None:
    """The names of all files of a commit, as the cache keeps them; None if it has no such list."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(repo_id, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return None


def _weights(repo_id: str, names: Sequence[str]) -> list[str]:
    """Those files of a repository that its weights are in."""
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if "model.safetensors" in weights:
        return ["model.safetensors"]
    if _INDEX in names:
        return [_INDEX, *filter(_SHARD.fullmatch, weights)]
    if len(weights) == 1:
        return weights
    if weights:
        raise SourceError(
            f"{repo_id} has several .safetensors files, no model.safetensors and no index",
            found=", ".join(first_ten(weights)),
            remedy=f"run `hf download {repo_id} FILE` for one of them and name the path that it prints",
        )
    if pickles := sorted(name for name in names if name.endswith(PICKLE_SUFFIXES)):
        program = "from transformers import AutoModelForCausalLM as M; "
        program += f"M.from_pretrained('{repo_id}').save_pretrained('{repo_id.rpartition('/')[2]}')"
        raise SourceError(
            f"{repo_id} has no safetensors, only pickles, which are never unpickled here",
            found=", ".join(first_ten(pickles)),
            remedy=f'convert it where PyTorch and transformers are: python -c "{program}"',
        )
    raise SourceError(
        f"{repo_id} has no .safetensors file", found=", ".join(first_ten(sorted(names))) or "an empty repository"
    )


def _verify(link: Path, repo_id: str) -> None:
    """Hold a file against its hash: the name of the blob that the cache links to."""
    import hashlib  # OpenSSL comes with it

    blob = link.parent / link.readlink()
    if _SHA256.fullmatch(blob.name):
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    elif _GIT_SHA1.fullmatch(blob.name):  # of the small files
        content = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:  # a mirror with names of its own
        return
    if found != blob.name:
        link.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"the download of {repo_id} is damaged, and was removed",
            file=link,
            expected=f"hash {blob.name}",
            found=found,
            remedy="load it again; if it stays so, something between here and the hub changes files",
        )


def _explain(error: Exception, repo_id: str, revision: str | None) -> SourceError:
    """What an exception of huggingface_hub means to a user, and the next step."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT

    page = f"{ENDPOINT}/{repo_id}"
    file = None
    # When the cache could not help either, the first failure is the cause; without one, the network was not asked.
    cache_failed = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError)
    reason = error.__cause__ if cache_failed else error
    match reason:
        case None:
            message = f"{repo_id} is not in the cache, or not whole, and the network is not to be asked"
            remedy = "load it once without --offline and without HF_HUB_OFFLINE"
        case errors.HFValidationError():
            message = f"{repo_id} is neither a path that exists nor the name of a model on the hub"
            remedy = "check the spelling"
        case errors.GatedRepoError():
            message = f"{repo_id} is gated"
            remedy = f"ask for access at {page}, then {_SIGN_IN}"
        case errors.RepositoryNotFoundError():
            message = f"the hub shows no model {repo_id}"
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
            message = f"{repo_id} cannot be downloaded: {printable_name(first_line)}"
            remedy = f"check that {ENDPOINT} can be reached, and try again"
    return SourceError(message, file=file, remedy=remedy)
