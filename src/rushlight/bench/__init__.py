"""How fast a model runs on this machine, and what it needs: rates, bandwidth, memory, time to first token."""

from rushlight.bench.machine import machine
from rushlight.bench.measure import Measurement, Plan, dtypes_of, measure
from rushlight.bench.sample import Sample

__all__ = ["Measurement", "Plan", "Sample", "dtypes_of", "machine", "measure"]
