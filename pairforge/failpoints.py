"""Places where a test can make this process die, as a power cut would."""

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Dies by SIGKILL at the n-th passage of this process where `PAIRFORGE_FAILPOINT` is `name:n`.

    With `PAIRFORGE_FAILPOINT_ONCE` naming a file, only the first process to create that file dies.
    """
    wanted = os.environ.get("PAIRFORGE_FAILPOINT")
    if wanted is None:
        return
    _passed[name] += 1
    if wanted == f"{name}:{_passed[name]}" and _first():
        os.kill(os.getpid(), signal.SIGKILL)


def _first() -> bool:
    flag = os.environ.get("PAIRFORGE_FAILPOINT_ONCE")
    try:
        return flag is None or bool(os.open(flag, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
