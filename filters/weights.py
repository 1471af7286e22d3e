"""What names a model of a filter: a hash of its files, and of what it was given besides."""

import hashlib
from pathlib import Path

from pairforge.weights import WEIGHTS, model_folder
from pairforge.weights import weights_hash as hash_of_files

__all__ = ["model_folder", "text_hash", "weights_file", "weights_hash"]

_TEXTS = (".json", ".txt", ".model")


def weights_file(path: str) -> Path:
    """A checkpoint. Raises ValueError where it is missing or has an extension that no checkpoint has."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if file.suffix not in WEIGHTS:
        raise ValueError(f"{path} has extension {file.suffix!r}; allowed: {' '.join(WEIGHTS)}")
    return file


def weights_hash(path: Path) -> str:
    """16 hex digits of a checkpoint, or of what a folder's model is made of: weights, configuration, vocabulary."""
    return hash_of_files(path, (*WEIGHTS, *_TEXTS))


def text_hash(text: str) -> str:
    """8 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
