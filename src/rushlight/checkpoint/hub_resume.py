"""Downloads a large file into the hub's cache so that an interrupted download continues in another process.

huggingface_hub downloads to a file with a random name, and deletes it when it fails. Here the name is the one that its
versions before 2 used, `blobs/HASH.incomplete`, and the file stays. Xet, which huggingface_hub prefers, cannot continue
in the middle of a file, so that files come over HTTP as long as the hub serves them this way.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

__all__ = ["partial_bytes", "resume_download"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def resume_download(repo_id: str, name: str, *, commit: str, library_name: str) -> None:
    """Downloads a file to the blobs of a model, where `hf_hub_download` finds it, from where it was interrupted.

    Leaves the file to `hf_hub_download` if it is there, is not named by its SHA-256, or is too large for HTTP. The
    caller verifies the hash: the beginning may be from another program, or damaged by a crash.

    Raises:
        Exception: an error of huggingface_hub. The file so far stays in the cache.
    """
    dry = hf_hub_download(repo_id, name, revision=commit, library_name=library_name, dry_run=True)
    if not dry.will_download:
        return
    url = hf_hub_url(repo_id, name, revision=commit)
    found = get_hf_file_metadata(url, library_name=library_name)
    if not _SHA256.fullmatch(found.etag or "") or not 0 < (found.size or 0) <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        return
    cache, folder = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo_id, repo_type="model")
    blob = cache / folder / "blobs" / f"{found.etag}"
    lock = cache / ".locks" / folder / f"{found.etag}.lock"  # that of huggingface_hub
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another process was faster
            return
        partial = blob.with_name(f"{blob.name}.incomplete")
        try:
            with partial.open("ab") as file:
                if file.tell() > (found.size or 0):
                    file.truncate(0)
                    file.seek(0)
                http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    headers=build_hf_headers(library_name=library_name),
                    expected_size=found.size,
                    displayed_filename=name,
                )
        except BaseException:
            if partial.stat().st_size == 0:
                partial.unlink()
            raise
        os.utime(partial)  # it may have been complete: only new files are verified
        partial.replace(blob)


def partial_bytes(repo_id: str) -> int:
    """The bytes of half-downloaded files of a model from which a download continues."""
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    partial = (path for path in blobs.glob("*.incomplete") if _SHA256.fullmatch(path.stem))
    return sum(path.stat().st_size for path in partial)
