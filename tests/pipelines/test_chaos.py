"""A few random deaths by the chaos benchmark: it must end by itself and find nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.alone
def test_a_few_random_deaths_change_no_byte() -> None:
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "5", "--records", "160", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills in " in done.stdout and "faults: none" in done.stdout
    assert int(re.findall(r"(\d+) runs ended", done.stdout)[0]) >= 1
