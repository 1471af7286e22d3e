"""Nothing paid for is lost or bought twice: kills between any two steps, writers at the same time, bad storage."""

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pairforge import journal, journal_log, remote
from pairforge.journal import Partition, Superseded
from pairforge.journal_log import Address, Choice, Intent, Outcome, read_rows
from pairforge.journal_spend import Spend, seal, spend, spend_of, total
from pairforge.limits import Budget, BudgetSpent, Clock, ClockedGate, Limits, Patience
from pairforge.protocols import BackendError, Trouble, Usage
from pairforge.records import DamagedError, InfraError
from pairforge.remote import BackendMisconfigured, ChatRequest, Paid, RemoteError, Reply, Request, paying
from pairforge.storage import Storage, open_storage
from tests.s3_server import Fault, FaultyApp

FAILPOINTS = (
    "journal-before-intent",
    "journal-after-intent",
    "before-request",
    "after-request",
    "journal-before-bytes",
    "journal-after-bytes",
    "journal-after-outcome",
)
PRICE_USD = 0.04
Storages = Callable[[], Storage]


class Killed(BaseException):
    """What a failpoint raises here: passes every `except Exception`, as SIGKILL would."""


class Shop:
    """A service that remembers what it sold. Replies depend on the question alone; big ones do not fit a row."""

    name, revision = "shop", "1"

    def __init__(self, troubles: Callable[[str, int], BackendError | None] = lambda text, n: None) -> None:
        self.sold: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.troubles = troubles
        self.lock = threading.Lock()

    def ask(self, request: Request) -> Reply:
        assert isinstance(request, ChatRequest)
        with self.lock:
            self.asked[request.text] += 1
            trouble = self.troubles(request.text, self.asked[request.text])
            if trouble is not None:
                raise trouble
            self.sold[request.text] += 1
        return Reply(reply_to(request.text), "application/octet-stream", Usage(PRICE_USD, 10, 5))

    def question(self, request: Request) -> str:
        assert isinstance(request, ChatRequest)
        return hashlib.sha256(request.text.encode()).hexdigest()

    def reserve_usd(self, request: Request) -> float | None:
        return PRICE_USD

    def reserve_tokens(self, request: Request) -> int:
        return 15


def reply_to(text: str) -> bytes:
    return text.encode() * (2000 if "big" in text else 1) + (b"\xff" if "odd" in text else b"")


def no_time() -> Clock:
    return Clock(lambda: 0.0, lambda wait_s: None)


def paid(shop: Shop, budget: Budget | None = None) -> Paid:
    return Paid(shop, ClockedGate(Limits()), budget or Budget(None), Patience(), no_time())


