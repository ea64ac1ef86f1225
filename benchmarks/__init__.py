"""Benchmarks of rushlight and other runtimes on the same machine; see README.md."""
