"""Pattern banks: numbered images of one kind, listed with their hashes in `bank.json`, which is written last.

A recipe that uses a bank draws patterns of it for every record; those it drew are copied into the dataset,
so that a record can be replayed without the bank.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from degradations.banks import GENERATORS
from degradations.base import Pattern
from degradations.moire_bank import diversity
from pairforge.config import canonical_json
from pairforge.config_words import near
from pairforge.decode import DecodeLimits, decode_source
from pairforge.image import Pixels, encode_png
from pairforge.records import DamagedError, Fate, Frozen, SampleError, parse_stored
from pairforge.storage import Storage, open_storage
from pipelines.engine import Backend, Engine, EngineSettings
from pipelines.settings import BANK_KINDS
from pipelines.stages import Stage

BANK_FILE = "bank.json"
_PATTERNS_A_CALL = 8
_LIMITS = DecodeLimits(max_bytes=10**9, max_pixels=10**8, max_side=20_000, min_side=16)
_PINS = "banks/"
"""Below a dataset: the banks that its records were drawn from."""
_THUMB_PX = 96
_LEAST_SPREAD = 0.5
"""Codes that a reduced picture must vary by, else it is flat."""
_ON_BLACK = ("flare", "rain")
"""Kinds whose patterns are light on black. Haze may fill a frame, and moiré lies around grey."""
_MOST_DARK_CODE, _MOST_MIDDLE_CODE = 64, 128
"""On black: the brightest channel is no brighter in a tenth, and in a half, of the picture."""
_MOST_NAMED = 5


class BankEntry(Frozen):
    """One pattern: its name below the bank, the SHA-256 of its PNG, and what it was made of."""

    name: str
    sha256: str
    origin: str


class Bank(Frozen):
    """What `bank.json` holds. `highest_correlation` is that of the two moiré patterns most alike, over all shifts.

    Of other kinds it would say little: flares share their bright middle.
    """

    kind: str
    licence: str
    attribution: str
    highest_correlation: float | None
    entries: tuple[BankEntry, ...]


class BankRef(Frozen):
    """A bank as a plan pins it: where it lies, and the SHA-256 of its `bank.json`."""

    kind: str
    url: str
    sha256: str


@dataclass(frozen=True)
class BankOrder:
    """What `build` is to make."""

    kind: str
    count: int
    seed: int
    url: str

    def name(self, index: int) -> str:
        generator = GENERATORS[self.kind]
        return f"patterns/{self.kind}-g{generator.version}-s{self.seed}-{index:05d}.png"


def pin_bank(kind: str, url: str, dataset: Storage | None = None) -> BankRef:
    """The bank at `url` as it is now; where it is gone, as the dataset last knew it, for what was made already.

    Raises ValueError where there is none of this kind.
    """
    try:
        data = _read_list(url)
    except ValueError:
        kept = _kept_pin(dataset, kind, url) if dataset else None
        if kept is None:
            raise
        return kept
    bank = parse_stored(Bank, data, f"{url}/{BANK_FILE}")
    if bank.kind != kind:
        raise ValueError(f"{url} holds a bank of {bank.kind} patterns; {kind} patterns are wanted here")
    return BankRef(kind=kind, url=url, sha256=hashlib.sha256(data).hexdigest())


def keep_pins(dataset: Storage, pins: Iterable[BankRef]) -> None:
    """Note which banks a dataset is made from, so that a finished one can be planned again without them."""
    for pin in pins:
        if _kept_pin(dataset, pin.kind, pin.url) != pin:
            dataset.write(f"{_PINS}{pin.kind}.json", canonical_json(pin).encode())


def _kept_pin(dataset: Storage, kind: str, url: str) -> BankRef | None:
    name = f"{_PINS}{kind}.json"
    try:
        kept = parse_stored(BankRef, dataset.read(name), dataset.url(name))
    except FileNotFoundError:
        return None
    return kept if (kept.kind, kept.url) == (kind, url) else None


def open_bank(url: str) -> Bank:
    """The bank at `url`. Raises ValueError where there is none."""
    return parse_stored(Bank, _read_list(url), f"{url}/{BANK_FILE}")


def _read_list(url: str) -> bytes:
    try:
        return open_storage(url).read(BANK_FILE)
    except FileNotFoundError as error:
        raise ValueError(f"{url} holds no bank: {BANK_FILE} is missing (`pairforge bank build` writes one)") from error


@cache
def read_bank(ref: BankRef) -> Bank:
    """A pinned bank. Raises DamagedError where it has changed since, or is gone."""
    try:
        data = open_storage(ref.url).read(BANK_FILE)
    except FileNotFoundError as error:
        raise DamagedError(f"{ref.url}/{BANK_FILE} is gone, and there are records left to make with it") from error
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise DamagedError(f"{ref.url}/{BANK_FILE} has changed since the run was planned")
    return parse_stored(Bank, data, f"{ref.url}/{BANK_FILE}")


def read_pattern_png(url: str, entry: BankEntry) -> bytes:
    """The bytes of one pattern. Raises DamagedError where they are gone or have changed."""
    try:
        data = open_storage(url).read(entry.name)
    except FileNotFoundError as error:
        raise DamagedError(f"{url}/{entry.name} is gone") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamagedError(f"{url}/{entry.name} does not have the SHA-256 that the bank names")
    return data


def decode_pattern(png: bytes) -> Pattern:
    """(h, w, 3) RGB, 8 or 16 bit, of a PNG that a bank holds. Raises ValueError for anything else."""
    stored = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) if png else None
    if stored is None or stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype not in (np.uint8, np.uint16):
        raise ValueError("not an RGB PNG of 8 or 16 bit")
    pattern: Pattern = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    return pattern


def _make_patterns(order: BankOrder) -> Callable[[tuple[int, int]], int]:
    return partial(_make_range, order)


def _make_range(order: BankOrder, indices: tuple[int, int]) -> int:
    storage = open_storage(order.url)
    for index in range(*indices):
        if not storage.exists(order.name(index)):
            storage.write(order.name(index), encode_png(GENERATORS[order.kind].make(index, order.seed)))
    return indices[1] - indices[0]


PATTERNS = Stage("patterns", 1, _make_patterns)


def build_bank(
    order: BankOrder, backend_for: Callable[[tuple[Stage, ...], Any], Backend], on_made: Callable[[int], None]
) -> Bank:
    """Make the patterns of a bank that are missing, measure how alike they are, write `bank.json`.

    Raises ValueError for an unknown kind, or a folder that holds another bank.
    """
    if order.kind not in GENERATORS:
        raise ValueError(f"{order.kind!r} patterns cannot be built; allowed: {', '.join(sorted(GENERATORS))}")
    storage = open_storage(order.url)
    _refuse_other_kind(storage, order.kind)
    _refuse_other_patterns(storage, order)
    ranges = [(start, min(start + _PATTERNS_A_CALL, order.count)) for start in range(0, order.count, _PATTERNS_A_CALL)]
    backend = backend_for((PATTERNS,), order)
    try:
        engine = Engine[tuple[int, int]](backend, EngineSettings(), label_of=lambda indices: f"patterns {indices[0]}")
        for outcome in engine.run(iter(ranges)):
            if outcome.fault is not None:
                raise outcome.fault
            on_made(outcome.result)
    finally:
        backend.close()
    names = [order.name(index) for index in range(order.count)]
    origin = f"{order.kind} generator {GENERATORS[order.kind].version}, seed {order.seed}"
    return _write_bank(storage, order.kind, "CC0-1.0", "made by PairForge", dict.fromkeys(names, origin))


def import_bank(kind: str, folder: Path, url: str, licence: str, attribution: str) -> tuple[Bank, Mapping[str, str]]:
    """A bank of the pictures below `folder`, and why each of those left out was.

    Raises ValueError for an unknown kind, and where no picture is usable.
    """
    if kind not in BANK_KINDS:
        raise ValueError(f"no step takes {kind!r} patterns{near(kind, BANK_KINDS)} (allowed: {', '.join(BANK_KINDS)})")
    storage = open_storage(url)
    _refuse_other_kind(storage, kind)
    origins: dict[str, str] = {}
    refused: dict[str, str] = {}
    for path in _pictures(folder):
        relative = path.relative_to(folder).as_posix()
        try:
            pixels, _ = decode_source(path.read_bytes(), _LIMITS)
            _check_pattern(kind, pixels)
        except (SampleError, OSError) as refusal:
            refused[relative] = getattr(refusal, "strerror", None) or str(refusal)
            continue
        png = encode_png(pixels)
        name = f"patterns/{kind}-{hashlib.sha256(png).hexdigest()[:24]}.png"
        storage.write(name, png)
        origins.setdefault(name, relative)
    if not origins:
        named = "".join(f"; {name}: {why}" for name, why in list(refused.items())[:_MOST_NAMED])
        more = f"; and {len(refused) - _MOST_NAMED} more" if len(refused) > _MOST_NAMED else ""
        raise ValueError(f"{folder} holds no usable picture{named}{more}")
    return _write_bank(storage, kind, licence, attribution, origins), refused


def _check_pattern(kind: str, pixels: Pixels) -> None:
    """Raises SampleError for a picture that is plainly no pattern of this kind."""
    thumb = cv2.resize(pixels, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA)
    if float(thumb.std(axis=(0, 1)).max()) < _LEAST_SPREAD:
        raise SampleError("flat", "one colour all over holds no pattern", Fate.REJECTED)
    dark, middle = np.quantile(thumb.max(axis=2), (0.1, 0.5)).tolist()
    if kind in _ON_BLACK and (dark > _MOST_DARK_CODE or middle > _MOST_MIDDLE_CODE):
        raise SampleError(
            "not_on_black",
            f"{kind} is light on black, but a tenth of it is no darker than code {dark:.0f} (allowed: "
            f"{_MOST_DARK_CODE}), and half of it than {middle:.0f} (allowed: {_MOST_MIDDLE_CODE})",
            Fate.REJECTED,
        )


def _pictures(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _refuse_other_kind(storage: Storage, kind: str) -> None:
    if storage.exists(BANK_FILE):
        held = parse_stored(Bank, storage.read(BANK_FILE), storage.url(BANK_FILE))
        if held.kind != kind:
            raise ValueError(f"{storage.root} holds a bank of {held.kind} patterns; choose another place")


def _refuse_other_patterns(storage: Storage, order: BankOrder) -> None:
    """A bank that configs use may grow, and do nothing else."""
    if not storage.exists(BANK_FILE):
        return
    held = {entry.name for entry in open_bank(storage.root).entries}
    if not held <= {order.name(index) for index in range(order.count)}:
        raise ValueError(
            f"{storage.root} holds {len(held)} other patterns (imported, of another seed, or more of them); "
            "choose another place"
        )


def _write_bank(storage: Storage, kind: str, licence: str, attribution: str, origins: Mapping[str, str]) -> Bank:
    entries: list[BankEntry] = []

    def patterns() -> Iterator[Pattern]:
        for name, origin in origins.items():
            png = storage.read(name)
            entries.append(BankEntry(name=name, sha256=hashlib.sha256(png).hexdigest(), origin=origin))
            yield decode_pattern(png)

    held = patterns()
    if kind == "moire" and len(origins) > 1:
        highest = round(diversity(held).at_most, 4)
    else:
        highest = None
        for _ in held:  # every one is read, hashed and decoded, whatever the kind
            pass
    bank = Bank(
        kind=kind, licence=licence, attribution=attribution, highest_correlation=highest, entries=tuple(entries)
    )
    storage.write(BANK_FILE, canonical_json(bank).encode())
    return bank
