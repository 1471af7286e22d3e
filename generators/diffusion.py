"""Image editing networks of the `diffusers` library, from a folder on disk: nothing is ever downloaded.

torch and diffusers are loaded by the constructor. The class that the folder's model_index.json names decides, one of
PIPELINES. Licences of the weights, to be read before a model is trained on what they made: the non-commercial ones
forbid to train competing models on their outputs.

- QwenImageEditPlusPipeline: Qwen-Image-Edit-2509 and -2511. Apache-2.0.
- QwenImageEditPipeline: Qwen-Image-Edit, the first. Apache-2.0.
- FluxKontextPipeline: FLUX.1-Kontext-dev. FLUX.1 [dev] Non-Commercial License.
- Flux2KleinPipeline: FLUX.2 klein. 4B: Apache-2.0; 9B: FLUX Non-Commercial License.
- Flux2Pipeline: FLUX.2-dev. FLUX [dev] Non-Commercial License.
"""

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image as PILImage
from pydantic import Field, model_validator

from generators.returned import SizeRule, fit_candidate, resized, size_fault
from pairforge.config import fingerprint
from pairforge.image import Pixels, encode_png, to_pixels
from pairforge.protocols import BackendError, Candidate, Trouble, Usage
from pairforge.records import Frozen
from pairforge.remote_base import BackendMisconfigured

Dtype = Literal["bfloat16", "float16", "float32"]
_LIBRARIES = ("diffusers", "transformers")
_MOST_CANVAS_ASPECT = 8.0
"""FLUX.2 refuses longer strips, and no model has seen any."""


