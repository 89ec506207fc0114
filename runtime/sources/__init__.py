"""Finite inputs: from names to decoded pictures."""
