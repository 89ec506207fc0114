"""Frames collected for labelling, which of them to ask about, and what raters answered."""
