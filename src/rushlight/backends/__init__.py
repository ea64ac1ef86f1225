"""The devices that a model can run on: one file each, behind `protocol.Backend`."""

from rushlight.backends.dtypes import DTYPES
from rushlight.backends.registry import DEVICES, DeviceStatus, devices, open_backend

__all__ = ["DEVICES", "DTYPES", "DeviceStatus", "devices", "open_backend"]
