"""Docs name what is there: tests of properties, a section and a picture for every degradation."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from degradations.catalog import DEGRADATIONS
from degradations.chains import CHAINS

ROOT = Path(__file__).parent.parent
PHYSICS = (ROOT / "docs" / "physics.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "degradations.md").read_text(encoding="utf-8")
GALLERY = ROOT / "docs" / "gallery"
MOST_BYTES = 4_000_000


def test_every_test_that_physics_names_is_there() -> None:
    files = list((ROOT / "tests" / "degradations").glob("test_*.py"))
    defined = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    wanted = set(re.findall(r"`(test_[\w*]+)`", PHYSICS))
    assert len(wanted) > 50
    assert [name for name in sorted(wanted) if not any(fnmatch(known, name) for known in defined)] == []
    assert {f"{path.name}" for path in files} >= set(re.findall(r"`(test_\w+\.py)`", PHYSICS))


@pytest.mark.parametrize("name", [d.name for d in DEGRADATIONS] + [c.name for c in CHAINS])
def test_every_degradation_has_its_words_and_its_picture(name: str) -> None:
    assert re.search(rf"`{name}`|^## {name}$|^## .*\b{name}\b", PAGE, re.MULTILINE) or f"gallery/{name}.jpg" in PAGE
    assert f"(gallery/{name}.jpg)" in PAGE
    assert (GALLERY / f"{name}.jpg").exists(), "make gallery"


def test_the_gallery_is_small_and_holds_nothing_else() -> None:
    names = {path.name for path in GALLERY.iterdir()}
    assert names == {f"{name}.jpg" for name in [d.name for d in DEGRADATIONS] + [c.name for c in CHAINS]}
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) <= MOST_BYTES
