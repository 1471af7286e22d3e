"""The loop that remote requests run on: one for all threads of a process."""

import subprocess
import sys
from pathlib import Path

_MEETING = """
import asyncio, sys, threading
from pairforge import remote_loop
from pairforge.remote_loop import run_within

async def loop_of():
    return id(asyncio.get_running_loop())

def ask():
    gate.wait()
    found.append(run_within(10, loop_of()))

sys.setswitchinterval(1e-6)
for _ in range(20):
    remote_loop._started.cache_clear()
    gate, found = threading.Barrier(16), []
    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    print(len(set(found)))
"""


def test_threads_that_meet_at_the_first_call_share_one_loop() -> None:
    """In a process of its own, since clients of this one belong to its loop."""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", _MEETING], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1"] * 20
