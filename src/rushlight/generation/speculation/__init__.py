"""Speculative decoding: draft tokens, verified by the model as extra rows of one step."""
