"""Every degradation there is. To add one: write its family file, add a line here."""

from collections.abc import Sequence
from typing import Any

from degradations.base import Degradation, Rendered, Scene, replay_with
from degradations.compression import JPEG
from pairforge.image import Pixels
from pairforge.records import Step

DEGRADATIONS: tuple[Degradation[Any], ...] = (JPEG,)
BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


def replay(base: Pixels, steps: Sequence[Step], scene: Scene) -> Rendered:
    """Apply recorded steps to a base; see `degradations.base.replay_with`."""
    return replay_with(base, steps, scene, BY_NAME)
