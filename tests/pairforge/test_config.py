"""Config errors point at the line and say what is allowed."""

import textwrap
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Discriminator, Tag, ValidationError

from pairforge.config import ConfigError, canonical_json, faults_of, fingerprint, load_config, parse_config
from pairforge.records import Frozen
from pipelines.lines import load_run_config
from pipelines.settings import RunConfig, SplitFractions, records_per_source
from tests.conftest import config_of
from training.settings import TrainConfig

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


CONFIG = """\
name: small
output: out/small
seed: 7
sources:
  - kind: files
    url: photos
    licence: CC0-1.0
    group: {by: file}
split: {val: 0.1, test: 0.0}
limits: {max_bytes: 50000000, max_pixels: 100000000, max_side: 20000, min_side: 64}
base: {policy: keep, size_px: 384, small: keep}
scene:
  depth: {provider: geometric}
banks: {rain: banks/rain}
recipes:
  - name: haze
    version: 1
    category: haze
    variants: 4
    chain:
      - {type: haze, severity: [0.3, 0.9]}
      - any_of:
          - {type: jpeg, severity: 0.5}
shards: {records_per_shard: 16, layers: [transmission]}
run:
  workers: 2
  engine: {stall_s: 60, backoff_s: [1, 60]}
  stages: {render: {cpus: 1}}
exclusions: [bad.txt]
"""

