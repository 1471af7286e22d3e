"""Every degradation there is. To add one: write its family file, add a line here."""

from collections.abc import Sequence
from typing import Any

from degradations.base import Degradation, Rendered, Scene, replay_with
from degradations.blur import DEFOCUS_BLUR, GAUSSIAN_BLUR, MOTION_BLUR
from degradations.compression import AVIF, JPEG, RECOMPRESS, WEBP
from degradations.flare import FLARE, FLARE_LIGHTS
from degradations.haze import HAZE
from degradations.low_light import LOW_LIGHT, LOW_LIGHT_CURVE
from degradations.moire import MOIRE
from degradations.noise import BANDING_NOISE, GRANULAR_NOISE, IMPULSE_NOISE, SENSOR_NOISE
from degradations.rain import RAIN
from degradations.reflection import DOUBLE_PANE_REFLECTION, REFLECTION
from degradations.temporal_blur import TEMPORAL_BLUR
from pairforge.image import Pixels
from pairforge.records import Step

DEGRADATIONS: tuple[Degradation[Any], ...] = (
    HAZE,
    RAIN,
    REFLECTION,
    DOUBLE_PANE_REFLECTION,
    FLARE,
    FLARE_LIGHTS,
    MOTION_BLUR,
    DEFOCUS_BLUR,
    GAUSSIAN_BLUR,
    TEMPORAL_BLUR,
    LOW_LIGHT,
    LOW_LIGHT_CURVE,
    SENSOR_NOISE,
    GRANULAR_NOISE,
    IMPULSE_NOISE,
    BANDING_NOISE,
    JPEG,
    WEBP,
    AVIF,
    RECOMPRESS,
    MOIRE,
)
"""In physical order: scene, glass, optics, sensor, distribution, re-photography."""
BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


def replay(base: Pixels, steps: Sequence[Step], scene: Scene) -> Rendered:
    """Apply recorded steps to a base; see `degradations.base.replay_with`."""
    return replay_with(base, steps, scene, BY_NAME)
