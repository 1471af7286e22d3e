"""The true clients, gates and journal against a faulty loopback service, in a driver that is killed again and again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pairforge.image import encode_png
from pairforge.journal_log import Intent, Outcome, Row, read_rows
from pairforge.journal_spend import spend, total
from pairforge.protocols import Trouble
from pairforge.rng import rng_for
from pairforge.storage import open_storage
from tests.api_server import (
    Act,
    ApiServer,
    Call,
    Drip,
    Drop,
    Entry,
    Fail,
    Hang,
    Raw,
    Refuse,
    Say,
    Show,
    api_server,
)

SECRET = "sk-planted-77aa88bb99cc"
RECORDS, THREADS, KILLS = 60, 8, 2
CAP_USD = 20.0

_DRIVER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pairforge.journal import Partition
from pairforge.journal_spend import spend, total
from pairforge.limits import Budget, ClockedGate, Limits, Patience
from pairforge.protocols import BackendError
from pairforge.remote import ChatRequest, EditRequest, Endpoint, Paid, Picture, Prices, open_remote, paying
from pairforge.storage import open_storage

root, url, records, threads, cap_usd, result = sys.argv[1:7]
storage = open_storage(root)
budget = Budget(float(cap_usd), total(spend(storage)).usd)
prices = Prices(usd_per_image=0.04, usd_per_1m_input_tokens=1.0, usd_per_1m_output_tokens=10.0)

def client(backend):
    base = url + "/v1" if backend.startswith("openai") else url
    endpoint = Endpoint(backend=backend, model="tiny", base_url=base, api_key_env="PLANTED_KEY", timeout_s=1.2,
                        prices=prices, max_picture_tokens=500, max_image_output_tokens=1500)
    limits = Limits(requests_per_min=60000, max_pause_s=0.2, quota_pause_s=0.02, breaker_failures=50)
    patience = Patience(backoff_s=0.01, max_backoff_s=0.05, max_requests=30, deadline_s=60)
    return Paid(open_remote(endpoint), ClockedGate(limits), budget, patience)

images = [client("gemini_images"), client("openai_images")]
judges = [client("openai_chat"), client("gemini_chat")]
partition = Partition(storage, "haze/0001")
png = Path(sys.argv[7]).read_bytes()

def work(n):
    key = f"r{n}"
    try:
        with paying(partition, key, "generate", 0):
            made = images[n % 2].ask(EditRequest(f"record:{key} clear the haze", Picture(png), None, n))
        with paying(partition, key, "judge", 0):
            said = judges[n // 2 % 2].ask(ChatRequest(f"record:{key} compare", (Picture(png), Picture(made.data))))
        return key, [len(made.data), json.loads(said.text)["score"]]
    except BackendError as error:
        return key, str(error.trouble)
    except ValueError:
        return key, "unreadable"

with ThreadPoolExecutor(int(threads)) as pool:
    found = dict(pool.map(work, range(int(records))))
Path(result).write_text(json.dumps(found, sort_keys=True))
print("done", len(found), repr(images), repr(judges))
"""


def fault_script(call: Call) -> Act:
    """A quarter of all requests meets a fault. What is an answer depends on the record alone, so kills change none."""
    draw = rng_for(1, call.route, call.key, call.attempt)
    fate = rng_for(2, call.route, call.key).random()
    if draw.random() < 0.18:
        passing: tuple[Act, ...] = (
            Fail(429, headers={"Retry-After": "0"}),
            Fail(500),
            Raw(b"<html>bad gateway</html>", 502),
            Hang(1.5),
            Drop(),
            Drip(Say("{}") if call.route == "chat" else Show((b"x" * 50,)), 0.1),
        )
        return passing[int(draw.integers(len(passing)))]
    if fate < 0.07:
        lasting: tuple[Act, ...] = (
            Refuse(),
            Raw(b"<html>hello</html>"),
            Raw(b'{"choices": [', mime="application/json"),
        )
        return lasting[int(fate / 0.07 * 3)]
    side = 6 if fate > 0.12 else 3  # some images have the wrong size
    if call.route == "edits" or "clear" in call.text:
        return Show((encode_png(np.full((side, 8, 3), int(fate * 255), np.uint8)),))
    score = json.dumps({"score": int(100 * fate)})
    return Say(score if fate > 0.16 else f"Sure! Here it is:\n{score}")


def drive(server: ApiServer, folder: Path, name: str, kills: int, cap_usd: float = CAP_USD) -> str:
    """Run the driver to its end, killing it at random moments; everything it printed."""
    picture = folder / "in.png"
    picture.write_bytes(encode_png(np.full((6, 8, 3), 50, np.uint8)))
    environment = {**os.environ, "PLANTED_KEY": SECRET, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    arguments = [str(folder / name), server.url, RECORDS, THREADS, cap_usd, folder / f"{name}.json", picture]
    command = [sys.executable, "-W", "ignore", "-c", _DRIVER, *map(str, arguments)]
    draw, said, left = rng_for(3, name), "", kills
    while True:
        seen = len(server.ledger)
        output = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True) as process:
            stop_at = seen + int(draw.integers(10, 40))
            while left and process.poll() is None and len(server.ledger) < stop_at:
                time.sleep(0.005)
            if left:
                os.kill(process.pid, signal.SIGKILL)
            said += process.communicate(timeout=90)[0]
        if process.returncode == 0 and not left:
            return said
        assert process.returncode == -signal.SIGKILL, said
        left -= 1


