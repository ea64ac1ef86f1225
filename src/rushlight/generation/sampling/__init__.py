"""Sampling: parameters, random numbers, and the sampling of every sequence's next token in a step."""
