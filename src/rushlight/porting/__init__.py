"""Port: does a checkpoint fit a port, and why not; and a port to begin with, written from a checkpoint's header."""

from rushlight.porting.doctor import check
from rushlight.porting.report import Evidence, Finding, Report

__all__ = ["Evidence", "Finding", "Report", "check"]
