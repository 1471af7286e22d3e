"""A world for the ground-truth line: small photos, a config of true clients, and a scripted service on loopback.

Pictures carry their flaws: the painter stamps into a corner which aspects it got wrong, the judge reads the stamp. A
flaw goes away when the sentence about its aspect is in the instruction, else by luck alone. What is an answer depends
on the question alone, so that neither kills nor passing faults change what a record deserves; passing faults depend
on how often a question was asked.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

from generators.prompts import strengthening
from pairforge.image import Pixels, decode_png, encode_png
from pairforge.journal_log import JOURNAL, Intent, Outcome, Row, read_rows
from pairforge.journal_spend import Spend, spend, total
from pairforge.protocols import ASPECTS
from pairforge.rng import rng_for
from pairforge.snapshot import open_snapshot
from pairforge.storage import open_storage
from pipelines.ground_truth.settings import GroundTruthConfig
from tests.api_server import Act, ApiServer, Call, Drip, Drop, Entry, Fail, Half, Hang, Raw, Refuse, Say, Show

KEY_ENV = "TRUTH_WORLD_KEY"
SECRET = "sk-planted-31c7f0aa54e2"
MODELS = ("painter", "spare", "judge", "writer")
SIDE = 64
_BLOCK = 6
_SENTENCES = {aspect: strengthening([aspect]) for aspect in ASPECTS}
_TOKENS = {"judge": (900, 120), "writer": (400, 150)}
_USD_PER_IMAGE = {"painter": 0.04, "spare": 0.05}
_PROMPT = (
    "Restore the picture: take the noise out of the dark parts, sharpen the edges in the middle, and keep every thing "
    "at its place, with its own colour and texture."
)


@dataclass
class Service:
    """The script. `passing` and `lasting` are shares of requests that meet a fault that is waited out, or an answer.

    `away` is the share of records for which the painter never answers, `unscored` that for which the judge never
    answers readably, `echo` is put into the words of every fault.
    """

    seed: int = 1
    passing: float = 0.18
    lasting: float = 0.07
    away: float = 0.01
    unscored: float = 0.0
    hang_s: float = 1.5
    retry_after_s: float = 0.05
    luck: float = 0.15
    hopeless: float = 0.05
    echo: str = "scripted"
    asked: Counter[tuple[str, ...]] = field(default_factory=Counter)
    told: Counter[tuple[str, ...]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Act:
        act, kind = self._act(call)
        with self.lock:
            self.faults[kind] += 1
        return act

    def _act(self, call: Call) -> tuple[Act, str]:
        lq = call.images[0]
        record = record_of(lq)
        draw_seed = str(call.body.get("generationConfig", {}).get("seed", ""))
        question = (call.model, record, _hash(call.images[-1]), _hash(call.text.encode()), draw_seed)
        if call.model == "painter" and self._draw("away", record) < self.away:
            return Fail(503, self.echo), "away"
        with self.lock:
            asked = self.asked[question]
            self.asked[question] += 1
        if asked % 4 < 3 and self._draw("passing", *question, str(asked)) < self.passing:
            return self._passing(call, question, asked)
        if call.model in ("painter", "spare"):
            return self._paint(call.model, lq, record, call.text, draw_seed)
        with self.lock:
            told = self.told[question]
            self.told[question] += 1
        if call.model == "writer":
            if told == 0 and self._draw("writer", record) < self.lasting:
                return Say(f"{{{self.echo}}}", tokens=_TOKENS["writer"]), "prose"
            return _written(record), "right"
        return self._judge(question, record, call.images[-1], told)

    def _passing(self, call: Call, question: tuple[str, ...], asked: int) -> tuple[Act, str]:
        right: Say | Show = Say("{}" * 20) if call.route == "chat" else Show((b"x" * 50,))
        kinds: dict[str, Act] = {
            "429": Fail(429, self.echo, headers={"Retry-After": f"{self.retry_after_s:g}"}),
            "500": Fail(500, self.echo),
            "html 502": Raw(f"<html>{self.echo}</html>".encode(), 502),
            "hang": Hang(self.hang_s),
            "drop": Drop(),
            "drip": Drip(right, 0.1),
            "half": Half(right),
        }
        names = tuple(kinds)
        name = names[int(self._draw("kind", *question, str(asked)) * len(names))]
        return kinds[name], name

    def _paint(self, model: str, lq: bytes, record: str, text: str, draw_seed: str) -> tuple[Act, str]:
        fate = self._draw("paint", model, record, text, draw_seed) / max(self.lasting, 1e-9)
        if model == "painter" and fate < 1:
            answers: tuple[tuple[Act, str], ...] = (
                (Refuse(), "refusal"),
                (Raw(f"<html>{self.echo}</html>".encode()), "html 200"),
                (Raw(b'{"candidates": [{"content"', mime="application/json"), "cut json"),
                (Show((b"no picture",), text=self.echo), "no picture"),
                (Show((encode_png(decode_png(lq)[: SIDE // 2]),)), "wrong size"),
            )
            return answers[int(fate * len(answers))]
        flaws = self._flaws(record, text, draw_seed)
        return Show((_stamped(lq, flaws, f"{model}{draw_seed}{text}"),)), "right"

    def _flaws(self, record: str, text: str, draw_seed: str) -> tuple[str, ...]:
        """What this draw gets wrong of what is hard in this record."""
        rng = rng_for(self.seed, "nature", record)
        count = int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))
        hard = [ASPECTS[int(place)] for place in rng.permutation(len(ASPECTS))[:count]]
        deaf = float(rng.random()) < self.hopeless
        return tuple(
            aspect
            for aspect in ASPECTS
            if aspect in hard
            and (deaf or _SENTENCES[aspect] not in text)
            and self._draw("luck", record, aspect, draw_seed) >= self.luck
        )

    def _judge(self, question: tuple[str, ...], record: str, hq: bytes, told: int) -> tuple[Act, str]:
        failed = _read_stamp(hq)
        answer = _scored(failed)
        unreadable = self._draw("unscored", record) < self.unscored
        fate = self._draw("judge", *question) / max(self.lasting, 1e-9)
        if unreadable or (told == 0 and fate < 1):
            tokens = _TOKENS["judge"]
            answers: tuple[tuple[Act, str], ...] = (
                (Say(f"{self.echo}! Here it is:\n{answer}", tokens=tokens), "prose"),
                (Say(answer[: len(answer) // 2], finish="length", tokens=tokens), "cut answer"),
                (Say(answer, cut=True, tokens=tokens), "cut json"),
                (Raw(f"<html>{self.echo}</html>".encode()), "html 200"),
                (Refuse(), "refusal"),
            )
            return answers[int(fate * len(answers)) % len(answers)]
        return Say(answer, tokens=_TOKENS["judge"]), "right"

    def _draw(self, *names: str) -> float:
        return float(rng_for(self.seed, *names).random())


def charged_usd(entries: list[Entry]) -> float:
    """What the service would charge for: all work that it did, whether or not anybody got the reply."""
    usd = 0.0
    for entry in entries:
        model = entry.call.model
        if entry.charged and model in _USD_PER_IMAGE:
            usd += _USD_PER_IMAGE[model]
        elif isinstance(entry.act, Say | Refuse) and entry.call.route == "chat":
            usd += _token_usd((100, 5) if isinstance(entry.act, Refuse) else _TOKENS[model])
        elif isinstance(entry.act, Say):
            usd += _token_usd(_TOKENS[model])
    return usd


def _token_usd(tokens: tuple[int, int]) -> float:
    return (tokens[0] * 1.0 + tokens[1] * 10.0) / 1e6


def record_of(png: bytes) -> str:
    """The record of a photo, by its pixels."""
    return _record(_hash(png), png)


@lru_cache(maxsize=5000)
def _record(digest: str, png: bytes) -> str:
    return _hash(decode_png(png).tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _stamped(lq: bytes, flaws: tuple[str, ...], draw: str) -> bytes:
    """The photo made brighter, with a block for each aspect, white where it is wrong, and a mark of the draw."""
    pixels = cv2.add(decode_png(lq), 24)
    for place, aspect in enumerate(ASPECTS):
        pixels[:_BLOCK, place * _BLOCK : (place + 1) * _BLOCK] = 255 if aspect in flaws else 0
    mark = np.frombuffer(hashlib.sha256(draw.encode()).digest()[: 3 * _BLOCK], np.uint8)
    pixels[_BLOCK, :_BLOCK] = mark.reshape(_BLOCK, 3)
    return encode_png(pixels)


def _read_stamp(hq: bytes) -> tuple[str, ...]:
    pixels = decode_png(hq)
    blocks = [pixels[:_BLOCK, place * _BLOCK : (place + 1) * _BLOCK].mean() for place in range(len(ASPECTS))]
    return tuple(aspect for aspect, value in zip(ASPECTS, blocks, strict=True) if value > 128)


def _scored(failed: tuple[str, ...]) -> str:
    scores = {aspect: 30 if aspect in failed else 95 for aspect in ASPECTS}
    told = {aspect: {"reason": f"as stamped: {score}", "score": score} for aspect, score in scores.items()}
    return json.dumps({**told, "verdict": "Reject" if failed else "Accept"})


def _written(record: str) -> Say:
    return Say(f"{_PROMPT} Mind the part {record}.", tokens=_TOKENS["writer"])


def write_photos(folder: Path, count: int) -> Path:
    """So many photos, no two of the same bytes: crops of those that ship inside scikit-image."""
    folder.mkdir(parents=True, exist_ok=True)
    photos: list[Pixels] = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    for index in range(count):
        photo, rng = photos[index % len(photos)], rng_for(9, "photo", index)
        y, x = (int(rng.integers(side - SIDE)) for side in photo.shape[:2])
        pixels = np.ascontiguousarray(photo[y : y + SIDE, x : x + SIDE])
        pixels[-1, -1] = index % 256, index // 256, 0
        (folder / f"{index:05d}.png").write_bytes(encode_png(pixels))
    return folder


def config_data(output: Path, photos: Path, server: ApiServer, **changes: Any) -> dict[str, Any]:
    """A config of four remote models; `changes` replace top-level keys, those of `make` and `run` one by one."""
    prices = {"usd_per_1m_input_tokens": 1.0, "usd_per_1m_output_tokens": 10.0}
    limits = {
        "quota_pause_s": 0.02,
        "max_pause_s": 0.5,
        "breaker_failures": 12,
        "breaker_open_s": 0.1,
        "requests_per_min": 60_000,
    }
    patience = {"backoff_s": 0.01, "max_backoff_s": 0.05, "max_requests": 12, "deadline_s": 120}
    kinds = {"painter": "gemini_images", "spare": "openai_images", "judge": "openai_chat", "writer": "gemini_chat"}
    services = {
        name: {
            "backend": kind,
            "model": name,
            "base_url": server.openai_url if kind.startswith("openai") else server.url,
            "api_key_env": KEY_ENV,
            "timeout_s": 1.0,
            "max_picture_tokens": 500,
            "prices": {"usd_per_image": _USD_PER_IMAGE[name]} if name in _USD_PER_IMAGE else prices,
            "limits": limits,
            "patience": patience,
        }
        for name, kind in kinds.items()
    }
    data: dict[str, Any] = {
        "line": "ground_truth",
        "name": "world",
        "output": str(output),
        "seed": 5,
        "sources": [{"kind": "files", "url": str(photos), "licence": "CC0-1.0", "group": {"by": "file"}}],
        "split": {"val": 0, "test": 0},
        "limits": {"max_bytes": 10**7, "max_pixels": 10**7, "max_side": 10**4, "min_side": 16},
        "base": {"policy": "resize_crop", "size_px": SIDE, "small": "keep"},
        "services": services,
        "screen": [{"scorer": "statistics"}],
        "select": {"duplicates": {"most_bits": None}, "categories": [{"name": "noise"}]},
        "budget": {"cap_usd": 1000},
        "shards": {"records_per_shard": 25},
    }
    make = {
        "generator": {"backend": "service", "service": "painter"},
        "fallback": {"backend": "service", "service": "spare"},
        "prompts": {"strategy": "adaptive", "writer": "writer"},
        "judge": {"backend": "service", "service": "judge"},
        "checks": {"alignment": None, "gain": None},
        "in_flight": 24,
    }
    run = {"max_failed_fraction": 0.2, "workers": 2, "pools": {"make": {"max_actors": 2}}}
    nested = {"make": {**make, **changes.pop("make", {})}, "run": {**run, **changes.pop("run", {})}}
    return {**data, **nested, **changes}


def config_of(output: Path, photos: Path, server: ApiServer, **changes: Any) -> GroundTruthConfig:
    return GroundTruthConfig.model_validate(config_data(output, photos, server, **changes))


def start(config: Mapping[str, Any], *options: str, command: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """`pairforge run` with these options, or another command, in a session of its own.

    Its config is written beside its output, and what it prints is added to a file there: see `said`.
    """
    path = Path(f"{config['output']}.yaml")
    path.write_text(json.dumps(config))
    environment = {**os.environ, KEY_ENV: SECRET, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    called = [sys.executable, "-W", "ignore", "-m", "pipelines.cli", *(command or ("run", str(path))), *options]
    with Path(f"{config['output']}.said").open("ab") as file:
        return subprocess.Popen(called, env=environment, stdout=file, stderr=file, start_new_session=True)


def drive(config: Mapping[str, Any], *options: str, command: Sequence[str] = (), timeout_s: float = 250) -> int:
    """`start`, to its end; the exit code. Where this ends before it does, so does the command."""
    with start(config, *options, command=command) as process:
        try:
            return process.wait(timeout_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def said(output: Path) -> str:
    """All that commands printed, to either stream."""
    return Path(f"{output}.said").read_text(errors="replace")


def fates(output: Path) -> dict[str, tuple[str, str, str | None]]:
    """Fate, reason and hash of HQ of every record of the latest snapshot, by the id of its source."""
    rows = open_snapshot(str(output)).rows(["source_id", "fate", "reason", "hq_sha256"]).to_pylist()
    found = {row["source_id"]: (row["fate"], row["reason"], row["hq_sha256"]) for row in rows}
    assert len(found) == len(rows), "a record stands twice"
    return found


def shard_hashes(output: Path) -> dict[str, str]:
    """SHA-256 of every tar and parquet below shards/; markers hold times and are left out."""
    storage = open_storage(str(output))
    names = [entry.name for entry in storage.list("shards/") if not entry.name.endswith(".marker.json")]
    return {name: hashlib.sha256(storage.read(name)).hexdigest() for name in names}


def journal_rows(output: Path) -> dict[str, list[Row]]:
    """All rows of all partitions."""
    storage = open_storage(str(output))
    names = {entry.name.removeprefix(JOURNAL).rpartition("/")[0] for entry in storage.list(JOURNAL)}
    return {name: read_rows(storage, name) for name in sorted(names)}


def audit(output: Path, entries: list[Entry], cap_usd: float | None = None, lost: int = 0) -> Spend:
    """What must hold of a journal against the ledger of the service; at most `lost` requests died with their driver.

    No question is sent again at an address where its final answer stands; every request that the service read has its
    intent; all that was charged is in the sum, and the sum within the cap. Gives the spend.
    """
    intents: dict[str, Intent] = {}
    timeouts, answered, unanswered = 0, 0, 0
    for rows in journal_rows(output).values():
        final: set[tuple[Any, str]] = set()
        open_here: dict[str, Intent] = {}
        for row in rows:
            if isinstance(row, Intent):
                assert (row.address, row.question) not in final, f"{row.address} was answered and is bought again"
                open_here[row.request] = intents[row.request] = row
            elif isinstance(row, Outcome):
                intent = open_here.pop(row.request)
                timeouts += row.trouble == "timeout"
                answered += row.trouble is None
                if row.final:
                    assert (intent.address, intent.question) not in final, f"{intent.address} has two final answers"
                    final.add((intent.address, intent.question))
        unanswered += len(open_here)
    spent = total(spend(open_storage(str(output))))
    silent = sum(isinstance(entry.act, Hang | Drip) for entry in entries)
    late = max(0, timeouts - silent) + lost
    assert spent.requests == len(intents) and spent.unanswered == unanswered <= lost
    assert 0 <= len(intents) - len(entries) <= late, "every request was written down before it was sent"
    whole = sum(_readable(entry) for entry in entries)
    assert 0 <= whole - answered <= late, "an answer that came in time is in the journal"
    assert spent.unpriced == 0 and spent.usd >= charged_usd(entries) - 1e-9
    if cap_usd is not None:
        assert spent.usd <= cap_usd + 1e-6, "the cap was passed"
    return spent


def unsure_usd(output: Path) -> float:
    """The prices set aside for requests that ended, of which nobody told what they cost."""
    usd = 0.0
    for rows in journal_rows(output).values():
        reserved = {row.request: row.reserved_usd or 0.0 for row in rows if isinstance(row, Intent)}
        usd += sum(reserved[row.request] for row in rows if isinstance(row, Outcome) and row.cost_usd is None)
    return usd


def _readable(entry: Entry) -> bool:
    """Whether a client takes it for a reply, whatever is in it."""
    act = entry.act
    if isinstance(act, Say):
        return not act.cut and act.finish == "stop"
    return isinstance(act, Show)
