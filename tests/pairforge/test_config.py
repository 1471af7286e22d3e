"""Config errors point at the line and say what is allowed."""

import textwrap
from pathlib import Path

import pytest

from pairforge.config import ConfigError, canonical_json, fingerprint, load_config, parse_config
from pipelines.settings import RunConfig

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, RunConfig, "c.yaml")
    return caught.value.problems


def demo_with(old: str, new: str) -> tuple[str, int]:
    """The demo config with one change, and the line it is on."""
    text = DEMO.read_text()
    assert text.count(old) >= 1, f"{old!r} is not in the demo config"
    return text.replace(old, new, 1), text[: text.index(old)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "where", "says"),
    [
        ("seed: 20261120", "seed: -3", "seed", "greater than or equal to 0 (got -3)"),
        ("size_px: 384", "size_px: 4", "base.size_px", "greater than or equal to 16"),
        ("policy: resize_crop", "policy: squash", "base.policy", "'resize_crop', 'crop_only' or 'keep'"),
        ("small: keep", "smal: keep", "base.smal", "did you mean 'small'?"),
        ("type: haze", "type: hase", "chain[0].any_of[0].type", "allowed: "),
        ("severity: [0.3, 0.9]", "severity: [0.3, 1.9]", "severity[1]", "less than or equal to 1"),
        ("severity: [0.3, 0.9]", "severity: [0.9, 0.3]", "chain[0]", "runs backwards"),
        ("kind: package", "kind: folder", "sources[0]", "'files'"),
        ("val: 0.35", "val: 1.2", "split.val", "less than 1"),
        ("name: demo", "name: Demo Set", "name", "pattern"),
        ("licence: CC-BY-2.0", "license: CC-BY-2.0", "license", "did you mean 'licence'?"),
    ],
)
def test_a_fault_names_its_line_and_what_is_allowed(old: str, new: str, where: str, says: str) -> None:
    text, line = demo_with(old, new)
    problems = problems_of(text)
    assert any(p.startswith(f"c.yaml:{line}: ") and where in p and says in p for p in problems), problems


def test_a_missing_key_is_named_with_its_meaning() -> None:
    text, _ = demo_with("output: out/demo", "# output: out/demo")
    assert any("output" in p and "is required: folder or s3:// URL" in p for p in problems_of(text))


def test_every_fault_is_listed_at_once() -> None:
    text, _ = demo_with("seed: 20261120", "seed: x")
    text = text.replace("val: 0.35", "val: 7")
    assert len(problems_of(text)) == 2


def test_a_faulty_entry_is_not_also_a_missing_one() -> None:
    text, _ = demo_with("type: haze", "type: hase")
    assert len(problems_of(text)) == 1


def test_a_key_that_stands_twice_is_a_fault() -> None:
    text, line = demo_with("seed: 20261120", "seed: 1\nseed: 2")
    assert problems_of(text) == (f"c.yaml:{line + 1}: key 'seed' stands already on line {line}",)


@pytest.mark.parametrize("text", ["", "just words", "[1, 2]", "a: [1", "a: b: c"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert problems_of(text)[0].startswith("c.yaml")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load_config(tmp_path / "missing.yaml", RunConfig)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(binary, RunConfig)


def test_fingerprints_follow_content_not_layout() -> None:
    assert fingerprint({"b": 1, "a": [1.5, None]}) == fingerprint({"a": [1.5, None], "b": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0001})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_shipped_configs_are_valid() -> None:
    for path in sorted(DEMO.parent.glob("*.yaml")):
        assert load_config(path, RunConfig).recipes


def test_repeated_recipe_names_are_refused() -> None:
    recipe = textwrap.dedent(DEMO.read_text().partition("recipes:\n")[2].partition("\n\n")[0])
    text = DEMO.read_text().replace("recipes:\n", "recipes:\n" + textwrap.indent(recipe, "  ") + "\n", 1)
    assert any("used twice" in p for p in problems_of(text))
