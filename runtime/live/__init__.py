"""Live cameras: their states, scores and alerts."""
