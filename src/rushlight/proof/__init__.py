"""Prove: a port shown equal to PyTorch, module by module: recorded once where PyTorch is, verified anywhere."""

from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import ModuleResult, VerifyReport
from rushlight.proof.verify import verify

__all__ = ["Golden", "ModuleResult", "VerifyReport", "read_golden", "verify"]
