"""Pictures made by rule: distortions and procedural scenes."""
