"""Runs a program and prints its time to first output and peak memory as JSON.

    python -I -S launcher.py PROGRAM ARGUMENTS...

A separate small process, because on Linux the peak memory of a child is at least the memory of its parent at the fork:
a parent with a model loaded would hide the child's own use. It must not import rushlight.
"""

import json
import os
import sys
import time


def main(command: list[str]) -> None:
    """Runs the command and discards its output; it inherits stdin and stderr."""
    reader, writer = os.pipe()
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    has_output = bool(os.read(reader, 1))
    first_output_s = time.perf_counter() - start
    while os.read(reader, 65536):
        pass
    _, status, usage = os.wait4(pid, 0)
    record = {
        "first_output_s": first_output_s if has_output else None,
        "total_s": time.perf_counter() - start,
        "peak_bytes": usage.ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),  # getrusage(2): bytes there, KiB here
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
