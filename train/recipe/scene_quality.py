"""How good an undistorted scene looks: what the quality words should say about different pictures.

Faults alone rank the states of one picture. Between pictures of different scenes people also prefer the one
with more and finer detail, with light enough but no burnt-out parts, and with colour; without that, a quality
axis learned from faults is blind to how sharp a picture of its own is.
"""

from __future__ import annotations

import math

from grmp_edge.train.recipe.captions import Statistics

__all__ = ["FAULTS", "appeal", "perceived_quality"]

# Weights of the scene statistics in logits, set by hand: docs/experiments.md, 16, 23, 25 and 32. Detail and
# sharpness first, as a soft lens, wrong focus and heavy coding take these away.
_DETAIL, _SHARPNESS, _COLOUR = 1.8, 0.9, 0.6
# Too little light costs most; above the middle more of it still helps, until parts of the picture burn out.
# With less, a picture darkened a little would look better for the contrast and colour that its lights gain.
_DARK, _LIGHT, _BRIGHT_ENOUGH, _BLOWN = 1.8, 2.0, 2.0, 1.2
# The span from no faults to the worst, in logits: as much as from a poor scene to a good one. With
# more, faults outweigh the scene in real photographs, where they are less sure (docs/experiments.md, 26).
FAULTS = 2.5
# Of an ordinary scene without faults: about .8, with room above it.
_CLEAN = 1.4


def _light(brightness: float) -> float:
    return _DARK * min(brightness, 0.0) + _LIGHT * min(max(brightness, 0.0), _BRIGHT_ENOUGH)


def appeal(scene: Statistics, shown: Statistics) -> float:
    """Weigh a scene, in logits, about -3 (dull) to 3 (brilliant), 0 being ordinary.

    Of each statistic the worse of the two counts, so that noise is no detail and gaudiness no colour: adding
    a fault never makes a picture more appealing.

    Args:
        scene: of the picture before its faults.
        shown: of the picture with them.
    """
    return (
        _DETAIL * min(scene.detail, shown.detail)
        + _SHARPNESS * min(scene.sharpness, shown.sharpness)
        + _COLOUR * min(scene.colour, shown.colour)
        + min(_light(scene.brightness), _light(shown.brightness))
        - _BLOWN * max(scene.blown, shown.blown)
    )


def perceived_quality(remaining: float, appealing: float, faults: float = FAULTS) -> float:
    """Join what faults leave of the quality, 0..1, and a scene's appeal: (0, 1).

    ``faults`` is the weight of the worst ones, in logits.
    """
    return 1 / (1 + math.exp(-(_CLEAN - faults * (1 - remaining) + appealing)))
