"""Pictures of benchmarks, which must not be trained on: what near copies are found by, computed once for each listing.

They are cut as sources are before they are hashed, or a copy with other margins would not be known again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from filters.similarity import HASH_REVISION, perceptual_hash
from pairforge.config import canonical_json, fingerprint
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels
from pairforge.records import Frozen, SampleError, parse_stored
from pairforge.storage import Storage
from pipelines.bases import normalise
from pipelines.ground_truth.backends import local_measurer, screen_address
from pipelines.ground_truth.settings import ClipScreen, GroundTruthConfig, HeldOut
from pipelines.reading import read_source
from pipelines.settings import FileSources, GroupRule, Normalisation
from pipelines.sources import Found, list_sources

_LIMITS = DecodeLimits(max_bytes=2**28, max_pixels=2**28, max_side=2**15, min_side=1)
_READERS = 8


class HeldOutPicture(Frozen):
    """One picture of a benchmark. `set` is its name in the config, `embedding` empty where none is compared."""

    set: str
    uri: str
    hash: int
    embedding: tuple[float, ...] = ()


class _Stored(Frozen):
    pictures: tuple[HeldOutPicture, ...]


def held_out_pictures(config: GroundTruthConfig, storage: Storage) -> list[HeldOutPicture]:
    """All pictures of all held-out folders. Raises ValueError for a folder without pictures or with unreadable ones:
    what cannot be compared would be trained on.
    """
    return [picture for stated in config.select.held_out for picture in _of_set(config, stated, storage)]


def _of_set(config: GroundTruthConfig, stated: HeldOut, storage: Storage) -> Sequence[HeldOutPicture]:
    listed = list(
        list_sources(FileSources(kind="files", url=stated.url, licence="unknown", group=GroupRule(by="file")))
    )
    if not listed:
        raise ValueError(f"select.held_out: {stated.name}: no picture at {stated.url}")
    clip = config.step("clip") if config.select.held_out_cosine is not None else None
    assert clip is None or isinstance(clip, ClipScreen)
    base = config.base.model_copy(update={"small": "keep"})
    seen_by = screen_address(clip, config.services, base) if clip else ""
    cut = base.model_dump(mode="json")
    listing = fingerprint([stated.name, HASH_REVISION, cut, seen_by, [[f.uri, f.stamp] for f in listed]])
    name = f"held_out/{stated.name}-{listing[:16]}.json"
    try:
        return parse_stored(_Stored, storage.read(name), name).pictures
    except FileNotFoundError:
        pass
    with ThreadPoolExecutor(_READERS) as pool:
        pictures = tuple(pool.map(lambda found: _hashed(stated, found, base), listed))
    if clip is not None:
        pictures = tuple(_embedded(clip, base, listed, pictures))
    storage.write(name, canonical_json(_Stored(pictures=pictures)).encode())
    return pictures


def _hashed(stated: HeldOut, found: Found, base: Normalisation) -> HeldOutPicture:
    try:
        pixels = _cut(found, base)
    except SampleError as refusal:
        raise ValueError(f"select.held_out: {stated.name}: {found.uri} cannot be compared: {refusal}") from refusal
    return HeldOutPicture(set=stated.name, uri=found.uri, hash=perceptual_hash(pixels))


def _embedded(
    clip: ClipScreen, base: Normalisation, listed: Sequence[Found], pictures: Sequence[HeldOutPicture]
) -> Iterator[HeldOutPicture]:
    """Pictures with their embeddings, by the model of the screening step, in this process."""
    measurer = local_measurer(clip)
    for found, picture in zip(listed, pictures, strict=True):
        embedding = measurer.measure([_cut(found, base)])[0]["embedding"]
        assert isinstance(embedding, list)
        yield picture.model_copy(update={"embedding": tuple(embedding)})


def _cut(found: Found, base: Normalisation) -> Pixels:
    if found.refusal is not None:
        raise found.refusal
    pixels, _ = decode_source(read_source(found.uri, found.locator), _LIMITS)
    return normalise(pixels, base)[0]
