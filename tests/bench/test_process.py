import subprocess
import sys

import pytest

from rushlight.bench.process import LAUNCHER, run_fresh


def test_first_output_end_memory_and_exit_code():
    code = "import sys; print(input(), flush=True); x = b'x' * 60_000_000; sys.exit(3)"
    run = run_fresh([sys.executable, "-c", code], "a")
    assert run.exit_code == 3
    assert 0 < run.first_output_s < run.total_s
    assert run.peak_bytes >= 60_000_000


def test_without_output_there_is_no_time_to_first_output():
    assert run_fresh([sys.executable, "-c", "pass"]).first_output_s is None


def test_stderr_is_captured():
    assert run_fresh([sys.executable, "-c", "import sys; sys.exit('why')"]).errors == "why\n"


def test_a_signal_is_a_negative_code():
    assert run_fresh([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).exit_code == -9


def test_the_memory_of_the_parent_is_not_counted():
    ballast = bytearray(b"x" * 100_000_000)
    run = run_fresh([sys.executable, "-I", "-S", "-c", "pass"])
    assert run.peak_bytes < len(ballast)


def test_a_missing_program_raises():
    with pytest.raises(OSError, match="no-such-program"):
        run_fresh(["no-such-program"])


def test_the_launcher_does_not_import_rushlight():
    code = f"import runpy, sys; runpy.run_path({str(LAUNCHER)!r}); print([m for m in sys.modules if 'rushlight' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
