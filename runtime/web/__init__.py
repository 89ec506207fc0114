"""HTTP: scoring, the live page, metrics."""
