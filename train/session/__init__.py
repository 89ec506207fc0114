"""What any training run needs: checkpoint, resume, processes, precision, progress, curves."""