def sold_by_key(entries: list[Entry]) -> Counter[str]:
    """Answers that were given whole, by route and key: what a client that lost none buys once."""
    return Counter(f"{entry.call.route}:{entry.call.key}" for entry in entries if isinstance(entry.act, Say | Show))


def answered(rows: list[Row]) -> Counter[str]:
    intents = {row.request: row for row in rows if isinstance(row, Intent)}
    found: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Outcome) and row.trouble is None:
            found[f"{intents[row.request].address.stage}:{intents[row.request].address.key}"] += 1
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[list[Entry], str]]]:
    """One run left in peace, one that is killed, each with a service of its own."""
    folder = tmp_path_factory.mktemp("paid")
    done: dict[str, tuple[list[Entry], str]] = {}
    for name, kills in (("peace", 0), ("killed", KILLS)):
        with api_server(fault_script, key=SECRET) as server:
            said = drive(server, folder, name, kills)
            done[name] = (list(server.ledger), said)
    return folder, done


Runs = tuple[Path, dict[str, tuple[list[Entry], str]]]


def test_kills_change_no_result(runs: Runs) -> None:
    folder, _ = runs
    peace, killed = (json.loads((folder / f"{name}.json").read_text()) for name in ("peace", "killed"))
    assert peace == killed and len(peace) == RECORDS, "planned = what has a result"
    kinds = Counter("kept" if isinstance(value, list) else value for value in peace.values())
    assert kinds["kept"] > RECORDS / 2 and {"refused", "malformed", "unreadable"} <= set(kinds)
    assert not set(kinds) & {"timeout", "quota", "unavailable"}, "transient trouble was waited out"


def test_no_answer_that_was_journaled_is_bought_again(runs: Runs) -> None:
    folder, done = runs
    for name, kills in (("peace", 0), ("killed", KILLS)):
        rows = read_rows(open_storage(str(folder / name)), "haze/0001")
        assert max(answered(rows).values()) == 1, name
        again = sum(count - 1 for count in sold_by_key(done[name][0]).values())
        # Every route and key is one question; gemini serves both stages of some records.
        both = sum(1 for key, n in answered(rows).items() if key.startswith("judge:") and shares_route(key))
        assert again - both <= kills * THREADS, name
        if not kills:
            ended = sum(isinstance(row, Outcome) and row.trouble == Trouble.TIMEOUT for row in rows)
            late = ended - sum(isinstance(entry.act, Hang | Drip) for entry in done[name][0])
            assert both <= again <= both + late, "an answer that came too late on a busy machine is bought again"


def shares_route(key: str) -> bool:
    n = int(key.rpartition("r")[2])
    return n % 2 == 0 and n // 2 % 2 == 1


def test_the_journal_knows_of_every_request_that_was_charged(runs: Runs) -> None:
    folder, done = runs
    for name in ("peace", "killed"):
        spent = total(spend(open_storage(str(folder / name))))
        entries = done[name][0]
        assert spent.requests >= len(entries)
        assert spent.usd >= 0.04 * sum(e.charged for e in entries if e.call.route == "edits") and spent.usd <= CAP_USD
        assert spent.unanswered <= (KILLS * THREADS if name == "killed" else 0)
        faults = sum(not isinstance(entry.act, Say | Show) for entry in entries)
        assert 0.15 <= faults / len(entries) <= 0.4, "about a quarter of requests met a fault"


def test_the_key_is_in_no_file_and_no_message(runs: Runs) -> None:
    folder, done = runs
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path.name
    for _, said in done.values():
        assert SECRET not in said and "done" in said


def test_objects_are_few(runs: Runs) -> None:
    folder, _ = runs
    storage = open_storage(str(folder / "peace"))
    assert len(list(storage.list("journal/"))) <= 2
    replies = {entry.name.rpartition("/")[2] for entry in storage.list("replies/")}
    assert all(hashlib.sha256(storage.read(f"replies/{name[:2]}/{name}")).hexdigest() == name for name in replies)


def test_a_cap_ends_buying_before_it_is_passed(tmp_path: Path) -> None:
    with api_server(fault_script, key=SECRET) as server:
        drive(server, tmp_path, "capped", 0, cap_usd=1.0)
        charged = sum(entry.charged for entry in server.ledger if entry.call.route == "edits")
    spent = total(spend(open_storage(str(tmp_path / "capped"))))
    assert 0.04 * charged <= spent.usd <= 1.0 + 1e-9
    found = json.loads((tmp_path / "capped.json").read_text())
    assert len(found) == RECORDS and Counter(map(str, found.values()))["quota"] > 0
