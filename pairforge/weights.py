"""Files of a learned model on disk: that they are there, and a hash that names them. Nothing is ever downloaded."""

import hashlib
from collections.abc import Collection
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
"""Extensions of checkpoints."""


def model_folder(path: str, config: str = "config.json") -> Path:
    """The folder of a model. Raises ValueError where it is missing, or lacks `config` or weights."""
    folder = Path(path)
    # Without this the libraries take the path for the name of a repository.
    if not folder.is_dir():
        raise ValueError(f"no folder of a model at {path}")
    if not (folder / config).is_file():
        raise ValueError(f"{path} holds no {config}: it is no folder of such a model")
    if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise ValueError(f"{path} holds no weights ({' '.join(WEIGHTS)})")
    return folder


def weights_hash(path: Path, extensions: Collection[str]) -> str:
    """16 hex digits of a checkpoint, or of the files of a folder that have these extensions, names and bytes."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in extensions]
    digest = hashlib.sha256()
    for file in sorted(files):
        # A checkpoint may be renamed, the files of a folder are told apart by their names.
        name = file.name if path.is_dir() else ""
        digest.update(f"{name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
