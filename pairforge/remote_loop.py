"""One event loop in a daemon thread of this process, on which all remote requests run.

The SDKs' synchronous calls bound the silence between two bytes, not the whole: a server that drips one byte a
second would hold a thread for hours. A coroutine can be cancelled at any point, whichever HTTP library is below.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
_starting = threading.Lock()


def run_within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which runs on the loop thread. Raises TimeoutError when it takes longer."""
    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout_s), _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()  # where this thread was interrupted; no effect on a finished one


def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """Started at first use; a forked process has no threads of its parent and starts its own."""
    # A cached function may run twice where threads meet at its first call, and clients belong to one loop.
    with _starting:
        return _started(pid)


@cache
def _started(pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"remote-{pid}", daemon=True).start()
    return loop
