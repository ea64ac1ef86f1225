"""Loaded models: generation, streams, scores, traces and the logit lens."""
