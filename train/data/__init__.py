"""Labelled pictures: from files and published sets to arrays."""
