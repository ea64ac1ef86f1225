"""Checks whether a checkpoint fits a model, and reports every reason why not, with a suggested fix."""

from rushlight.porting.check.checkpoint import check
from rushlight.porting.check.report import CheckReport, Evidence, Finding

__all__ = ["CheckReport", "Evidence", "Finding", "check"]
