"""The few-shot protocol, its baselines and its tables."""
