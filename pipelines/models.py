"""Weights of learned models: fetched from the Hugging Face Hub into a folder, and locked there by their hashes.

This is the only place of PairForge that downloads anything; workers only load. A folder holds one model per name of
the list (`models.yaml`) and `models.lock.json`, which pins the commit and every byte: a later fetch repairs
what is missing or damaged from that commit, and `verify_models` finds it without a network. A key for gated models
comes from HF_TOKEN or the Hub's own login, and is written nowhere.
"""

import errno
import fnmatch
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pairforge.config import load_config
from pairforge.config_words import near
from pairforge.records import DamagedError, Frozen, InfraError, parse_stored
from pairforge.remote_base import short

MODELS = Path(__file__).parent / "models.yaml"
LOCK = "models.lock.json"
_HUB_FOLDER = ".cache"
"""What the Hub's library keeps beside the files while it fetches them: how far it came."""

Tell = Callable[[str], None]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
Purpose = Literal["depth", "segments", "clip", "watermark", "vlm", "generator"]


class Origin(Frozen):
    """Where a model comes from, and what its licence allows; `commercial` is None where that is not known."""

    purpose: Purpose
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(min_length=1, description="commit, tag or branch")
    licence: str = Field(min_length=1)
    commercial: bool | None


class Model(Origin):
    """One model of the list."""

    files: tuple[str, ...] = Field(min_length=1, description="patterns of what is loaded; each must match a file")
    size_gb: float | None = Field(None, gt=0)


class ModelList(Frozen):
    version: Literal[1]
    models: dict[Name, Model]


class LockedFile(Frozen):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Locked(Origin):
    """One model as it lies in the folder. `weights` is the hash that configs pin it by."""

    commit: str
    weights: str = Field(pattern=r"^[0-9a-f]{16}$")
    files: dict[str, LockedFile]


class Lock(Frozen):
    schema_version: Literal[1] = 1
    models: dict[Name, Locked] = Field({})


def _silent(line: str) -> None:
    pass


def load_models(path: Path = MODELS) -> Mapping[str, Model]:
    """The list. Raises ConfigError."""
    return load_config(path, ModelList).models


def pick_models(models: Mapping[str, Model], names: Sequence[str]) -> dict[str, Model]:
    """The named ones. Raises ValueError for one that is not in the list."""
    for name in names:
        if name not in models:
            raise ValueError(f"there is no model {name!r}{near(name, models)} (there are: {', '.join(models)})")
    return {name: models[name] for name in names}


def check_licence(name: str, model: Origin, accepted: Collection[str], on_hub: str | None = None) -> None:
    """Raises ValueError for a licence that has to be accepted by name and was not.

    `on_hub` is what the model's card states; where it is another licence than the list's, the list cannot be relied on.
    """
    if on_hub is not None and model.commercial and on_hub.lower() != model.licence.lower():
        if on_hub not in accepted:
            raise ValueError(
                f"{name}: the list says {model.licence}, the card of {model.repo} says {on_hub}; read it, "
                f"then give --accept-licence {on_hub}"
            )
    elif not model.commercial and model.licence not in accepted:
        allows = "does not allow commercial use" if model.commercial is False else "may not allow commercial use"
        raise ValueError(f"{name}: {model.licence} {allows}; read it, then give --accept-licence {model.licence}")


def read_lock(folder: Path) -> Lock:
    """The lock of a folder, an empty one where there is none. Raises DamagedError."""
    path = folder / LOCK
    return parse_stored(Lock, path.read_bytes(), str(path)) if path.exists() else Lock()


def state_of(name: str, folder: Path, lock: Lock) -> Literal["yes", "partly", "no"]:
    """Whether a model lies in a folder, by the sizes of its files."""
    locked = lock.models.get(name)
    if locked is None:
        return "partly" if (folder / name).exists() else "no"
    whole = all(_size(folder / name / file) == entry.bytes for file, entry in locked.files.items())
    return "yes" if whole else "partly"


