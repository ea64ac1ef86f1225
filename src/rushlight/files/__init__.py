"""Bounded, strict reads and atomic writes of files; depends on nothing but the errors."""
