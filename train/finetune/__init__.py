"""Fine-tuning on few labels under quality-aware gradient regularisation (QGR)."""