def buy(client: Paid, partition: Partition, key: str, attempt: int = 0, text: str | None = None) -> bytes:
    with paying(partition, key, "generate", attempt):
        return client.ask(ChatRequest(text or f"{key}-{attempt}")).data


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Raise `Killed` at the n-th passage of a failpoint."""
    seen: Counter[str] = Counter()
    wanted: list[tuple[str, int]] = []

    def failpoint(name: str) -> None:
        seen[name] += 1
        if (name, seen[name]) in wanted:
            raise Killed(name)

    for module in (journal, journal_log, remote):
        monkeypatch.setattr(module, "failpoint", failpoint)

    def at(name: str, passage: int) -> None:
        wanted[:] = [(name, seen[name] + passage)]

    return at


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("key", ["small", "big", "odd", "big-odd"])
def test_a_reply_is_bought_once_and_comes_back_bit_for_bit(key: str, storage: Storage) -> None:
    shop = Shop()
    first = buy(paid(shop), Partition(storage, "haze/0001"), key)
    later = Partition(storage, "haze/0001")
    with paying(later, key, "generate", 0):
        again = paid(shop).ask(ChatRequest(f"{key}-0"))
    assert first == again.data == reply_to(f"{key}-0")
    assert (again.mime, again.usage) == ("application/octet-stream", Usage(PRICE_USD, 10, 5))
    assert shop.sold == {f"{key}-0": 1}
    objects = [entry.name for entry in storage.list("replies/")]
    assert len(objects) == (key != "small"), "short texts need no object of their own"


def test_equal_bytes_are_stored_once(storage: Storage) -> None:
    partition, shop = Partition(storage, "p"), Shop()
    for key in ("a", "b"):
        buy(paid(shop), partition, key, text="big")
    assert len(list(storage.list("replies/"))) == 1 and shop.sold["big"] == 2


def test_what_makes_another_question(storage: Storage) -> None:
    shop, partition = Shop(), Partition(storage, "p")
    buy(paid(shop), partition, "a", 0, "same")
    buy(paid(shop), partition, "a", 1, "same")  # a new draw
    buy(paid(shop), partition, "b", 0, "same")
    buy(paid(shop), partition, "a", 0, "same")  # replayed
    assert shop.sold["same"] == 3
    buy(paid(shop), partition, "a", 0, "another prompt")
    assert shop.sold["another prompt"] == 1, "a changed prompt is not answered by the old reply"
    with paying(partition, "a", "generate", 0):
        client = paid(shop)
        client.ask(ChatRequest("same"))
        client.ask(ChatRequest("same"))
    assert shop.sold["same"] == 4, "asked twice within an attempt, it is two draws"
    with paying(partition, "a", "generate", 0):
        for text in ("asked before it", "and before it", "this time", "same"):
            client.ask(ChatRequest(text))
    assert shop.sold["same"] == 4, "whatever else is asked around it"


def test_answers_that_are_trouble_are_replayed_and_transient_ones_asked_again(storage: Storage) -> None:
    table: dict[str, BackendError] = {
        "refused-0": RemoteError(Trouble.REFUSED, "no", None, Usage(0.01)),
        "cut-0": RemoteError(Trouble.MALFORMED, "cut", None, Usage(PRICE_USD)),
        "late-0": RemoteError(Trouble.TIMEOUT, "late", 3.0),
        "plain-0": BackendError(Trouble.UNAVAILABLE, "down"),
    }
    shop = Shop(lambda text, n: table.get(text))
    for _ in range(2):
        for text, trouble in table.items():
            with pytest.raises(BackendError) as caught:
                buy(
                    Paid(shop, ClockedGate(Limits(breaker_failures=99)), Budget(None), Patience(max_requests=1)),
                    Partition(storage, "p"),
                    text.removesuffix("-0"),
                )
            assert (caught.value.trouble, caught.value.detail) == (trouble.trouble, trouble.detail)
    assert shop.asked == {"refused-0": 1, "cut-0": 1, "late-0": 2, "plain-0": 2}
    spent = total(spend(storage))
    assert spent.usd == pytest.approx(0.01 + PRICE_USD + 4 * PRICE_USD), "an unknown cost counts as what was reserved"
    assert spent.outcomes["shop/1:generate:refused"] == 1 and spent.outcomes["shop/1:generate:timeout"] == 2


def test_a_question_asked_again_after_passing_trouble_keeps_its_address(storage: Storage) -> None:
    down = BackendError(Trouble.TIMEOUT, "late")
    shop = Shop(lambda text, n: down if n == 1 else RemoteError(Trouble.REFUSED, "no") if n == 3 else None)
    client = Paid(shop, ClockedGate(Limits()), Budget(None), Patience(max_requests=1))

    def block() -> tuple[bytes, str, bytes]:
        with paying(Partition(storage, "p"), "a", "generate", 0):
            try:
                first = client.ask(ChatRequest("x"))
            except BackendError:
                first = client.ask(ChatRequest("x"))
            with pytest.raises(BackendError) as caught:
                client.ask(ChatRequest("x"))
            return first.data, caught.value.detail, client.ask(ChatRequest("x")).data

    assert block() == block() == (b"x", "no", b"x")
    assert shop.asked["x"] == 4


def test_refused_settings_are_free_and_asked_again(storage: Storage) -> None:
    class Closed(Shop):
        def ask(self, request: Request) -> Reply:
            raise BackendMisconfigured("HTTP 404")

    budget = Budget(1.0)
    for _ in range(2):
        with pytest.raises(BackendMisconfigured):
            buy(paid(Closed(), budget), Partition(storage, "p"), "a")
    assert budget.spent_usd() == 0 and total(spend(storage)).usd == 0
    assert total(spend(storage)).outcomes == {"shop/1:generate:misconfigured": 2}


def test_questions_outside_of_paying_are_a_bug(storage: Storage) -> None:
    with pytest.raises(RuntimeError, match="paying"):
        paid(Shop()).ask(ChatRequest("a"))


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("name", FAILPOINTS)
@pytest.mark.parametrize("key", ["small", "big"])
def test_a_kill_between_any_two_steps(name: str, key: str, storage: Storage, kill: Callable[[str, int], None]) -> None:
    shop = Shop()
    kill(name, 1)
    with pytest.raises(Killed):
        buy(paid(shop), Partition(storage, "p"), key)
    sold_before = shop.sold[f"{key}-0"]
    spent = total(spend(storage))
    assert spent.usd >= sold_before * PRICE_USD - 1e-9, "the journal never knows of less than was sold"
    assert buy(paid(shop), Partition(storage, "p"), key) == reply_to(f"{key}-0")
    journaled = name == "journal-after-outcome"
    lost = sold_before and not journaled
    assert shop.sold[f"{key}-0"] == (2 if lost else 1), "at most the request in flight is bought again"
    spent = total(spend(storage))
    assert spent.unanswered == (name not in ("journal-before-intent", "journal-after-outcome"))
    assert spent.usd == pytest.approx(PRICE_USD * spent.requests)


@pytest.mark.parametrize("seed", range(3))
def test_many_kills_anywhere_lose_nothing_but_what_was_in_flight(
    seed: int, storage: Storage, kill: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_log, "_SEGMENT_BYTES", 1500)
    shop, draw, kills, cap_usd = Shop(), random.Random(seed), 0, 3.0
    keys = [f"{'big' if n % 3 == 0 else 'r'}{n}" for n in range(30)]
    while True:
        kill(draw.choice((*FAILPOINTS, "journal-between-segments")), draw.randint(1, 5))
        try:
            partition = Partition(storage, "p")
            budget = Budget(cap_usd, total(spend(storage)).usd)
            assert [buy(paid(shop, budget), partition, key) for key in keys] == [reply_to(f"{key}-0") for key in keys]
            break
        except Killed:
            kills += 1
    assert kills > 3, "the test killed"
    assert sum(shop.sold.values()) - len(keys) <= kills
    spent = total(spend(storage))
    assert sum(shop.sold.values()) * PRICE_USD <= spent.usd + 1e-9 <= cap_usd
    assert spent.unanswered <= kills and spent.outcomes["shop/1:generate:answered"] == len(keys)


_WORKER = """
import sys
from pathlib import Path
from pairforge.journal import Partition
from pairforge.limits import Budget, ClockedGate, Limits, Patience
from pairforge.protocols import Usage
from pairforge.remote import ChatRequest, Paid, Reply, paying
from pairforge.storage import open_storage

