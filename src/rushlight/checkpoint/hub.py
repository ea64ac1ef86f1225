"""Models on the Hugging Face Hub, through huggingface_hub: its cache, its progress bar, its environment variables.

Only what rushlight reads is downloaded: the small files at the root of the repository, and the safetensors there, or
those that the index there names. Each new file is held against the hash that the hub names for it; huggingface_hub
itself compares the size alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rushlight.checkpoint.hub_errors import translate_errors
from rushlight.checkpoint.shards import INDEX, read_index
from rushlight.errors import SourceError, first_ten
from rushlight.files.sniff import PICKLE_SUFFIXES

if TYPE_CHECKING:
    from pathlib import Path

    from rushlight.checkpoint.hub_snapshot import Snapshot

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
    "vocab.txt",
    # Not read, but without them a folder would look as if the model had no tokenizer of its own.
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)

WAIT_S = 30.0
"""How long the hub may take to say which commit a revision is."""
WAIT_FOR_NEWER_S = 3.0
"""The same where the model is whole in the cache, so that only something newer is missed."""
_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")


def download(repo_id: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of the cache that holds a model, after what is missing in it was downloaded.

    With `offline`, or HF_HUB_OFFLINE=1 in the environment, nothing is asked of the network.

    Raises:
        SourceError: the model is not there, not public, has no safetensors, or cannot be had now; with the next step.
        CheckpointError: a file arrived damaged; it is removed from the cache again.
    """
    with translate_errors(repo_id, revision):
        return _fetch(_snapshot(repo_id, revision, offline))


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
    with translate_errors(repo_id, revision):
        snapshot = _snapshot(repo_id, revision, offline)
        weights = _weights(snapshot)
        if weights == INDEX and (index := snapshot.cached(INDEX)):
            cached = [index, *map(snapshot.cached, read_index(index).names)]
        else:
            cached = [snapshot.cached(weights)]
        if cached[0] and all(cached):
            return cached[0].parent
        if snapshot.offline:
            return _fetch(snapshot)  # which says what is missing
        folder = snapshot.file("config.json").parent if "config.json" in snapshot.names else None
        return RemoteWeights(snapshot.url(weights), folder)


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


def _snapshot(repo_id: str, revision: str | None, offline: bool) -> Snapshot:
    """The files of a revision; the hub is waited for longer if the model is not whole in the cache."""
    from huggingface_hub.constants import is_offline_mode

    from rushlight.checkpoint.hub_snapshot import find_snapshot

    if offline or is_offline_mode():
        return find_snapshot(repo_id, revision, wait_s=0)
    try:
        _fetch(find_snapshot(repo_id, revision, wait_s=0))
    except Exception:
        return find_snapshot(repo_id, revision, wait_s=WAIT_S)
    return find_snapshot(repo_id, revision, wait_s=WAIT_FOR_NEWER_S)


def _fetch(snapshot: Snapshot) -> Path:
    """The folder of the cache, once it has everything that rushlight reads of a model."""
    weights = _weights(snapshot)
    # One by one and in this thread, where Ctrl-C arrives: snapshot_download would first end its downloads.
    sidecars = [*filter(snapshot.names.__contains__, _SIDECARS), *filter(_TEMPLATE.fullmatch, snapshot.names)]
    paths = [snapshot.file(name) for name in [*sidecars, weights]]
    folder = paths[-1].parent
    if weights == INDEX:
        shards = read_index(paths[-1]).names
        if snapshot.is_listed and (absent := [name for name in shards if name not in snapshot.names]):
            raise SourceError(
                f"{snapshot.repo_id} is not whole: its index names files that it does not have",
                file=INDEX,
                found=", ".join(first_ten(absent)),
                remedy="choose another revision, or ask its authors for them",
            )
        for name in shards:
            snapshot.file(name)
    return folder


def _weights(snapshot: Snapshot) -> str:
    """The file of a repository that its weights are in, or the index of those that they are in."""
    repo_id, names = snapshot.repo_id, snapshot.names
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    for name in ("model.safetensors", INDEX):
        if name in names:
            return name
    if len(weights) == 1:
        return weights[0]
    if not snapshot.is_listed:  # what they are called is not known
        return "model.safetensors"
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
            f"{repo_id} has no safetensors, only pickles, which are never unpickled",
            found=", ".join(first_ten(pickles)),
            remedy=f'convert it where PyTorch and transformers are: python -c "{program}"',
        )
    raise SourceError(
        f"{repo_id} has no .safetensors file", found=", ".join(first_ten(sorted(names))) or "an empty repository"
    )