SEED = "allowed: a whole number from 0 to 9223372036854775807"
INTERVAL = "allowed: a number from 0 to 1, or two of them, [lowest, highest]"
KINDS = "(allowed: files, package, tar, table, video)"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        # ranges and numbers
        ("seed: 7", "seed: -3", f"3: seed: -3 is not allowed; {SEED}"),
        ("seed: 7", "seed: 1.5", f"3: seed: 1.5 is not allowed; {SEED}"),
        ("seed: 7", "seed: many", f"3: seed: 'many' is not allowed; {SEED}"),
        ("seed: 7", "seed: 99999999999999999999", f"3: seed: 99999999999999999999 is not allowed; {SEED}"),
        ("seed: 7", "seed:", f"3: seed: is empty; {SEED}"),
        ("val: 0.1", "val: 1.2", "9: split.val: 1.2 is not allowed; allowed: a number of at least 0 and below 1"),
        ("val: 0.1", "val: .nan", "9: split.val: nan is not allowed; allowed: a number of at least 0 and below 1"),
        ("max_side: 20000", "max_side: 0", "10: limits.max_side: 0 is not allowed; allowed: a whole number above 0"),
        ("workers: 2", "workers: 0", "26: run.workers: 0 is not allowed; allowed: a whole number of at least 1"),
        # severities
        (
            "[0.3, 0.9]",
            "[0.3, 1.9]",
            "21: recipes[0].chain[0].severity[1]: 1.9 is not allowed; allowed: a number from 0 to 1",
        ),
        ("[0.3, 0.9]", "1.5", "21: recipes[0].chain[0].severity: 1.5 is not allowed; allowed: a number from 0 to 1"),
        ("[0.3, 0.9]", "[0.3]", f"21: recipes[0].chain[0].severity: [0.3] is not allowed; {INTERVAL}"),
        (
            "[0.3, 0.9]",
            "[0.1, 0.2, 0.3]",
            f"21: recipes[0].chain[0].severity: [0.1, 0.2, 0.3] is not allowed; {INTERVAL}",
        ),
        ("[0.3, 0.9]", "strong", f"21: recipes[0].chain[0].severity: 'strong' is not allowed; {INTERVAL}"),
        ("[0.3, 0.9]", "yes", f"21: recipes[0].chain[0].severity: true is not allowed; {INTERVAL}"),
        ("[0.3, 0.9]", "{from: 0.3}", f"21: recipes[0].chain[0].severity: a mapping is not allowed; {INTERVAL}"),
        (
            "[0.3, 0.9]",
            "[0.9, 0.3]",
            "21: recipes[0].chain[0].severity: [0.9, 0.3] runs backwards (allowed: [0.3, 0.9])",
        ),
        # patterns, enums, text
        (
            "name: small",
            "name: Small Set",
            "1: name: 'Small Set' is not allowed; allowed: 1 to 40 characters of a-z, 0-9 and _",
        ),
        (
            "name: small",
            "name: 2024-01-01",
            "1: name: 2024-01-01 is not allowed; allowed: 1 to 40 characters of a-z, 0-9 and _; in quotes it is text",
        ),
        (
            "policy: keep",
            "policy: resizecrop",
            "11: base.policy: 'resizecrop' is not allowed; did you mean 'resize_crop'? "
            "(allowed: resize_crop, crop_only, keep)",
        ),
        (
            "CC0-1.0",
            "no",
            "7: sources[0].licence: false is not allowed; allowed: text; in quotes it is text",
        ),
        (
            "{provider: geometric}",
            "{provider: given, beside: a.png, unit: metres, scale: 1, focal_frac: 1}",
            "13: scene.depth.beside: 'a.png' is not allowed; allowed: a path in quotes with {stem} in it, once",
        ),
        # unions
        ("kind: files", "kind: file", f"5: sources[0].kind: 'file' is not allowed; did you mean 'files'? {KINDS}"),
        (
            "  - kind: files\n",
            "  - photos\n  - kind: files\n",
            "5: sources[0]: 'photos' is not allowed; allowed: a mapping with `kind:` files, package, tar, table, "
            "video, and its keys",
        ),
        (
            "kind: files",
            "kind: video",
            "5: sources[0].window_frames: is required: frames of a clip that one record uses; "
            "allowed: an odd whole number from 3 to 99",
        ),
        (
            "provider: geometric",
            "provider: midas",
            "13: scene.depth.provider: 'midas' is not allowed (allowed: geometric, transformers, given)",
        ),
        (
            "- {type: haze, severity: [0.3, 0.9]}",
            "- haze",
            "21: recipes[0].chain[0]: 'haze' is not allowed; allowed: a mapping, {type: NAME, severity: [0.2, 0.8]}, "
            "or {any_of: [...]} with a list of such",
        ),
        (
            "    variants: 4\n",
            "    variants: 4\n    role: person\n",
            "20: recipes[0].role: 'person' is not allowed (allowed: any, portrait, scene)",
        ),
        # lists and mappings
        (
            "\n          - {type: jpeg, severity: 0.5}",
            " []",
            "22: recipes[0].chain[1].any_of: [] is not allowed; allowed: a list of 1 or more, each entry a mapping "
            "with the keys type, severity, weight",
        ),
        (
            "[bad.txt]",
            "bad.txt",
            "29: exclusions: 'bad.txt' is not allowed; allowed: a list, each entry text; a list of one is written "
            "[bad.txt]",
        ),
        ("backoff_s: [1, 60]", "backoff_s: 60", "27: run.engine.backoff_s: 60 is not allowed; allowed: a list of 2 "),
        ("group: {by: file}", "group: file", "8: sources[0].group: 'file' is not allowed; allowed: a mapping with the"),
        ("{rain: banks/rain}", "[banks/rain]", "14: banks: ['banks/rain'] is not allowed; allowed: a mapping of names"),
        ("{rain: banks/rain}", "{1: banks/rain}", "14: banks.1: 1 is not text; in quotes it is"),
        (
            "{rain: banks/rain}",
            "{rian: banks/rain}",
            "14: banks: unknown kind 'rian'; did you mean 'rain'? (allowed: flare, haze, moire, rain)",
        ),
        # keys
        ("small: keep", "smal: keep", "11: base.smal: unknown key; did you mean 'small'? (allowed: policy, size_px, "),
        (
            "seed: 7\n",
            "",
            f"1: seed: is required: start of all random draws; another one makes another dataset; {SEED}",
        ),
        ("kind: files", "type: files", f"5: sources[0].kind: is required {KINDS}"),
        ("{cpus: 1}", "{cpu: 1}", "28: run.stages.render.cpu: unknown key; did you mean 'cpus'? (allowed: cpus, "),
        ("exclusions: [bad.txt]", "1: x", "29: 1: unknown key (allowed: name, output, "),
        # what several keys say together
        (
            "{by: file}",
            "{by: pattern}",
            "8: sources[0].group.pattern: `pattern` goes with `by: pattern`, and is",
        ),
        ("{by: file}", "{by: file, column: a}", "8: sources[0].group.column: `column` goes with `by: column` alone"),
        ("test: 0.0", "test: 0.95", "9: split: val 0.1 + test 0.95 leaves nothing to train on (allowed: less than 1)"),
        (
            "  depth: {provider: geometric}",
            "  segments: {provider: slic}",
            "16: recipes[0]: recipe haze needs depth; say where it comes from, e.g. scene: {depth: {provider: ",
        ),
        ("type: jpeg", "type: haze_pattern", "16: recipes[0]: recipe haze needs a bank of haze patterns: banks: {haze"),
        (
            "- {type: haze, severity: [0.3, 0.9]}",
            "- {type: jpeg, severity: 0.5}\n      - {type: haze, severity: 0.5}",
            "22: recipes[0].chain[1]: ",
        ),
        (
            "type: haze",
            "type: hase",
            "21: recipes[0].chain[0].type: unknown degradation 'hase'; did you mean 'haze'? (",
        ),
        ("[transmission]", "[transmision]", "24: shards.layers: unknown layer 'transmision'; did you mean 'transm"),
    ],
)
def test_a_fault_names_its_line_its_key_and_what_is_allowed(old: str, new: str, fault: str) -> None:
    assert old in CONFIG
    problems = problems_of(CONFIG.replace(old, new, 1))
    assert any(problem.startswith(f"c.yaml:{fault}") for problem in problems), problems
    assert not any("Input should" in problem or "valid " in problem for problem in problems)


