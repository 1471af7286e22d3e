"""A slot for a classifier of the `timm` library, from files on disk: say, of degradations, trained by the user.

torch and timm are loaded by the constructor. Nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filters.weights import model_folder, text_hash, weights_file, weights_hash
from pairforge.image import Pixels


class TimmClassifier:
    """A score 0..1 for each label: softmax over them, or with `several` a logistic each, for labels that may coincide.

    `path` is a folder as timm saves it (config.json and weights), or a checkpoint for the architecture `model_name`.
    `labels` are in the order of the outputs; a folder whose config has label_names needs none. Pictures are
    preprocessed as the model's own configuration says.
    Raises ValueError for files that are missing or do not fit, and where labels and outputs differ in number.
    """

    name = "timm"

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        *,
        labels: Sequence[str] = (),
        model_name: str | None = None,
        several: bool = False,
    ) -> None:
        if Path(path).is_file():
            source, arguments = weights_file(path), _arguments_of_file(path, model_name, labels)
        elif model_name:
            raise ValueError(f"{path} is no checkpoint: model_name goes with a checkpoint alone")
        else:
            source = model_folder(path, "config.json")
            arguments = {"model_name": f"local-dir:{path}", "pretrained": True}
        import timm
        import torch

        try:
            model = timm.create_model(**arguments)
        except Exception as error:  # the libraries below raise errors of many kinds
            raise ValueError(f"{path} cannot be loaded as a timm model: {error}") from error
        names = tuple(labels) or tuple(model.pretrained_cfg.get("label_names") or ())
        if len(names) != model.num_classes or len(set(names)) != len(names):
            raise ValueError(f"{len(names)} labels {names} for {model.num_classes} outputs: each needs its own")
        self._torch, self._device, self._several = torch, device, several
        self._model: Any = model.to(device).eval()
        config = timm.data.resolve_data_config(args={}, pretrained_cfg=model.pretrained_cfg, model=model)
        self._transform: Any = timm.data.create_transform(**config, is_training=False)
        self.labels = names
        given = text_hash("\n".join((model_name or "", str(several), *names)))
        self.revision = f"1-{weights_hash(source)}-timm{version('timm')}-{given}"

    def measure(self, pixels: Pixels) -> Mapping[str, float]:
        """A score by label."""
        from PIL import Image

        inputs = self._transform(Image.fromarray(pixels))[None].to(self._device)
        with self._torch.inference_mode():
            logits = self._model(inputs).double()
            scores = logits.sigmoid() if self._several else logits.softmax(1)
        return dict(zip(self.labels, scores[0].tolist(), strict=True))


def _arguments_of_file(path: str, model_name: str | None, labels: Sequence[str]) -> dict[str, Any]:
    if not model_name or ":" in model_name:
        raise ValueError(f"model_name {model_name!r}: a checkpoint needs the name of its architecture in timm")
    if not labels:
        raise ValueError(f"{path}: a checkpoint needs the labels of its outputs")
    return {"model_name": model_name, "pretrained": False, "checkpoint_path": path, "num_classes": len(labels)}
