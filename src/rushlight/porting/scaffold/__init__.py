"""Scaffold: a port to begin with, written from the header of a checkpoint."""
