"""How good an undistorted scene looks: what the quality words are to say of different pictures.

Faults alone rank the states of one picture. Between pictures of different scenes people also prefer the one
with more fine detail, with ordinary exposure and with colour; without that, a quality axis learned from
faults is blind to how sharp a picture of its own is.
"""

from __future__ import annotations

import math

from grmp_edge.train.captions import Statistics

__all__ = ["appeal", "perceived_quality"]

# Weights of the scene statistics in logits, set by hand: detail first, as it is what a soft lens, a wrong
# focus and heavy coding take away; exposure counts by its distance from the middle.
_DETAIL, _EXPOSURE, _COLOUR = 2.0, 0.8, 0.6
# What lies between no faults and the worst, in logits: more than between any but extreme scenes.
_FAULTS = 4.0
# Of an ordinary scene without faults: about .9, with room above it.
_CLEAN = 2.2


def appeal(scene: Statistics, shown: Statistics) -> float:
    """Weigh a scene, in logits, about -2 (dull) to 2 (brilliant), 0 being ordinary.

    Of each statistic the lower of the two counts, so that noise is no detail and gaudiness no colour: adding
    a fault never makes a picture more appealing.

    Args:
        scene: of the picture before its faults.
        shown: of the picture with them.
    """
    return (
        _DETAIL * min(scene.detail, shown.detail)
        - _EXPOSURE * max(abs(scene.brightness), abs(shown.brightness))
        + _COLOUR * min(scene.colour, shown.colour)
    )


def perceived_quality(kept: float, appealing: float) -> float:
    """Join what faults leave of the quality, 0..1, and a scene's appeal: (0, 1)."""
    return 1 / (1 + math.exp(-(_CLEAN - _FAULTS * (1 - kept) + appealing)))
