"""The guard in conftest.py: tests cannot connect to other machines."""

import socket

import pytest


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_another_address_is_refused(address):
    with pytest.raises(RuntimeError, match="tests run offline"):
        socket.create_connection((address, 80), timeout=0.1)


def test_another_host_name_is_not_looked_up():
    with pytest.raises(RuntimeError, match="tests run offline"):
        socket.getaddrinfo("example.org", 80)


def test_localhost_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
