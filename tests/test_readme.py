"""Every code block of the README runs, in order, in a copy of the repository."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tracked files, and a `.venv` that is this environment, so that make installs nothing."""
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("."):
            (folder / ".venv" / entry.name).symlink_to(entry)
    for stamp in (".demo", ".dev", ".train"):
        (folder / ".venv" / stamp).touch()
    yield folder


def test_the_readme_has_the_blocks_it_promises() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    texts = [text.strip() for _, text in BLOCKS]
    assert texts[:2] == ["make demo", "make test"]
    loading = next(text for language, text in BLOCKS if language == "python")
    assert len(loading.strip().splitlines()) <= 10


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(clone: Path, number: int) -> None:
    """`make test` is only shown to be what it says: running it here would run this test. So is `make train-demo`, which
    takes minutes; tests/training/test_launch.py trains."""
    language, text = BLOCKS[number]
    if text.strip() == "make test":
        text = 'make -n test | grep -q "pytest -m"'
    text = text.replace("make train-demo", 'make -n train-demo | grep -q "pairforge train configs/demo_train.yaml" #')
    inside = f"source .venv/bin/activate; {text}" if number else text
    script = ["bash", "-euo", "pipefail", "-c", inside] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(script, cwd=clone, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if text.strip() == "make demo":
        for word in ("category", "planned", "kept", "contact sheet: out/demo/sheet.png", "next:"):
            assert word in done.stdout
        assert (clone / "out/demo/sheet.png").stat().st_size > 100_000
