"""Scaffolds a port: writes a model file to start from, and its test, from the headers of a checkpoint."""
