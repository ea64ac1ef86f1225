"""Prove: a port shown equal to PyTorch, module by module: recorded once where PyTorch is, verified anywhere."""

from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import ModuleResult, Report
from rushlight.proof.verify import verify

__all__ = ["Golden", "ModuleResult", "Report", "read_golden", "verify"]
