"""Porting a model: check whether a checkpoint fits a model file, and scaffold a new model file from a checkpoint."""
