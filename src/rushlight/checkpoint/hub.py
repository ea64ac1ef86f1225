"""Downloads models from the Hugging Face Hub, with the cache, progress bar and environment of huggingface_hub.

Only the files that rushlight reads are downloaded: the small ones at the root of the repository, and the safetensors
there or in its index. Each new file is checked against the hash that the hub lists for it; huggingface_hub checks only
its size.
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

__all__ = ["SIDECARS", "RemoteWeights", "authorization", "download", "locate"]

SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    # Not read, but downloaded so that the error about the tokenizer can name its format.
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
"""The files next to the weights that a model is loaded with."""

WAIT_S = 30.0
"""The longest wait for the commit of a revision."""
WAIT_FOR_NEWER_S = 3.0
"""The same if the model is complete in the cache, where only a newer commit could be missed."""
_TEMPLATE = re.compile(r"additional_chat_templates/[^/]+\.jinja")


def download(repo_id: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """Downloads the missing files of a model, and returns its folder in the cache.

    With `offline`, or HF_HUB_OFFLINE=1 in the environment, the network is not used.

    Raises:
        SourceError: the model does not exist, is not public, has no safetensors, or cannot be downloaded now.
        CheckpointError: a downloaded file was damaged, and has been removed from the cache.
    """
    with translate_errors(repo_id, revision):
        return _fetch(_snapshot(repo_id, revision, offline))


class RemoteWeights(NamedTuple):
    """Weights on the hub: the URL of the file or index, and the folder in the cache with config.json."""

    url: str
    folder: Path | None


def locate(repo_id: str, *, revision: str | None = None, offline: bool = False) -> Path | RemoteWeights:
    """The folder of a model in the cache if its weights are there, otherwise their location on the hub.

    Downloads config.json, and no other file; with `offline`, nothing.

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
            return _fetch(snapshot)  # raises with what is missing
        folder = snapshot.file("config.json").parent if "config.json" in snapshot.names else None
        return RemoteWeights(snapshot.url(weights), folder)


def authorization(url: str) -> str | None:
    """The Authorization header with the user's token if `url` is on the hub; None for every other host."""
    from urllib.parse import urlsplit

    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT

    requested, endpoint = urlsplit(url), urlsplit(ENDPOINT)
    if (requested.scheme, requested.netloc) != (endpoint.scheme, endpoint.netloc):
        return None
    token = get_token()
    return f"Bearer {token}" if token else None


def _snapshot(repo_id: str, revision: str | None, offline: bool) -> Snapshot:
    """The snapshot of a revision. The wait for the hub is longer if the model is not complete in the cache."""
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
    """Downloads every file that rushlight reads, and returns the folder in the cache."""
    weights = _weights(snapshot)
    # One by one, in this thread, which receives Ctrl-C: snapshot_download would finish its downloads first.
    sidecars = [*filter(snapshot.names.__contains__, SIDECARS), *filter(_TEMPLATE.fullmatch, snapshot.names)]
    paths = [snapshot.file(name) for name in [*sidecars, weights]]
    folder = paths[-1].parent
    if weights == INDEX:
        shards = read_index(paths[-1]).names
        if snapshot.is_listed and (absent := [name for name in shards if name not in snapshot.names]):
            raise SourceError(
                f"{snapshot.repo_id} is incomplete: its index names files that it does not have",
                file=INDEX,
                found=", ".join(first_ten(absent)),
                remedy="use another revision, or ask the authors for the files",
            )
        for name in shards:
            snapshot.file(name)
    return folder


def _weights(snapshot: Snapshot) -> str:
    """The name of the file with a repository's weights, or of its index."""
    repo_id, names = snapshot.repo_id, snapshot.names
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    for name in ("model.safetensors", INDEX):
        if name in names:
            return name
    if len(weights) == 1:
        return weights[0]
    if not snapshot.is_listed:  # the names are unknown
        return "model.safetensors"
    if weights:
        raise SourceError(
            f"{repo_id} has several .safetensors files, but no model.safetensors and no index",
            found=", ".join(first_ten(weights)),
            remedy=f"run `hf download {repo_id} FILE` for one of them, and use the path that it prints",
        )
    if pickles := sorted(name for name in names if name.endswith(PICKLE_SUFFIXES)):
        program = "from transformers import AutoModelForCausalLM as M; "
        program += f"M.from_pretrained('{repo_id}').save_pretrained('{repo_id.rpartition('/')[2]}')"
        raise SourceError(
            f"{repo_id} has no safetensors, only pickles, which are never unpickled",
            found=", ".join(first_ten(pickles)),
            remedy=f'convert it where PyTorch and transformers are installed: python -c "{program}"',
        )
    raise SourceError(
        f"{repo_id} has no .safetensors file", found=", ".join(first_ten(sorted(names))) or "an empty repository"
    )
