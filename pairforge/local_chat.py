"""A vision-language model of the `transformers` library from a folder on disk, asked like a remote one.

torch and transformers are loaded by the constructor; nothing is ever downloaded. Decoding is greedy, so the same
question gets the same answer, and asking again after a malformed one is of no use.
"""

import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pairforge.protocols import BackendError, Trouble, Usage
from pairforge.remote_base import ChatRequest, Reply
from pairforge.weights import weights_hash

_FILES = (".json", ".jinja", ".safetensors", ".bin")
"""What of a folder determines answers."""


class TransformersChat:
    """Answers a ChatRequest by a model folder (Qwen3-VL and its like) on `device` ("cpu", "cuda", "cuda:1").

    `dtype` as torch names it ("bfloat16" on GPUs). An answer longer than `max_new_tokens` is malformed, as it is cut.
    Raises ValueError for a folder that is missing or cannot be loaded.
    """

    name = "transformers"

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32", max_new_tokens: int = 1024) -> None:
        folder = Path(path)
        # Without this the library takes the path for the name of a repository.
        if not (folder / "config.json").is_file():
            raise ValueError(f"no folder of a model at {path}: it holds no config.json")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens} is not above 0")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                str(folder), local_files_only=True, dtype=getattr(torch, dtype), output_loading_info=True
            )
            self._processor: Any = AutoProcessor.from_pretrained(str(folder), local_files_only=True)
        except (AttributeError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be loaded: {error}") from error
        if missing := sorted(report["missing_keys"]):  # the library fills them in at random, and only warns
            raise ValueError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}")
        self._model: Any = model.to(device).eval()
        self._device, self._max_new_tokens = device, max_new_tokens
        self.revision = f"{chat_hash(path)}-transformers{version('transformers')}-{dtype}-{max_new_tokens}"

    def ask(self, request: ChatRequest) -> Reply:
        """The answer in UTF-8. Its schema, temperature and seed hold nothing back here: decoding is greedy and free.

        Raises BackendError for an answer that was cut, or where the device has not enough memory.
        """
        import torch

        limit = min(self._max_new_tokens, request.max_output_tokens)
        try:
            with torch.inference_mode():
                inputs = self._processor.apply_chat_template(
                    _messages(request), tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                ).to(self._device)
                found = self._model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        except torch.OutOfMemoryError as error:
            raise BackendError(Trouble.UNAVAILABLE, "not enough memory on the device") from error
        asked = int(inputs["input_ids"].shape[1])
        tokens = found[0, asked:]
        if len(tokens) >= limit and int(tokens[-1]) not in self._ends():
            raise BackendError(Trouble.MALFORMED, f"the answer was cut after {limit} tokens")
        answer: str = self._processor.decode(tokens, skip_special_tokens=True)
        return Reply(answer.encode(), "text/plain", Usage(0.0, asked, len(tokens)))

    def _ends(self) -> set[int]:
        end = self._model.generation_config.eos_token_id
        return set(end) if isinstance(end, list) else {end}


def _messages(request: ChatRequest) -> list[dict[str, Any]]:
    from PIL import Image

    pictures = [Image.open(io.BytesIO(picture.data)).convert("RGB") for picture in request.pictures]
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    system = [{"role": "system", "content": [{"type": "text", "text": request.system}]}] if request.system else []
    return [*system, {"role": "user", "content": [*content, {"type": "text", "text": request.text}]}]


def chat_hash(path: str) -> str:
    """16 hex digits over the names and bytes of configuration and weights in a folder."""
    return weights_hash(Path(path), _FILES)
