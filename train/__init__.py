"""Training: the CLIP model with its prompts, meta-learning (MPP) and regularised fine-tuning (QGR)."""