def fetch_model(
    name: str, model: Model, folder: Path, accepted: Collection[str] = (), update: bool = False, tell: Tell = _silent
) -> Locked:
    """Make `folder/name` hold the model, and write that into the lock; what is there already is not fetched again.

    The commit of the lock holds, unless `update` asks the Hub for the revision of the list anew. After an interrupted
    fetch, files that came whole are kept. Raises ValueError for what the caller must change (licence, access,
    revision, a folder that is not ours), InfraError where network or disk gave out, DamagedError where other bytes
    came than were locked or announced.
    """
    check_licence(name, model, accepted)
    target = folder / name
    before = read_lock(folder).models.get(name)
    if before is None and target.exists() and any(target.iterdir()) and not (target / _HUB_FOLDER).exists():
        raise ValueError(f"{target} holds files that no fetch put there; give another folder, or move them away")
    pinned = before if before and not update and _same_origin(before, model) else None
    if pinned:
        faults = _faults(target, pinned.files)
        if not faults:
            tell(f"{name} is there already")
            return pinned
        for file in faults:
            if file in pinned.files:
                (target / file).unlink(missing_ok=True)
    commit, announced, on_hub = _ask_hub(name, model, pinned.commit if pinned else model.revision)
    check_licence(name, model, accepted, on_hub)
    wanted = _matching(announced, model, commit)
    _check_room(name, target, sum(size or 0 for size, _ in wanted.values()))
    tell(f"{name}: {len(wanted)} files of {model.repo} at commit {commit}")
    _download(name, model, commit, target)
    for file in set(before.files if before else ()) - set(wanted):
        (target / file).unlink(missing_ok=True)
    if strangers := sorted(_files_in(target) - set(wanted)):
        raise ValueError(f"{target / strangers[0]} is no part of {model.repo} at commit {commit}: move it away")
    origin = {field: getattr(model, field) for field in Origin.model_fields}
    files = _hash_files(target, wanted)
    if pinned and pinned.files != files:
        raise DamagedError(f"{name}: commit {commit} of {model.repo} holds other bytes than {folder / LOCK} says")
    locked = Locked(**origin, commit=commit, weights=pin_of(model.purpose, target), files=files)
    _write_lock(folder, Lock(models={**read_lock(folder).models, name: locked}))
    shutil.rmtree(target / _HUB_FOLDER, ignore_errors=True)
    return locked


def verify_models(folder: Path, tell: Tell = _silent) -> list[str]:
    """Every fault of the models that the lock of a folder names. Raises ValueError where there is no lock."""
    if not (folder / LOCK).exists():
        raise ValueError(f"{folder} holds no {LOCK}: nothing was fetched into it")
    problems = []
    for name, locked in read_lock(folder).models.items():
        tell(name)
        found = _faults(folder / name, locked.files)
        problems += [f"{name}/{file} {fault}" for file, fault in found.items()]
    return problems


def pin_of(purpose: Purpose, target: Path) -> str:
    """The hash that configs pin a model by: that of the loader which will check it. Raises ValueError for no model."""
    path = str(target)
    if purpose in ("depth", "segments"):
        from degradations.scene.learned import model_hash

        return model_hash(path)
    if purpose == "generator":
        from generators.diffusion import pipeline_hash

        return pipeline_hash(path)
    if purpose == "vlm":
        from pairforge.local_chat import chat_hash

        return chat_hash(path)
    from filters.weights import model_folder, weights_hash

    return weights_hash(model_folder(path, "open_clip_config.json" if purpose == "clip" else "config.json"))


def _same_origin(locked: Locked, model: Model) -> bool:
    """The list still asks for what was fetched. A pattern that was added needs `update`, which is cheap."""
    return (locked.repo, locked.revision) == (model.repo, model.revision) and all(
        any(fnmatch.fnmatch(file, pattern) for file in locked.files) for pattern in model.files
    )


Announced = Mapping[str, tuple[int | None, str | None]]
"""Size and, of large files, SHA-256 by file, as the Hub states them."""


