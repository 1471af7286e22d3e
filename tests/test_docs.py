"""Docs name what is there: tests of properties, a section and a picture for every degradation."""

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from degradations.catalog import DEGRADATIONS
from degradations.chains import CHAINS
from pairforge.config_words import Words
from pairforge.records import Frozen

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


RENDERER: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "render_config.py"))


def test_the_page_of_configs_is_up_to_date() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == RENDERER["render"](), "make config-docs"


class Cat(Frozen):
    """Purrs."""

    kind: Literal["cat"]
    name: str = Field("Tom", description="how it is called")
    lives: int = Field(9, ge=1, le=9)


class Dog(Frozen):
    """Barks.

    Loudly.
    """

    kind: Literal["dog"]
    name: str = Field("Tom", description="how it is called")
    friends: tuple[Annotated[str, Words("a | b")], ...] = ()


class House(Frozen):
    """Where they live."""

    first: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: dict[str, Cat] = Field({}, description="by room")


def test_any_config_can_be_rendered() -> None:
    page = RENDERER["render"]((("Houses", House),))
    assert (
        page.partition("## Houses\n\n")[2]
        == """\
Where they live.

| key | allowed | default | meaning |
|---|---|---|---|
| `first` | a mapping, see `first` | required |  |
| `others` | mappings by name, see `first` | `{}` | by room |

### `first`

Of every `kind`:

| key | allowed | default | meaning |
|---|---|---|---|
| `name` | text | `"Tom"` | how it is called |

`kind: cat`. Purrs.

| key | allowed | default | meaning |
|---|---|---|---|
| `kind` | cat | required |  |
| `lives` | a whole number from 1 to 9 | `9` |  |

`kind: dog`. Barks.

Loudly.

| key | allowed | default | meaning |
|---|---|---|---|
| `kind` | dog | required |  |
| `friends` | a list, each entry a \\| b | `[]` |  |
"""
    )
