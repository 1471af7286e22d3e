"""Pictures of benchmarks, which must not be trained on: their perceptual hashes, computed once for each listing."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from filters.similarity import HASH_REVISION, perceptual_hash
from pairforge.config import canonical_json, fingerprint
from pairforge.decode import DecodeLimits, decode_source
from pairforge.records import Frozen, SampleError, parse_stored
from pairforge.storage import Storage
from pipelines.ground_truth.settings import GroundTruthConfig, HeldOut
from pipelines.reading import read_source
from pipelines.settings import FileSources, GroupRule
from pipelines.sources import Found, list_sources

_LIMITS = DecodeLimits(max_bytes=2**28, max_pixels=2**28, max_side=2**15, min_side=1)
_READERS = 8


class HeldOutPicture(Frozen):
    """One picture of a benchmark. `set` is its name in the config."""

    set: str
    uri: str
    hash: int


class _Stored(Frozen):
    pictures: tuple[HeldOutPicture, ...]


def held_out_pictures(config: GroundTruthConfig, storage: Storage) -> list[HeldOutPicture]:
    """All pictures of all held-out folders. Raises ValueError for a folder without pictures or with unreadable ones:
    what cannot be compared would be trained on.
    """
    return [picture for stated in config.select.held_out for picture in _of_set(stated, storage)]


def _of_set(stated: HeldOut, storage: Storage) -> Sequence[HeldOutPicture]:
    listed = list(
        list_sources(FileSources(kind="files", url=stated.url, licence="unknown", group=GroupRule(by="file")))
    )
    if not listed:
        raise ValueError(f"select.held_out: {stated.name}: no picture at {stated.url}")
    listing = fingerprint([stated.name, HASH_REVISION, [[f.uri, f.stamp] for f in listed]])
    name = f"held_out/{stated.name}-{listing[:16]}.json"
    try:
        return parse_stored(_Stored, storage.read(name), name).pictures
    except FileNotFoundError:
        pass
    with ThreadPoolExecutor(_READERS) as pool:
        pictures = tuple(pool.map(lambda found: _hashed(stated, found), listed))
    storage.write(name, canonical_json(_Stored(pictures=pictures)).encode())
    return pictures


def _hashed(stated: HeldOut, found: Found) -> HeldOutPicture:
    try:
        if found.refusal is not None:
            raise found.refusal
        pixels, _ = decode_source(read_source(found.uri, found.locator), _LIMITS)
    except SampleError as refusal:
        raise ValueError(f"select.held_out: {stated.name}: {found.uri} cannot be compared: {refusal}") from refusal
    return HeldOutPicture(set=stated.name, uri=found.uri, hash=perceptual_hash(pixels))
