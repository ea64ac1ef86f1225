"""Models with long contexts start in the memory that they use, not in what they could use."""

import json
import os
import subprocess
import sys

import pytest
from architecture_fixtures import Fixture

CODE = """
import sys
import rushlight

model = rushlight.load(sys.argv[1], dtype="f32", device=sys.argv[2])
assert len(model.generate([3, 4, 5], max_tokens=3, ignore_eos=True).ids) == 3
assert model.engine_stats().n_blocks_free > 64
with open("/proc/self/status") as file:
    kilobytes = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print(model.context_length, kilobytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "device"), [("llama", "cpu"), ("llama", "reference"), ("gemma3_text", "cpu")])
def test_a_model_of_131072_positions_starts_in_the_memory_of_one_of_600(tmp_path, name, device):
    peaks = {}
    for positions in (600, 131_072):
        folder = Fixture(name).write(tmp_path / str(positions))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}), "utf-8")
        threads = {"RUSHLIGHT_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CODE, str(folder), device]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | threads
        )
        assert (done.returncode, done.stderr) == (0, "")
        length, kilobytes = map(int, done.stdout.split())
        assert length == positions
        peaks[positions] = kilobytes
    # A table of all positions would take 4 MB in the smallest of these models, the keys and values 100 MB or more.
    assert peaks[131_072] < peaks[600] + 3_500
