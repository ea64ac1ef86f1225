"""The name of the processor."""

import platform

from rushlight.host.cpu import cpu_name


def test_linux_has_the_name_and_the_vector_extensions(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    assert cpu_name(cpuinfo) == "Example 9000, AVX2, AVX-512, VNNI"


def test_the_name_is_the_architecture_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert cpu_name(tmp_path / "missing") == "arm"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_name(tmp_path / "cpuinfo") == platform.machine()
