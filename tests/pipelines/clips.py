"""Short clips: a window that moves over a real photo."""

from pathlib import Path

import cv2
import numpy as np

from pairforge.image import Pixels

FOURCC = {".mp4": "mp4v", ".avi": "MJPG"}


def write_clip(path: Path, photo: Pixels, frames: int, size: tuple[int, int] = (160, 128), step_px: int = 3) -> Path:
    """`frames` crops of `size` (width, height), each `step_px` to the right of the one before."""
    width, height = size
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*FOURCC[path.suffix]), 24, size)
    assert writer.isOpened()
    for index in range(frames):
        x = index * step_px
        writer.write(cv2.cvtColor(np.ascontiguousarray(photo[20 : 20 + height, x : x + width]), cv2.COLOR_RGB2BGR))
    writer.release()
    return path
