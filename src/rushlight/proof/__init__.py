"""Prove: record what every module of a PyTorch model computes, and verify a port against it without PyTorch."""

from rushlight.proof.golden import Golden, read_golden
from rushlight.proof.report import ModuleResult, VerifyReport
from rushlight.proof.verify import verify

__all__ = ["Golden", "ModuleResult", "VerifyReport", "read_golden", "verify"]