class Shop:
    name, revision = "shop", "1"
    def ask(self, request):
        with Path(sys.argv[2]).open("a") as ledger:
            ledger.write(request.text + "\\n")
        return Reply(request.text.encode() * 2000, "text/plain", Usage(0.04))
    def question(self, request): return request.text
    def reserve_usd(self, request): return 0.04
    def reserve_tokens(self, request): return 1

client = Paid(Shop(), ClockedGate(Limits()), Budget(None), Patience())
partition = Partition(open_storage(sys.argv[1]), "p")
for n in range(4):
    with paying(partition, f"r{n}", "generate", 0):
        client.ask(ChatRequest(f"r{n}"))
"""


def test_sigkill_at_every_failpoint(tmp_path: Path) -> None:
    """The same with true processes: each run dies at the second passage of one failpoint."""
    ledger, root = tmp_path / "ledger", str(tmp_path / "data")
    at = [f"{name}:2" for name in FAILPOINTS if name != "journal-before-bytes"]
    codes = []
    for failpoint in [*at, ""]:
        environment = {**os.environ, "PAIRFORGE_FAILPOINT": failpoint}
        command = [sys.executable, "-c", _WORKER, root, str(ledger)]
        codes.append(subprocess.run(command, env=environment, timeout=60).returncode)
    assert codes[-1] == 0 and codes.count(-9) >= 3
    sold = Counter(ledger.read_text().split())
    spent = total(spend(open_storage(root)))
    assert set(sold) == {f"r{n}" for n in range(4)} and sum(sold.values()) - 4 <= codes.count(-9)
    assert sum(sold.values()) * 0.04 <= spent.usd + 1e-9 and spent.outcomes == {"shop/1:generate:answered": 4}


# ---------------------------------------------------------------- writers at the same time


def run_threads(client: Paid, partition: Partition, keys: list[str], threads: int) -> list[bytes]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda key: buy(client, partition, key), keys))


def test_threads_share_writes_and_lose_none(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps: list[int] = []
    monkeypatch.setattr(journal_log, "_SEGMENT_BYTES", 20_000)
    swap = journal_log.Log._swap

    def counted(self: journal_log.Log, data: bytes) -> bool:
        swaps.append(data.count(b"\n"))
        return swap(self, data)

    monkeypatch.setattr(journal_log.Log, "_swap", counted)
    shop, keys = Shop(), [f"r{n}" for n in range(150)]
    assert run_threads(paid(shop), Partition(storage, "p"), keys, 16) == [reply_to(f"{key}-0") for key in keys]
    assert sum(swaps) >= 301 and max(swaps) > 1 and len(swaps) < 301, "rows share swaps"
    rows = read_rows(storage, "p")
    assert sum(isinstance(row, Intent) for row in rows) == sum(isinstance(row, Outcome) for row in rows) == 150
    assert len(list(storage.list("journal/"))) > 3, "several segments"
    run_threads(paid(shop), Partition(storage, "p"), keys, 16)
    assert max(shop.sold.values()) == 1


def test_threads_that_ask_the_same_question_buy_it_once(storage: Storage) -> None:
    shop = Shop()
    assert len(set(run_threads(paid(shop), Partition(storage, "p"), ["a"] * 12, 12))) == 1
    assert shop.sold == {"a-0": 1}


def test_a_worker_given_up_for_dead_may_finish_but_not_ask(storage: Storage) -> None:
    shop, old = Shop(), Partition(storage, "p")
    sent = old.intend(Address("a", "generate", 0), "q", "shop", PRICE_USD)
    new = Partition(storage, "p")
    old.answered(sent, Reply(b"late but paid", "text/plain", Usage(PRICE_USD)))
    budget = Budget(1.0)
    with pytest.raises(Superseded):
        buy(paid(shop, budget), old, "b")
    assert not shop.sold and budget.spent_usd() == 0
    buy(paid(shop), new, "b")
    found = new.find(Address("a", "generate", 0), "q")
    assert isinstance(found, Reply) and found.data == b"late but paid", "the new worker learned of it while writing"


def test_two_writers_of_one_partition_lose_no_row(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "_SEGMENT_BYTES", 2000)
    writers = [Partition(storage, "p") for _ in range(3)]

    def write(number: int) -> None:
        for n in range(25):
            writers[number].choose(f"{number}-{n}", "backend", "x")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    rows = read_rows(storage, "p")
    chosen = Counter(row.key for row in rows if isinstance(row, Choice))
    assert chosen == {f"{number}-{n}": 1 for number in range(3) for n in range(25)}


def test_the_first_choice_wins_for_everybody(storage: Storage) -> None:
    first, second = Partition(storage, "p"), Partition(storage, "p")
    assert first.choose("a", "backend", "gemini") == "gemini"
    assert second.choose("a", "backend", "openai") == "gemini"
    assert Partition(storage, "p").choose("a", "backend", "openai") == "gemini"
    assert first.choose("a", "prompt", "x") == "x"


# ---------------------------------------------------------------- money


def test_a_cap_is_never_passed_not_even_with_threads_and_restarts(storage: Storage) -> None:
    shop, cap_usd = Shop(), 1.0

    def some(partition: Partition, budget: Budget, keys: range) -> int:
        def one(n: int) -> int:
            try:
                buy(paid(shop, budget), partition, f"r{n}")
            except BudgetSpent:
                return 1
            return 0

        with ThreadPoolExecutor(8) as pool:
            return sum(pool.map(one, keys))

    assert some(Partition(storage, "p"), Budget(cap_usd), range(20)) == 0
    assert some(Partition(storage, "q"), Budget(cap_usd, total(spend(storage)).usd), range(20, 40)) == 15
    assert sum(shop.sold.values()) == 25 and total(spend(storage)).usd == pytest.approx(cap_usd)
    assert some(Partition(storage, "p"), Budget(cap_usd, total(spend(storage)).usd), range(20)) == 0, "replays are free"


def test_sums_are_believed_only_while_they_fit(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()
    for name in ("haze/0001", "haze/0002"):
        partition = Partition(storage, name)
        for n in range(5):
            buy(paid(shop), partition, f"{name[-1]}-{n}")
        seal(storage, name)
    before = spend(storage)
    assert set(before) == {"haze/0001", "haze/0002"}
    assert total(before).requests == 10 and total(before).usd == pytest.approx(10 * PRICE_USD)
    read: list[str] = []

    def noted(storage: Storage, name: str) -> list[journal_log.Row]:
        read.append(name)
        return read_rows(storage, name)

    monkeypatch.setattr("pairforge.journal_spend.read_rows", noted)
    assert spend(storage) == before and read == []
    buy(paid(shop), Partition(storage, "haze/0001"), "more")
    assert total(spend(storage)).requests == 11 and read == ["haze/0001"]
    storage.write("journal/haze/0002/sums.json", b"{}")
    assert total(spend(storage)).requests == 11, "a damaged sum costs time, not truth"


def test_an_unknown_price_stays_unknown(storage: Storage) -> None:
    partition = Partition(storage, "p")
    sent = partition.intend(Address("a", "generate", 0), "q", "shop", None)
    partition.answered(sent, Reply(b"x", "text/plain", Usage(None)))
    assert spend_of(read_rows(storage, "p")) == Spend(
        requests=1, unpriced=1, outcomes={"shop:generate:answered": 1}, usd_by={"shop:generate": 0.0}
    )


def test_nothing_spent_is_nothing(storage: Storage) -> None:
    assert spend(storage) == {} and total({}).usd == 0 and read_rows(storage, "absent") == []
    seal(storage, "absent")
    assert not list(storage.list())


# ---------------------------------------------------------------- damage and bad storage


def test_damage_is_named(storage: Storage, tmp_path: Path) -> None:
    shop = Shop()
    buy(paid(shop), Partition(storage, "p"), "big")
    [entry] = storage.list("replies/")
    storage.write(entry.name, b"something else")
    with pytest.raises(DamagedError, match="replies/"):
        buy(paid(shop), Partition(storage, "p"), "big")
    storage.delete(entry.name)
    with pytest.raises(DamagedError, match="is gone"):
        buy(paid(shop), Partition(storage, "p"), "big")
    assert shop.sold["big-0"] == 1
    storage.write("journal/p/000000.jsonl", b'{"kind":"intent"}\n')
    with pytest.raises(DamagedError, match="no row"):
        Partition(storage, "p")
    storage.write("journal/p/000000.jsonl", b'{"kind":"cont')
    with pytest.raises(DamagedError):
        Partition(storage, "p")


@pytest.mark.parametrize("name", ["", "../p", "a//b", "/a"])
def test_partitions_have_usable_names(name: str, storage: Storage) -> None:
    with pytest.raises(ValueError, match="name"):
        Partition(storage, name)


def test_a_reply_is_held_until_storage_takes_it(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, failing = Shop(), [3]
    slept: list[float] = []
    local = type(storage)
    swap = local.compare_and_swap

    def flaky(self: Storage, name: str, expected: bytes | None, new: bytes) -> bool:
        if shop.sold and failing[0]:
            failing[0] -= 1
            if failing[0] % 2:
                swap(self, name, expected, new)  # done, and the reply to it lost
            raise InfraError("storage is away")
        return swap(self, name, expected, new)

    monkeypatch.setattr(local, "compare_and_swap", flaky)
    partition = Partition(storage, "p", Clock(lambda: 0.0, slept.append))
    assert buy(paid(shop), partition, "a") == b"a-0" and slept == [0.5, 1.0, 2.0]
    rows = read_rows(storage, "p")
    assert sum(isinstance(row, Outcome) for row in rows) == 1, "written once although its first write looked lost"


def test_an_intent_that_cannot_be_written_is_not_sent(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    partition, shop = Partition(storage, "p"), Shop()

    def away(self: Storage, name: str, expected: bytes | None, new: bytes) -> bool:
        raise InfraError("storage is away")

    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "compare_and_swap", away)
        with pytest.raises(InfraError, match="away"):
            run_threads(paid(shop), partition, ["a", "b", "c"], 3)
    assert not shop.sold
    assert buy(paid(shop), partition, "a") == b"a-0", "and the partition goes on when storage is back"


# ---------------------------------------------------------------- S3


def test_the_same_on_s3(s3_url: str, s3_app: FaultyApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_log, "_SEGMENT_BYTES", 4000)
    storage, shop = open_storage(f"{s3_url}/set"), Shop()
    keys = [f"{'big' if n % 5 == 0 else 'r'}{n}" for n in range(20)]
    s3_app.faults += [Fault("PUT", 500, carried_out=True), Fault("PUT", 500), Fault("GET", 0)]
    run_threads(paid(shop), Partition(storage, "haze/0001"), keys, 4)
    old = Partition(storage, "haze/0001")
    new = Partition(storage, "haze/0001")
    with pytest.raises(Superseded):
        buy(paid(shop), old, "zombie")
    assert run_threads(paid(shop), new, keys, 4) == [reply_to(f"{key}-0") for key in keys]
    assert set(shop.sold.values()) == {1} and len(shop.sold) == 20
    seal(storage, "haze/0001")
    assert total(spend(storage)).usd == pytest.approx(20 * PRICE_USD)
    assert total(spend(storage)).requests == 20
