"""What the tests of checkpoints share."""

from hub_server import hub

__all__ = ["hub"]