def _ask_hub(name: str, model: Model, revision: str) -> tuple[str, Announced, str | None]:
    """Commit, files and stated licence of a revision."""
    with _hub_troubles(name, model.repo):
        from huggingface_hub import HfApi

        info = HfApi().model_info(model.repo, revision=revision, files_metadata=True)
    licences = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    files = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()}
    if not info.sha or not files:
        raise InfraError(f"{name}: the Hub says nothing of the commit or the files of {model.repo}")
    return info.sha, files, licences[0] if licences else None


def _matching(announced: Announced, model: Model, commit: str) -> Announced:
    for pattern in model.files:
        if not fnmatch.filter(announced, pattern):
            raise ValueError(f"{model.repo} at {commit} holds no file {pattern}: the list of models is out of date")
    return {
        file: stated
        for file, stated in announced.items()
        if any(fnmatch.fnmatch(file, pattern) for pattern in model.files)
    }


def _check_room(name: str, target: Path, needed: int) -> None:
    there = sum((target / file).stat().st_size for file in _files_in(target))
    place = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed - there > free:
        raise InfraError(f"{name} needs {(needed - there) / 1e9:.1f} GB more, {place} has {free / 1e9:.1f} GB free")


def _download(name: str, model: Model, commit: str, target: Path) -> None:
    with _hub_troubles(name, model.repo):
        from huggingface_hub import snapshot_download

        snapshot_download(model.repo, revision=commit, local_dir=target, allow_patterns=list(model.files))


def _hash_files(target: Path, wanted: Announced) -> dict[str, LockedFile]:
    """Raises InfraError for a file that did not come, DamagedError for one that is not what the Hub announced."""
    files = {}
    for file, (size, sha256) in sorted(wanted.items()):
        path = target / file
        found = _size(path)
        if found is None or size not in (None, found):
            raise InfraError(f"{path} did not come whole ({found} of {size} bytes); run again to go on")
        files[file] = LockedFile(bytes=found, sha256=_sha256(path))
        if sha256 not in (None, files[file].sha256):
            path.unlink()
            raise DamagedError(f"{path} came with other bytes than the Hub announced; it was removed, run again")
    return files


def _faults(target: Path, files: Mapping[str, LockedFile]) -> dict[str, str]:
    """What is wrong, by file; files that nobody fetched count, since a loader might take them."""
    faults = {}
    for file, entry in files.items():
        size = _size(target / file)
        if size is None:
            faults[file] = "is missing"
        elif size != entry.bytes:
            faults[file] = f"has {size} bytes, not {entry.bytes}"
        elif _sha256(target / file) != entry.sha256:
            faults[file] = "has other bytes than the lock says"
    return faults | dict.fromkeys(sorted(_files_in(target) - set(files)), "is not in the lock")


def _files_in(target: Path) -> set[str]:
    paths = (path.relative_to(target) for path in target.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if path.parts[0] != _HUB_FOLDER}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_lock(folder: Path, lock: Lock) -> None:
    waiting = folder / f".{LOCK}.{os.getpid()}"
    waiting.write_text(json.dumps(lock.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    waiting.replace(folder / LOCK)


@contextmanager
def _hub_troubles(name: str, repo: str) -> Iterator[None]:
    """What the Hub's library raises, as one line without the token: ValueError for the caller, else InfraError."""
    try:
        from huggingface_hub import constants, errors, get_token
    except ImportError as error:
        raise ValueError("models are fetched by huggingface_hub: pip install 'pairforge[models]'") from error
    try:
        yield
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo}"
        raise ValueError(
            f"{name}: {repo} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: {repo} has no such revision; it may have been removed from the Hub") from error
    except Exception as error:  # the libraries below raise errors of many kinds
        status = _status_of(error)
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            raise ValueError(
                f"{name}: the Hub gives no access to {repo} (HTTP {status}): it is gone, or HF_TOKEN has no right to it"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InfraError(f"{name}: the disk is full; what came stays, make room and run again") from error
        said = short(f"{type(error).__name__}: {error}", (get_token() or "",))
        raise InfraError(f"{name}: {repo} cannot be fetched from {constants.ENDPOINT}: {said}") from error


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, or behind what it was raised from."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None
