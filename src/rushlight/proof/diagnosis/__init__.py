"""Diagnosis: which cause explains that a module diverges from its recording."""
