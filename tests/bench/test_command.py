"""`rushlight bench`."""

import json

import pytest

from rushlight.bench import dtypes_of
from rushlight.cli import main
from rushlight.errors import DeviceError

QUICK = ["bench", "--tokens", "1", "--repeats", "2", "--prompt-tokens", "4", "--batch", "1,2"]


@pytest.fixture
def rushlight(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The parsed `--json` output for the embedded model."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        main([*QUICK, "--dtype", "f32", "--json"])
    assert not end.value.code
    return json.loads(out.getvalue())


def test_json_describes_the_machine_and_the_config(once):
    assert once.keys() == {"date", "cpu", "cores", "versions", "config", "measurements"}
    assert once["versions"].keys() == {"rushlight", "python", "numpy"}
    assert once["config"]["batch_sizes"] == [1, 2]
    (measured,) = once["measurements"]
    assert (measured["model"], measured["device"], measured["dtype"]) == ("tales", "cpu", "f32")
    assert (measured["n_parameters"], measured["prefill_tokens"]) == (3_554_304, 4)


def test_json_has_every_repeat(once):
    (measured,) = once["measurements"]
    assert [decode["batch_size"] for decode in measured["decode"]] == [1, 2]
    samples = [measured["prefill_tok_s"], measured["first_token_s"]]
    samples += [decode[what] for decode in measured["decode"] for what in ("tok_s", "read_gb_s")]
    for sample in samples:
        assert len(sample["values"]) == 2
        assert 0 < sample["min"] <= sample["median"] <= sample["max"]
    assert len(measured["bandwidth_gb_s"]["values"]) == 4  # one per decode


def test_rates_and_bandwidth_use_the_same_times(once):
    (measured,) = once["measurements"]
    for decode in measured["decode"]:
        for tok_s, gb_s in zip(decode["tok_s"]["values"], decode["read_gb_s"]["values"], strict=True):
            assert gb_s == pytest.approx(tok_s / decode["batch_size"] * measured["step_bytes"] / 1e9)


def test_bandwidth_shares_are_at_most_one(once):
    (measured,) = once["measurements"]
    for decode in measured["decode"]:
        assert decode["bandwidth_share"] is None or 0 < decode["bandwidth_share"] <= 1
    assert all(isinstance(reason, str) for reason in measured["disturbed"])


def test_peak_memory_includes_the_weights(once):
    (measured,) = once["measurements"]
    assert measured["step_bytes"] < measured["peak_bytes"] < 2**30


def test_the_table_is_plain_in_a_pipe(rushlight):
    code, out, err = rushlight(*QUICK, "--dtype", "f32")
    assert code == 0
    assert all(line.startswith("note: the f32 figures are unreliable: ") for line in err.splitlines())
    assert out.startswith("tales: 3,554,304 parameters, cpu")
    assert "\x1b" not in out
    lines = [line.split() for line in out.splitlines()]
    assert ["f32", "prefill,", "4", "tokens"] in [line[:4] for line in lines]
    assert ["decode,", "batch", "size", "2"] in [line[:4] for line in lines]
    assert "GB/s" in out
    assert "first token" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch", "1,x"], "is not a list of batch sizes"),
        (["--batch", "0"], "batch size 0"),
        (["--tokens", "0"], "tokens 0"),
        (["--repeats", "-1"], "repeats -1"),
        (["--prompt-tokens", "0"], "prompt_tokens 0"),
        (["--prompt-tokens", "513"], "found 512"),
        (["--tokens", "500"], "found 512"),
        (["--dtype", "f13"], "unknown dtype"),
        (["--device", "abacus"], "unknown device"),
        (["--dtype", "all", "--device", "abacus"], "unknown device"),
        (["no/such/file.safetensors"], "no/such/file.safetensors"),
    ],
)
def test_invalid_arguments_are_refused(rushlight, flags, words):
    code, out, err = rushlight("bench", *flags)
    assert (code, out) == (2, "")
    assert words in err


def test_dtypes_of_a_device_leave_out_f64():
    found = dtypes_of("cpu")
    assert "f32" in found
    assert not {"auto", "f64"} & set(found)
    with pytest.raises(DeviceError):
        dtypes_of("abacus")
