"""Settings of all tests: the same examples in every run, and no network beyond this machine."""

import ipaddress
import os
import signal
import sys

# Set before NumPy is imported, here and in the processes that tests start: on matrices as small as these, the threads
# of BLAS only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["NO_PROXY"] = "*"  # the servers that tests start are on this machine

# A shell without job control starts `pytest &` with SIGINT ignored. The processes that tests interrupt would inherit
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")  # `pytest --hypothesis-profile=default` searches at random


def refuse_the_network(event: str, args: tuple) -> None:
    """An audit hook: a test that connects to another machine fails, even if there is a network."""
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in {None, "", "localhost"}:
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise RuntimeError(f"a test tried to reach {host}: tests run offline")


sys.addaudithook(refuse_the_network)
