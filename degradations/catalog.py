"""Every degradation there is. To add one: write its family file, add a line here."""

from collections.abc import Sequence
from typing import Any

from degradations.base import Degradation, Rendered, Scene, replay_with
from degradations.blur_defocus import DEFOCUS_BLUR
from degradations.blur_motion import MOTION_BLUR
from degradations.blur_web import GAUSSIAN_BLUR, WEB_GAUSSIAN_BLUR, WEB_MOTION_BLUR, WEB_PLATEAU_BLUR, WEB_SINC_BLUR
from degradations.compression import AVIF, JPEG, RECOMPRESS, WEBP
from degradations.flare import FLARE, FLARE_LIGHTS
from degradations.flare_bank import FLARE_OVERLAY
from degradations.haze import GROUND_FOG, HAZE
from degradations.haze_night import NIGHT_HAZE
from degradations.haze_patterns import HAZE_PATTERN
from degradations.low_light import LOW_LIGHT, LOW_LIGHT_CURVE
from degradations.moire import MOIRE
from degradations.moire_pattern import MOIRE_PATTERN
from degradations.noise import BANDING_NOISE, SEGMENT_NOISE, SENSOR_NOISE
from degradations.noise_codes import GAUSSIAN_NOISE, GRANULAR_NOISE, IMPULSE_NOISE, POISSON_NOISE
from degradations.old_photo import OLD_COLOR_PHOTO, OLD_PHOTO
from degradations.old_photo_damage import PHOTO_DAMAGE
from degradations.old_photo_grain import FILM_GRAIN
from degradations.old_photo_tone import FADE, SEPIA
from degradations.rain import RAIN
from degradations.rain_glass import RAINDROPS_ON_GLASS
from degradations.rain_pattern import RAIN_PATTERN
from degradations.reflection import DOUBLE_PANE_REFLECTION, REFLECTION
from degradations.reflection_mixing import NONLINEAR_REFLECTION
from degradations.resampling import LOW_RESOLUTION, RESIZE
from degradations.snow import SNOW
from degradations.temporal_blur import TEMPORAL_BLUR
from pairforge.image import Pixels
from pairforge.records import Step

DEGRADATIONS: tuple[Degradation[Any], ...] = (
    HAZE,
    GROUND_FOG,
    NIGHT_HAZE,
    HAZE_PATTERN,
    RAIN,
    RAIN_PATTERN,
    SNOW,
    RAINDROPS_ON_GLASS,
    REFLECTION,
    DOUBLE_PANE_REFLECTION,
    NONLINEAR_REFLECTION,
    FLARE,
    FLARE_LIGHTS,
    FLARE_OVERLAY,
    MOTION_BLUR,
    DEFOCUS_BLUR,
    GAUSSIAN_BLUR,
    WEB_GAUSSIAN_BLUR,
    WEB_PLATEAU_BLUR,
    WEB_SINC_BLUR,
    WEB_MOTION_BLUR,
    TEMPORAL_BLUR,
    LOW_LIGHT,
    LOW_LIGHT_CURVE,
    SENSOR_NOISE,
    SEGMENT_NOISE,
    BANDING_NOISE,
    GRANULAR_NOISE,
    IMPULSE_NOISE,
    GAUSSIAN_NOISE,
    POISSON_NOISE,
    RESIZE,
    LOW_RESOLUTION,
    JPEG,
    WEBP,
    AVIF,
    RECOMPRESS,
    FILM_GRAIN,
    FADE,
    SEPIA,
    PHOTO_DAMAGE,
    OLD_PHOTO,
    OLD_COLOR_PHOTO,
    MOIRE,
    MOIRE_PATTERN,
)
"""In physical order: scene, glass, optics, sensor, distribution, ageing, re-photography."""
LAYERS = (
    "blur_diameter",
    "damage_classes",
    "drop_share",
    "flare",
    "glow",
    "noise_strength",
    "pattern_transmission",
    "rain_alpha",
    "rain_pattern",
    "rain_transmission",
    "reflection",
    "snow_alpha",
    "transmission",
)
"""Every supervision map that some degradation gives."""
BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


def replay(base: Pixels, steps: Sequence[Step], scene: Scene) -> Rendered:
    """Apply recorded steps to a base; see `degradations.base.replay_with`."""
    return replay_with(base, steps, scene, BY_NAME)
