import json

from rushlight.backends import devices


def test_every_device_has_a_row(rushlight):
    done = rushlight("devices")
    assert (done.code, done.err) == (0, "")
    head, *lines = done.out.splitlines()
    assert head.split("  ")[0] == "device"
    for line, device in zip(lines, devices(), strict=True):
        assert line.startswith(device.name)
        assert device.detail in line
        assert (device.install or "") in line
        assert line.split()[1] == ("yes" if device.available else "no")


def test_json(rushlight):
    done = rushlight("devices", "--json")
    assert json.loads(done.out) == [device._asdict() for device in devices()]
    cpu = json.loads(done.out)[0]
    assert (cpu["name"], cpu["available"]) == ("cpu", True)
    assert cpu.keys() == {"name", "available", "detail", "install"}
