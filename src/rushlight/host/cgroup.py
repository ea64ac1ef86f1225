"""The control groups of this process, which limit what a container may use of its machine."""

from __future__ import annotations

from pathlib import Path


def cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders that may hold a controller's limits: those of this process's cgroups and their ancestors.

    Version 2 has one hierarchy, version 1 one for each controller (kernel documentation, admin-guide/cgroup-v2 and
    cgroup-v1).

    Args:
        root: where `proc` and `sys` are mounted.
        controller: cpu or memory.
    """
    folders = []
    for line in words(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts = ["sys/fs/cgroup"] if not controllers else []
        if controller in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
        for mount in mounts:
            folder = Path(path.lstrip("/"))
            folders += [root / mount / part for part in (folder, *folder.parents)]
    return folders


def words(file: Path) -> list[str]:
    """The words of a file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []
