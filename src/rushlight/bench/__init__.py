"""Benchmarks a model on this machine: prefill, decode, bandwidth, memory and time to first token."""

from rushlight.bench.machine import machine
from rushlight.bench.measure import BenchConfig, Measurement, dtypes_of, measure
from rushlight.bench.repeats import Repeats

__all__ = ["BenchConfig", "Measurement", "Repeats", "dtypes_of", "machine", "measure"]
