"""Fixtures shared by the tests of checkpoints."""

from hub_server import hub

__all__ = ["hub"]