class DiffusionSettings(Frozen):
    """The canvas, which all families share; further fields are arguments of the pipeline, by its own names.

    A canvas has sides of multiples of `multiple_px` and an area near the input's own, within the two limits. The
    input is stretched to it over the whole frame, by the few pixels that rounding takes, and the result back again,
    so that nothing moves. An input so large that the canvas is below `least_scale` of its side is refused.
    """

    most_pixels: int = Field(1024**2, ge=64**2, le=4096**2)
    least_pixels: int = Field(512**2, ge=64**2)
    multiple_px: int = Field(16, ge=16, le=64, multiple_of=16)
    least_scale: float = Field(0.5, gt=0, le=1)
    num_inference_steps: int = Field(ge=1, le=1000)

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        if self.least_pixels > self.most_pixels:
            raise ValueError(f"least_pixels {self.least_pixels} is above most_pixels {self.most_pixels}")
        return self

    def arguments(self, width: int, height: int) -> dict[str, Any]:
        """What the pipeline is called with, except picture, prompt and generator."""
        own = {"most_pixels", "least_pixels", "multiple_px", "least_scale"}
        return {"width": width, "height": height, **self.model_dump(exclude=own)}

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) for an input of that size."""
        area = width * height
        scale = math.sqrt(min(max(area, self.least_pixels), self.most_pixels) / area) / self.multiple_px
        across, along = max(1.0, width * scale), max(1.0, height * scale)
        sides = round(across), round(along)
        if sides[0] * sides[1] * self.multiple_px**2 > self.most_pixels:
            sides = int(across), int(along)
        return sides[0] * self.multiple_px, sides[1] * self.multiple_px


class QwenEditSettings(DiffusionSettings):
    """The pipeline looks at every input at about one megapixel with sides of multiples of 32, and so is the canvas:
    where the two differ, the model tends to zoom."""

    least_pixels: int = Field(1024**2, ge=64**2)
    multiple_px: int = Field(32, ge=16, le=64, multiple_of=16)
    num_inference_steps: int = Field(40, ge=1, le=1000)
    true_cfg_scale: float = Field(4.0, ge=1, le=50)
    negative_prompt: str = " "
    """Any text at all, a blank one too, turns guidance on."""


class KontextSettings(DiffusionSettings):
    """The pipeline would otherwise snap every input to a list of resolutions, and the canvas to one megapixel."""

    num_inference_steps: int = Field(28, ge=1, le=1000)
    guidance_scale: float = Field(2.5, ge=0, le=50)

    def arguments(self, width: int, height: int) -> dict[str, Any]:
        return {**super().arguments(width, height), "max_area": width * height, "_auto_resize": False}


class Flux2Settings(DiffusionSettings):
    """Of FLUX.2-dev and the undistilled klein. Above a megapixel the pipeline would reduce the input and crop it."""

    most_pixels: int = Field(1024**2, ge=64**2, le=1024**2)
    num_inference_steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(4.0, ge=0, le=50)


class Flux2DistilledSettings(DiffusionSettings):
    """Of the distilled klein, which takes no guidance."""

    most_pixels: int = Field(1024**2, ge=64**2, le=1024**2)
    num_inference_steps: int = Field(4, ge=1, le=1000)

    def arguments(self, width: int, height: int) -> dict[str, Any]:
        return {**super().arguments(width, height), "guidance_scale": 1.0}


PIPELINES: Mapping[str, type[DiffusionSettings]] = {
    "QwenImageEditPlusPipeline": QwenEditSettings,
    "QwenImageEditPipeline": QwenEditSettings,
    "FluxKontextPipeline": KontextSettings,
    "Flux2KleinPipeline": Flux2Settings,
    "Flux2Pipeline": Flux2Settings,
}


class DiffusersGenerator:
    """A pipeline of a folder on `device` ("cpu", "cuda", "cuda:1"), with `options` for the settings of its family.

    `offload` keeps in the device's memory only the part that computes, for cards that cannot hold the whole. One
    picture at a time: a pipeline keeps state, so threads wait for each other.

    Equal arguments give equal pixels on one device with one set of versions, not on another, so `deterministic` is
    False. The seed's noise is drawn on the CPU, which makes draws of different devices alike. Raises ValueError for a
    folder that is missing, broken, or of another pipeline, and for options that its family does not have.
    """

    name = "diffusers"
    deterministic = False
    price_usd: float | None = 0.0

    def __init__(
        self,
        path: str,
        options: Mapping[str, Any] | None = None,
        device: str = "cuda",
        dtype: Dtype = "bfloat16",
        offload: bool = False,
    ) -> None:
        folder, index = _read_index(path)
        kind = str(index["_class_name"])
        settings_type = Flux2DistilledSettings if index.get("is_distilled") else PIPELINES[kind]
        self.settings = settings_type.model_validate(options or {})
        self.rule = SizeRule(most_aspect_error=1.0, least_scale=self.settings.least_scale)
        self._device = device
        self._lock = threading.Lock()
        self._pipeline = _loaded_pipeline(folder, index, dtype)
        self._pipeline.set_progress_bar_config(disable=True)
        if offload:
            self._pipeline.enable_model_cpu_offload(device=device)
        else:
            self._pipeline.to(device)
        settings_hash = fingerprint({"dtype": dtype, "settings": self.settings.model_dump()})[:8]
        libraries = "-".join(f"{library}{version(library)}" for library in _LIBRARIES)
        self.revision = f"{kind}-{pipeline_hash(path)}-{libraries}-{settings_hash}"

    def generate(self, lq: Pixels, instruction: str, seed: int) -> Candidate:
        """Raises BackendError: WRONG_SIZE, before anything is computed, for an input that no canvas can carry;
        MALFORMED where the network overflowed, as half precision may with one draw and not with the next.

        Raises BackendMisconfigured where the device's memory does not suffice. That is no passing trouble: all
        canvases are about as large, so the next picture would fare the same, and a run that went on would leave
        every record to be tried again each night. Where somebody else took the memory, the run goes on later.
        """
        import torch

        height, width = lq.shape[:2]
        canvas = self.settings.canvas(width, height)
        fault = size_fault(canvas, (width, height), self.rule)
        if max(canvas) > _MOST_CANVAS_ASPECT * min(canvas):
            fault = f"{width}x{height} is longer than {_MOST_CANVAS_ASPECT:g} to 1"
        if fault:
            raise BackendError(Trouble.WRONG_SIZE, f"no canvas for this input: {fault}")
        picture = lq if canvas == (width, height) else resized(lq, canvas)
        try:
            with self._lock, torch.inference_mode():
                image = self._pipeline(
                    image=PILImage.fromarray(picture),
                    prompt=instruction,
                    generator=torch.Generator("cpu").manual_seed(seed % 2**63),
                    output_type="np",
                    **self.settings.arguments(*canvas),
                ).images[0]
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            raise BackendMisconfigured(
                f"a canvas of {canvas[0]}x{canvas[1]} needs more memory than {self._device} has free: "
                f"lower most_pixels or turn offload on ({reason})"
            ) from None
        assert image.shape == (canvas[1], canvas[0], 3), f"{image.shape} came back for a canvas of {canvas}"
        if not np.isfinite(image).all():
            raise BackendError(Trouble.MALFORMED, "the network gave values that are not finite")
        return fit_candidate(lq, encode_png(to_pixels(image)), "image/png", Usage(0.0), self.rule)


def pipeline_hash(path: str) -> str:
    """16 hex digits of all that a pipeline's folder says of it: its index, and every file of the parts it names."""
    folder, index = _read_index(path)
    files = [folder / "model_index.json"]
    for part in _parts(index):
        files += [file for file in (folder / part).rglob("*") if file.is_file()]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        digest.update(f"{name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_index(path: str) -> tuple[Path, Mapping[str, Any]]:
    folder = Path(path)
    # Without this the library takes the path for the name of a repository.
    if not folder.is_dir():
        raise ValueError(f"no folder of a pipeline at {path}")
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no model_index.json that can be read: {error}") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in PIPELINES:
        raise ValueError(f"{path} holds a pipeline of class {kind!r}; supported are {', '.join(PIPELINES)}")
    for part, (library, _) in _parts(index).items():
        if library not in _LIBRARIES:
            raise ValueError(f"{path}: {part} comes from {library!r}; allowed are {' and '.join(_LIBRARIES)}")
        if not (folder / part).is_dir():
            raise ValueError(f"{path} lacks the folder {part}")
    return folder, index


def _parts(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class by the name of the part, which is the name of its folder."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(value)
    }


def _loaded_pipeline(folder: Path, index: Mapping[str, Any], dtype: Dtype) -> Any:
    """The pipeline in the CPU's memory. Its networks are loaded one by one, for the report of what they lack."""
    import diffusers
    import torch
    import transformers

    sources = {"diffusers": diffusers, "transformers": transformers}
    networks: dict[str, Any] = {}
    for part, (library, name) in _parts(index).items():
        kind = getattr(sources[library], name, None)
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            report: Mapping[str, Any]
            networks[part], report = _loaded(
                kind,
                folder / part,
                dtype=getattr(torch, dtype),
                use_safetensors=True,  # the other formats may hold code
                output_loading_info=True,
            )
            # The libraries fill in what a file lacks at random, and only warn.
            missing = sorted(report["missing_keys"])
            if missing:
                raise ValueError(f"{folder / part} lacks {len(missing)} weights of {name}, the first is {missing[0]}")
    pipeline = _loaded(getattr(diffusers, str(index["_class_name"])), folder, **networks)
    for part in pipeline.components.values():
        tokenizer = getattr(part, "tokenizer", part)
        if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
            continue
        # The library makes one without its files too, silently; every instruction is the same to it.
        if tokenizer("rain")["input_ids"] == tokenizer("snow")["input_ids"]:
            raise ValueError(f"{folder}: its {type(tokenizer).__name__} reads nothing, its files are incomplete")
    return pipeline


def _loaded(kind: Any, folder: Path, **arguments: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **arguments)
    except Exception as error:  # the libraries below raise errors of many kinds, some of their own
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__}: {error}") from error
