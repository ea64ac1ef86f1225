"""Check: whether a checkpoint fits a model, and if not, why and how to fix it."""

from rushlight.porting.check.checkpoint import check
from rushlight.porting.check.report import CheckReport, Evidence, Finding

__all__ = ["CheckReport", "Evidence", "Finding", "check"]
