"""The version of rushlight, which converted files record."""

__all__ = ["__version__"]

__version__ = "0.1.0"