def test_the_config_of_these_tests_is_valid() -> None:
    assert parse_config(CONFIG, RunConfig, "c.yaml").recipes[0].chain
    unused = CONFIG.replace("{rain: banks/rain}", "{rain: banks/rain, flare: elsewhere}")
    assert parse_config(unused, RunConfig, "c.yaml").banks["flare"] == "elsewhere", "a bank may wait for its recipe"


def test_aliases_that_lead_back_and_merged_keys_are_followed() -> None:
    assert len(problems_of(CONFIG.replace("[bad.txt]", "&a [*a]"))) == 1
    merged = CONFIG.replace("      - any_of:", "      - &strong {type: jpeg, severity: 7}\n      - any_of:")
    merged = merged.replace(
        "          - {type: jpeg, ", "          - {<<: *strong, type: webp}\n          - {type: jpeg, "
    )
    assert [problem.split(": ")[:2] for problem in problems_of(merged)] == [
        ["c.yaml:22", "recipes[0].chain[1].severity"],
        ["c.yaml:22", "recipes[0].chain[2].any_of[0].severity"],
    ]


class Narrow(Frozen):
    least: float


class Wide(Frozen):
    words: tuple[str, ...]


class Rules(Frozen):
    rule: Annotated[
        Annotated[Narrow, Tag("range")] | Annotated[Wide, Tag("choice")],
        Discriminator(lambda value: "choice" if "words" in value else "range"),
    ]


@pytest.mark.parametrize(
    ("rule", "fault"),
    [("{least: a}", "rule.least: 'a' is not allowed; allowed: a number"), ("{words: [1]}", "rule.words[0]: 1 is not ")],
)
def test_names_that_a_union_gives_its_members_are_no_keys(rule: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"rule: {rule}", Rules, "r.yaml")
    assert caught.value.problems[0].startswith(f"r.yaml:1: {fault}")


def test_faults_of_values_that_stand_in_no_file() -> None:
    with pytest.raises(ValidationError) as caught:
        SplitFractions.model_validate({"val": 2})
    assert [(fault.key, fault.message) for fault in faults_of(caught.value, SplitFractions)] == [
        ("val", "2 is not allowed; allowed: a number of at least 0 and below 1"),
        ("test", "is required: share for tests; allowed: a number of at least 0 and below 1"),
    ]


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
        if path.name == "demo_train.yaml":
            assert load_config(path, TrainConfig).sources
        else:
            assert load_run_config(path).sources


def test_repeated_recipe_names_are_refused() -> None:
    recipe = textwrap.dedent(DEMO.read_text().partition("recipes:\n")[2].partition("\n\n")[0])
    text = DEMO.read_text().replace("recipes:\n", "recipes:\n" + textwrap.indent(recipe, "  ") + "\n", 1)
    assert any("used twice" in p for p in problems_of(text))


def test_records_per_source_follow_roles_and_kinds(tmp_path: Path) -> None:
    def recipe(name: str, variants: int, step: str, **more: str) -> dict[str, object]:
        chain = [{"type": step, "severity": 0.5}]
        return {"name": name, "version": 1, "category": "c", "variants": variants, "chain": chain, **more}

    photos = {"kind": "files", "url": "p", "licence": "x", "group": {"by": "file"}}
    clips = {**photos, "kind": "video", "window_frames": 3}
    plain, blur = recipe("a", 2, "jpeg"), recipe("b", 3, "temporal_blur")
    faces, places = recipe("f", 5, "jpeg", role="portrait"), recipe("s", 7, "jpeg", role="scene")

    def counted(sources: list[object], *recipes: object) -> dict[str, int]:
        return records_per_source(config_of(tmp_path, tmp_path, sources=sources, recipes=list(recipes)))

    assert counted([photos], plain, blur) == {"per photo": 2}
    assert counted([photos, clips], plain, blur) == {"per photo": 2, "per clip": 3}
    assert counted([{**photos, "role": "by_faces"}], plain, faces, places) == {
        "per portrait photo": 7,
        "per scene photo": 9,
    }
    assert counted([photos, {**photos, "role": "scene"}], plain, faces, places) == {
        "per photo": 2,
        "per scene photo": 9,
    }
