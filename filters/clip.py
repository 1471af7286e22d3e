"""Zero-shot scores and embeddings by a CLIP model of the `open_clip` library, from files on disk.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1; two
opposite sides as Wang, Chan and Loy, "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023, eq. 3.
torch and open_clip are loaded by the constructor. Nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from filters.weights import model_folder, weights_file, weights_hash
from pairforge.config import fingerprint, load_config
from pairforge.image import Pixels
from pairforge.records import Frozen

PROMPTS = Path(__file__).parent / "prompts" / "clip.yaml"
"""The texts that come with PairForge."""

Embedding = NDArray[np.float32]

_Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
_Category = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Opposites(Frozen):
    """Texts that describe pictures with and without something."""

    positive: _Texts
    negative: _Texts


class PromptSets(Frozen):
    """Texts by category, as `filters/prompts/clip.yaml` has them."""

    version: int = Field(ge=1)
    categories: Annotated[dict[_Category, Opposites], Field(min_length=1)]


class ClipZeroShot:
    """Scores 0..1 by category: whether a picture is nearer to the positive or to the negative texts.

    With e the unit embedding of the picture, p and n the unit means of the unit embeddings of the two sides, and s the
    model's own scale, the score is 1 / (1 + exp(-s (e.p - e.n))): a number to set thresholds on, no probability.

    `path` is a folder with open_clip_config.json and weights, whose mean, deviation and size are used; or a checkpoint
    for the architecture `model_name`, which says nothing of its preprocessing: `mean` and `deviation` may be given,
    else those of open_clip for that architecture hold (weights of OpenAI need a name that ends in -quickgelu).
    Pictures are preprocessed as the model demands; most cut the middle square, so ends of long pictures are not seen.
    Raises ValueError for files that are missing or do not fit, ConfigError for prompts that cannot be used.
    """

    name = "clip"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        *,
        prompts: Path = PROMPTS,
        model_name: str | None = None,
        mean: tuple[float, float, float] | None = None,
        deviation: tuple[float, float, float] | None = None,
    ) -> None:
        sets = load_config(prompts, PromptSets)
        if Path(path).is_file():
            source, arguments = weights_file(path), _arguments_of_file(path, model_name, mean, deviation)
        elif model_name or mean or deviation:
            raise ValueError(f"{path} is no checkpoint: model_name, mean and deviation go with a checkpoint alone")
        else:
            source = model_folder(path, "open_clip_config.json")
            arguments = {"model_name": f"local-dir:{path}"}
        import open_clip
        import torch

        try:
            # What a file lacks, the library fills in at random and only logs, unless told.
            model, _, preprocess = open_clip.create_model_and_transforms(
                **arguments, device=device, require_pretrained=True
            )
            self._tokenizer: Any = open_clip.get_tokenizer(arguments["model_name"])
        except Exception as error:  # the libraries below raise errors of many kinds
            raise ValueError(f"{path} cannot be loaded as a CLIP model: {error}") from error
        self._torch, self._device = torch, device
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._scale = float(self._model.logit_scale.detach().exp())
        self._sides = {
            category: (self._side(opposites.positive), self._side(opposites.negative))
            for category, opposites in sets.categories.items()
        }
        given = fingerprint([sets.model_dump(mode="json"), model_name, mean, deviation])[:8]
        self.revision = f"1-{weights_hash(source)}-open_clip{version('open_clip_torch')}-{given}"

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the scores, in the order of the file."""
        return tuple(self._sides)

    def embed(self, pictures: Sequence[Pixels]) -> Embedding:
        """Unit embeddings (n, d) of pictures of any sizes, in one batch."""
        from PIL import Image

        inputs = self._torch.stack([self._preprocess(Image.fromarray(picture)) for picture in pictures])
        with self._torch.inference_mode():
            rows = self._model.encode_image(inputs.to(self._device), normalize=True)
        embeddings: Embedding = rows.float().cpu().numpy()
        return embeddings

    def score(self, embedding: Embedding) -> Mapping[str, float]:
        """Scores of one embedding (d,): other texts need no pixels again."""
        own = embedding.astype(np.float64)
        return {
            category: _logistic(self._scale * float((own * (positive - negative)).sum()))
            for category, (positive, negative) in self._sides.items()
        }

    def measure(self, pixels: Pixels) -> Mapping[str, float]:
        """A score by category."""
        return self.score(self.embed([pixels])[0])

    def _side(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit mean of the unit embeddings of texts. Raises ValueError for a text that would be cut off."""
        tokens = self._tokenizer(list(texts))
        for text, row in zip(texts, tokens, strict=True):
            if self._is_cut(text, row):
                raise ValueError(f"prompt {text!r} does not fit into {row.numel()} tokens")
        with self._torch.inference_mode():
            rows = self._model.encode_text(tokens.to(self._device), normalize=True).double().cpu().numpy()
        mean = rows.mean(0)
        unit: NDArray[np.float64] = mean / max(float(np.sqrt((mean**2).sum())), 1e-12)
        return unit

    def _is_cut(self, text: str, row: Any) -> bool:
        encode = getattr(self._tokenizer, "encode", None)
        # Two places are taken by the marks of start and end.
        return encode is not None and len(encode(text)) + 2 > row.numel()


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(value, -60.0, 60.0))))


def _arguments_of_file(
    path: str,
    model_name: str | None,
    mean: tuple[float, float, float] | None,
    deviation: tuple[float, float, float] | None,
) -> dict[str, Any]:
    if not model_name or ":" in model_name:
        raise ValueError(f"model_name {model_name!r}: a checkpoint needs the name of its architecture in open_clip")
    import open_clip

    config = open_clip.get_model_config(model_name)
    if config is None:
        raise ValueError(f"open_clip knows no architecture {model_name!r}")
    # Their vocabularies are on the network; a folder has its own.
    if config["text_cfg"].get("hf_tokenizer_name") or "siglip" in model_name.lower():
        raise ValueError(f"{model_name} brings no vocabulary with its checkpoint: give a folder that holds both")
    return {"model_name": model_name, "pretrained": path, "image_mean": mean, "image_std": deviation}
