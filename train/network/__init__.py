"""The model: CLIP's towers, the prompts, the embedded backbone. Nothing here trains."""
