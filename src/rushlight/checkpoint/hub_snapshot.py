"""Resolves a revision of a model on the hub to its commit and files, from the hub or else from the cache.

The hub is queried once, with a deadline. huggingface_hub by itself requests the list of files up to six times, with
pauses of 23 seconds in all, and waits for the commit without a deadline.
"""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    HfApi,
    ResolvedRevision,
    get_cached_repo_tree,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import tqdm

from rushlight.checkpoint.hub_resume import resume_download
from rushlight.errors import CheckpointError, printable_name

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Snapshot", "find_snapshot"]

_LIBRARY = "rushlight"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_COMMIT = re.compile(r"[0-9A-Za-z_-]+")
"""A safe name for a commit: it names a folder of the cache, so a path in it would lead out of the cache."""
_CLOCK_SLACK_S = 2.0
"""How much older than its download a new file may look, because file systems round times."""

_log = logging.getLogger("rushlight")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit of a model.

    Attributes:
        repo_id: "owner/name".
        commit: the commit.
        names: all of its files if `is_listed`; otherwise those in the cache.
        is_listed: whether `names` is the hub's list.
        offline: whether files come from the cache only.
        failure: why the hub did not answer; None if it did, or was not queried.
        started: the time in seconds since when files in the cache are new.
    """

    repo_id: str
    commit: ResolvedRevision
    names: frozenset[str]
    is_listed: bool
    offline: bool
    failure: Exception | None
    started: float

    def file(self, name: str) -> Path:
        """Downloads a file if it is not in the cache, and returns its path there.

        Raises:
            CheckpointError: the file was damaged, and has been removed from the cache.
            Exception: an error of huggingface_hub; LocalEntryNotFoundError from `failure` if `offline`.
        """
        if not self.offline and name.endswith(".safetensors") and self.cached(name) is None:
            resume_download(self.repo_id, name, commit=self.commit.resolved, library_name=_LIBRARY)
        try:
            path = Path(
                hf_hub_download(
                    self.repo_id,
                    name,
                    revision=self.commit,
                    local_files_only=self.offline,
                    library_name=_LIBRARY,
                )
            )
        except LocalEntryNotFoundError as error:
            if self.failure is None:
                raise
            raise error from self.failure
        if path.is_symlink() and path.stat().st_mtime >= self.started:
            _verify(path, self.repo_id)
        return path

    def cached(self, name: str) -> Path | None:
        """The path of a file in the cache; None if it is not there."""
        path = try_to_load_from_cache(self.repo_id, name, revision=self.commit.resolved)
        return Path(path) if isinstance(path, str) else None

    def url(self, name: str) -> str:
        """The URL of a file on the hub."""
        return hf_hub_url(self.repo_id, name, revision=self.commit.resolved)


def find_snapshot(repo_id: str, revision: str | None, *, wait_s: float) -> Snapshot:
    """The snapshot of a revision; if the hub cannot be reached, the one in the cache.

    Args:
        repo_id: "owner/name".
        revision: a branch, a tag or a commit; None is the main branch.
        wait_s: the longest wait for the hub; 0 does not use the network.

    Raises:
        Exception: an error of huggingface_hub, if neither the hub nor the cache has the revision.
    """
    started = time.time() - _CLOCK_SLACK_S
    hub = _Hub(wait_s)
    commit = hub.commit(repo_id, revision)
    names = _listed(repo_id, commit)
    if names is None and hub.answers(repo_id, commit):
        # Downloads one small file, and stores the list of all files in the cache.
        only = ["config.json"]
        snapshot_download(repo_id, revision=commit, allow_patterns=only, library_name=_LIBRARY, tqdm_class=_NoBar)
        names = _listed(repo_id, commit)
    return Snapshot(
        repo_id,
        commit,
        names=_in_cache(repo_id, commit) if names is None else names,
        is_listed=names is not None,
        offline=wait_s == 0 or hub.failure is not None,
        failure=hub.failure,
        started=started,
    )


class _NoBar(tqdm):
    """A progress bar that does not appear."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]


class _Hub(HfApi):
    """A client of the hub that waits at most `wait_s` seconds, and keeps the outcome.

    Attributes:
        failure: why the hub did not answer.
        has_answered: whether it did.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(library_name=_LIBRARY)
        self.wait_s = wait_s
        self.failure: Exception | None = None
        self.has_answered = False

    def commit(self, repo_id: str, revision: str | None) -> ResolvedRevision:
        """The commit of a revision; the latest in the cache if the hub does not return a valid one."""
        try:
            return self.resolve_revision(repo_id, revision=revision, local_files_only=self.wait_s == 0)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:
            try:
                commit = self.resolve_revision(repo_id, revision=revision, local_files_only=True)
            except RevisionResolutionError:
                raise error from error.__cause__
            first_line = printable_name(str(error).strip().partition("\n")[0])
            _log.warning("%s: no valid response from the hub, using the cache: %s", repo_id, first_line)
            return commit

    def answers(self, repo_id: str, commit: ResolvedRevision) -> bool:
        """Whether the hub answers. For a revision that is a commit, `commit` has not queried it yet."""
        if self.wait_s > 0 and not self.has_answered and self.failure is None:
            with suppress(Exception):
                self.repo_info(repo_id, revision=commit.resolved)
        return self.has_answered

    def repo_info(self, *args: Any, **options: Any) -> Any:
        """As in HfApi, whose `resolve_revision` calls it, but with a deadline."""
        try:
            answer = self._within_wait(super().repo_info, *args, **options)
            if answer.sha is not None and not (isinstance(answer.sha, str) and _COMMIT.fullmatch(answer.sha)):
                raise ValueError(f"not a commit: {answer.sha!r}")
        except Exception as error:
            self.failure = error
            raise
        self.has_answered = True
        return answer

    def _within_wait(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of a call. A socket timeout would restart for each address of a host, and not cover DNS.

        Raises:
            TimeoutError: the call takes longer than `wait_s`; it continues in its thread.
        """
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call(*args, **options))
            except Exception as error:
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        try:
            return future.result(self.wait_s)
        except TimeoutError:
            if future.done():  # raised by the call itself
                raise
            raise TimeoutError(f"{self.endpoint} did not answer within {self.wait_s:g} s") from None


def _listed(repo_id: str, commit: ResolvedRevision) -> frozenset[str] | None:
    """The names of all files of a commit, from the list in the cache; None if there is none."""
    try:
        return frozenset(file.path for file in get_cached_repo_tree(repo_id, revision=commit))
    except CachedRepoTreeNotFoundError:
        return None


def _in_cache(repo_id: str, commit: ResolvedRevision) -> frozenset[str]:
    """The names of the files of a commit that are in the cache."""
    try:
        folder = Path(snapshot_download(repo_id, revision=commit, local_files_only=True))
    except LocalEntryNotFoundError:
        return frozenset()
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _verify(link: Path, repo_id: str) -> None:
    """Checks a file against its hash, which is the name of the blob that the cache links to."""
    import hashlib  # imports OpenSSL

    blob = link.parent / link.readlink()
    if _SHA256.fullmatch(blob.name):
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    elif _GIT_SHA1.fullmatch(blob.name):  # a small file
        content = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:  # a mirror with other names
        return
    if found != blob.name:
        link.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise CheckpointError(
            f"a downloaded file of {repo_id} was damaged, and has been removed",
            file=link,
            expected=f"hash {blob.name}",
            found=found,
            remedy="load it again; if the error stays, a proxy or mirror on the way to the hub changes files",
        )
