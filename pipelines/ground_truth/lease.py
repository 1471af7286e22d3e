"""One run at a time for each output: two would each keep within the budget, and spend it twice."""

import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairforge.config import canonical_json
from pairforge.records import Frozen, InfraError, parse_stored
from pairforge.storage import Storage

LEASE = "runs/lease.json"
_LASTS_S = 60.0
_RENEWED_EVERY_S = 15.0


class Lease(Frozen):
    """Who writes to an output: `holder` is new for every run, `until` seconds since 1970."""

    holder: str
    host: str
    boot: str
    pid: int
    until: float


class LeaseLostError(InfraError):
    """Another run took the output over, as this one did not show up for a minute."""


@contextmanager
def leased(storage: Storage) -> Iterator["Hold"]:
    """Hold the output while the block runs. Raises InfraError where another run holds it.

    The lease of a run on this host whose process is gone is taken over at once, any other when it has run out.
    """
    own = Lease(holder=uuid.uuid4().hex, host=platform.node(), boot=_boot(), pid=os.getpid(), until=0.0)
    held = _take(storage, own)
    hold = Hold(storage, held)
    try:
        yield hold
    finally:
        hold.release()


class Hold:
    """A lease that a thread renews."""

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self._storage = storage
        self._lease = lease
        self._ended = threading.Event()
        self._lost: str = ""
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLostError once another run may have begun."""
        if self._lost or time.time() > self._lease.until:
            raise LeaseLostError(self._lost or f"{LEASE} could not be renewed in time; run again to go on")

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        freed = self._lease.model_copy(update={"until": 0.0})
        self._storage.compare_and_swap(LEASE, _bytes(self._lease), _bytes(freed))

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EVERY_S):
            after = self._lease.model_copy(update={"until": round(time.time() + _LASTS_S, 3)})
            try:
                if not self._storage.compare_and_swap(LEASE, _bytes(self._lease), _bytes(after)):
                    self._lost = f"another run took {LEASE} over; this one stops"
                    return
                self._lease = after
            except (InfraError, OSError):
                continue  # `check` notices when the lease runs out


def _take(storage: Storage, own: Lease) -> Lease:
    while True:
        before = _read(storage)
        if before is not None:
            holder = parse_stored(Lease, before, LEASE)
            if _alive(holder, own):
                raise InfraError(
                    f"another run (process {holder.pid} on {holder.host}) writes to {storage.root}; wait until it has "
                    f"ended (where it was lost with its host, {max(1, round(holder.until - time.time()))} s)"
                )
        held = own.model_copy(update={"until": round(time.time() + _LASTS_S, 3)})
        if storage.compare_and_swap(LEASE, before, _bytes(held)):
            return held


def _alive(holder: Lease, own: Lease) -> bool:
    if holder.until < time.time():
        return False
    here = (holder.host, holder.boot) == (own.host, own.boot) and own.boot
    return Path(f"/proc/{holder.pid}").exists() if here else True


def _boot() -> str:
    """What a restart of the host, or another container on it, changes."""
    try:
        names = (Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        return ""
    return " ".join(names)


def _read(storage: Storage) -> bytes | None:
    try:
        return storage.read(LEASE)
    except FileNotFoundError:
        return None


def _bytes(lease: Lease) -> bytes:
    return canonical_json(lease).encode()
