"""Files of a learned model on disk: that they are there, and a hash that names them. Nothing is ever downloaded."""

import hashlib
from pathlib import Path

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_TEXTS = (".json", ".txt", ".model")


def model_folder(path: str, config: str) -> Path:
    """The folder of a model. Raises ValueError where it is missing, or lacks `config` or weights."""
    folder = Path(path)
    # Without this the libraries take the path for the name of a repository.
    if not folder.is_dir():
        raise ValueError(f"no folder of a model at {path}")
    if not (folder / config).is_file():
        raise ValueError(f"{path} holds no {config}: it is no folder of such a model")
    if not any(file.suffix in _WEIGHTS for file in folder.iterdir()):
        raise ValueError(f"{path} holds no weights ({' '.join(_WEIGHTS)})")
    return folder


def weights_file(path: str) -> Path:
    """A checkpoint. Raises ValueError where it is missing or has an extension that no checkpoint has."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if file.suffix not in _WEIGHTS:
        raise ValueError(f"{path} has extension {file.suffix!r}; allowed: {' '.join(_WEIGHTS)}")
    return file


def weights_hash(path: Path) -> str:
    """16 hex digits of a checkpoint, or of what a folder's model is made of: weights, configuration, vocabulary."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in (*_WEIGHTS, *_TEXTS)]
    digest = hashlib.sha256()
    for file in sorted(files):
        # A checkpoint may be renamed, the files of a folder are told apart by their names.
        name = file.name if path.is_dir() else ""
        digest.update(f"{name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def text_hash(text: str) -> str:
    """8 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
