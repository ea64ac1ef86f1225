"""Sampling: parameters, random numbers, and the next token of every sequence in a step."""
