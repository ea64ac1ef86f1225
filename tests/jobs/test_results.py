"""Results files after interrupted jobs."""

import json

import pytest

from rushlight.errors import JobError
from rushlight.jobs import ResultLine, ResultsFile

JOB = {"weights": "0123456789abcdef", "dtype": "f32"}


def record(index, **members):
    return {"index": index, "text": "é\n\u2028", "request": f"{index + 1:016x}", "job": JOB, **members}


def result(index, **members):
    return ResultLine.of(record(index, **members))


def written(path, *indices):
    with ResultsFile(path) as results:
        for index in indices:
            results.append(result(index))
    return path.read_bytes()


def test_results_are_read_again(tmp_path):
    path = tmp_path / "out.jsonl"
    data = written(path, 0, 2, 5)
    assert [json.loads(line) for line in data.decode().split("\n")[:-1]] == [record(i) for i in (0, 2, 5)]
    with ResultsFile(path) as results:
        assert [results.digest(i) for i in (0, 1, 2, 5, 6)] == [f"{1:016x}", None, f"{3:016x}", f"{6:016x}", None]
        assert (len(results), results.last_index, results.in_order, results.n_failed) == (3, 5, True, 0)
        results.append(result(1, error={"type": "x", "message": "y"}))
        assert (len(results), results.last_index, results.in_order, results.n_failed) == (4, 5, False, 1)
    with ResultsFile(path) as results:
        assert (len(results), results.in_order, results.n_failed) == (4, False, 1)


def test_a_truncated_line_is_removed(tmp_path):
    path = tmp_path / "out.jsonl"
    data = written(path, 0, 1)
    end = data.index(b"\n") + 1
    for cut in range(end, len(data)):
        path.write_bytes(data[:cut])
        with ResultsFile(path) as results:
            assert (len(results), results.digest(1)) == (1, None)
            assert path.read_bytes() == data[:cut]
            results.append(result(1))
        assert path.read_bytes() == data


def test_a_truncated_line_is_removed_by_a_job_without_results(tmp_path):
    path = tmp_path / "out.jsonl"
    data = written(path, 0)
    path.write_bytes(data + b'{"index": 1, "te')
    with pytest.raises(RuntimeError), ResultsFile(path):
        raise RuntimeError
    assert path.read_bytes() == data + b'{"index": 1, "te'
    with ResultsFile(path):
        pass
    assert path.read_bytes() == data


def test_results_of_two_jobs_are_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(written(path, 0) + result(1, job=JOB | {"dtype": "f16"}).raw)
    with pytest.raises(JobError, match=r"out.jsonl: line 2 belongs to another job than the lines before it; .*--force"):
        ResultsFile(path)


def test_a_truncated_first_line(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"ind')
    assert written(path, 0).startswith(b'{"index": 0')


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b'{"prompt": "a"}\n',
        b'{"index": true, "request": "0000000000000001"}\n',
        b'{"index": -1, "request": "0000000000000001"}\n',
        b'{"index": 1, "request": "0000000000000001", "job": ["f32"]}\n',
        b'{"index": 1, "request": "0000000000000001", "job": {"dtype": 1}}\n',
        b'{"index": 1, "request": "0000000000000000"}\n',
        b'{"index": 1, "request": "0x00000000000001"}\n',
        b'{"index": 1, "request": 1}\n',
        b'{"index": 1, "request": "0000000000000001"}\n' * 2,
        b'{"index": 1, "request": "0000000000000001"}\n\0\0\0\0',
        b'{"index": 1, "requ\n{"index": 1, "request": "0000000000000001"}\n',
    ],
)
def test_another_file_is_refused_and_not_changed(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(JobError, match=r"out.jsonl: line \d is not a result of rushlight batch. .*--force"):
        ResultsFile(path)
    assert path.read_bytes() == content
    with ResultsFile(path, force=True) as results:
        assert len(results) == 0
    assert path.read_bytes() == b""


def test_two_processes_cannot_write(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path) as results:
        results.append(result(0))
        with pytest.raises(JobError, match="another process is writing to it"):
            ResultsFile(path, force=True)
    assert len(path.read_bytes().splitlines()) == 1


def test_old_results_are_kept_until_the_first_new_one(tmp_path):
    path = tmp_path / "out.jsonl"
    before = written(path, 0, 1, 2)
    with pytest.raises(RuntimeError), ResultsFile(path, force=True):
        raise RuntimeError
    assert path.read_bytes() == before
    with ResultsFile(path, force=True) as results:
        assert (len(results), results.digest(1)) == (0, None)
        results.append(result(7))
        results.append(result(8))
    assert [json.loads(line)["index"] for line in path.read_bytes().splitlines()] == [7, 8]
    with ResultsFile(path, force=True):
        pass
    assert path.read_bytes() == b""


def test_a_failed_job_without_results_does_not_leave_a_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError), ResultsFile(path):
        raise RuntimeError
    assert not path.exists()
    path.touch()
    with pytest.raises(RuntimeError), ResultsFile(path):
        raise RuntimeError
    assert path.exists()
