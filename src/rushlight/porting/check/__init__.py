"""Check: whether a checkpoint fits a model, and if not, why and how to fix it."""

from rushlight.porting.check.checkpoint import check
from rushlight.porting.check.report import Evidence, Finding, Report

__all__ = ["Evidence", "Finding", "Report", "check"]
