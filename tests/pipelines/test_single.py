"""Degrading one file: what is written are the pixels that were made, or nothing is."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from degradations.base import Scene
from degradations.catalog import replay
from pairforge.image import to_pixels
from pairforge.records import Step
from pipelines.single import SingleOrder, degrade_file


@pytest.mark.parametrize("name", ["x.png", "x.webp", "X.PNG"])
def test_what_is_written_are_the_pixels_that_were_made(photo_folder: Path, tmp_path: Path, name: str) -> None:
    photo = next(photo_folder.rglob("*.png"))
    told = degrade_file(SingleOrder(photo, "jpeg", 0.5, 3), tmp_path / name, None)
    base = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    steps = [Step.model_validate(step) for step in told["steps"]]
    written = cv2.cvtColor(cv2.imread(str(tmp_path / name)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(written, to_pixels(replay(base, steps, Scene()).image))


@pytest.mark.parametrize(("output", "target", "option"), [("x.jpg", None, "--output"), ("x.png", "y.JPEG", "--target")])
def test_a_lossy_file_is_refused_before_any_work(
    photo_folder: Path, tmp_path: Path, output: str, target: str | None, option: str
) -> None:
    order = SingleOrder(next(photo_folder.rglob("*.png")), "jpeg", 0.5, 3)
    with pytest.raises(ValueError, match=rf"{option} .*: JPEG would change the pixels .* allowed: \.png and \.webp"):
        degrade_file(order, tmp_path / output, tmp_path / target if target else None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_is_named_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--type 'hase' is unknown; did you mean 'haze'\?; allowed: avif"):
        degrade_file(SingleOrder(tmp_path / "no.png", "hase", 0.5, 0), tmp_path / "o.png", None)
