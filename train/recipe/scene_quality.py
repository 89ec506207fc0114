"""How good an undistorted scene looks: what the quality words should say about different pictures.

Faults alone rank the states of one picture. Between pictures of different scenes people also prefer the one
with more and finer detail, with light enough but no burnt-out parts, and with colour; without that, a quality
axis learned from faults is blind to how sharp a picture of its own is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from grmp_edge.train.pictures.distort import Image

__all__ = ["Statistics", "appeal", "statistics"]

# Weights of the scene statistics in logits, set by hand: docs/experiments.md, 16, 23, 25 and 32. Detail and
# sharpness first, as a soft lens, wrong focus and heavy coding take these away.
_DETAIL, _SHARPNESS, _COLOUR = 1.8, 0.9, 0.6
# Too little light costs most; above the middle more of it still helps, until parts of the picture burn out.
# With less, a picture darkened a little would look better for the contrast and colour that its lights gain.
_DARK, _LIGHT, _BRIGHT_ENOUGH, _BLOWN = 1.8, 2.0, 2.0, 1.2


@dataclass(frozen=True)
class Statistics:
    """Scene statistics, each about -1 (little) to 1 (much) over ordinary photographs, -2 to 2 at the ends."""

    brightness: float
    contrast: float
    colour: float
    detail: float
    sharpness: float = 0.0  # of what detail there is, how much is of the finest kind
    blown: float = 0.0  # how much of the picture is burnt out


def statistics(image: Image) -> Statistics:
    """Measure an (H, W, 3) uint8 RGB picture; the constants centre and scale ordinary photographs."""
    values = image.astype(np.float32)
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)
    red_green = values[..., 0] - values[..., 1]
    yellow_blue = (values[..., 0] + values[..., 1]) / 2 - values[..., 2]
    # colourfulness of Hasler and Suesstrunk 2003
    colour = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(
        red_green.mean(), yellow_blue.mean()
    )
    half = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # The usual measure of focus; taken of the halved picture too, what of it is content falls out.
    detail, coarse = (np.log(cv2.Laplacian(at, cv2.CV_32F).var() + 1) for at in (grey, half))
    raw = (
        (grey.mean() - 118) / 50,
        (grey.std() - 58) / 22,
        (colour - 38) / 22,
        (detail - 6.55) / 1.5,
        (detail - coarse) / 0.45,
        (np.sqrt((grey > 245).mean()) - 0.1) / 0.15,
    )
    return Statistics(*(float(np.clip(value, -2, 2)) for value in raw))


def appeal(shown: Statistics) -> float:
    """Weigh a scene, in logits, about -3 (dull) to 3 (brilliant), 0 being ordinary."""
    light = _DARK * min(shown.brightness, 0.0) + _LIGHT * min(max(shown.brightness, 0.0), _BRIGHT_ENOUGH)
    return (
        _DETAIL * shown.detail
        + _SHARPNESS * shown.sharpness
        + _COLOUR * shown.colour
        + light
        - _BLOWN * shown.blown
    )
