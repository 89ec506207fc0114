"""Shared by all training runs: checkpoint, resume, ranks, precision, progress, curves."""
