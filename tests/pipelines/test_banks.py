"""Banks: built in any order and number of workers, imported, pinned, drawn from, and replayed without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from degradations.banks import GENERATORS
from pairforge.records import DamagedError, TooManyFailedError
from pairforge.snapshot import open_snapshot, verify
from pairforge.storage import open_storage
from pipelines import cli, console
from pipelines.banks import BANK_FILE, BankOrder, build_bank, import_bank, keep_pins, open_bank, pin_bank, read_bank
from pipelines.catalog import Catalog
from pipelines.engine import Backend, LocalBackend
from pipelines.plan import plan_parts, render_settings
from pipelines.ray_backend import RayBackend
from pipelines.run import run, stages_of
from pipelines.settings import RunConfig
from pipelines.verification import replay_snapshot

MakeConfig = Callable[..., RunConfig]
KINDS = sorted(GENERATORS)


def local(stages: Any, order: Any) -> Backend:
    return LocalBackend(stages, order)


def hashes(url: str | Path) -> list[str]:
    return [entry.sha256 for entry in open_bank(str(url)).entries]


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bank of every kind."""
    folder = tmp_path_factory.mktemp("banks")
    for kind in KINDS:
        build_bank(BankOrder(kind, 3, 5, str(folder / kind)), local, lambda made: None)
    return folder


def on_local(config: RunConfig, output: str) -> Backend:
    return LocalBackend(stages_of(config), (render_settings(config), output))


@pytest.mark.usefixtures("ray_session")
def test_a_bank_grows_and_is_the_same_on_ray(banks: Path, tmp_path: Path) -> None:
    made: list[int] = []
    order = BankOrder("moire", 11, 5, str(tmp_path / "moire"))
    build_bank(order, lambda stages, context: RayBackend(stages, context), made.append)
    assert sum(made) == 11 and hashes(tmp_path / "moire")[:3] == hashes(banks / "moire")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "moire" / "patterns").iterdir()}
    bank = build_bank(BankOrder("moire", 12, 5, order.url), local, made.append)
    assert len(bank.entries) == 12 and len(set(hashes(order.url))) == 12
    assert bank.highest_correlation is not None and bank.highest_correlation <= 0.9
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items()), "what was there is kept"


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_follow_from_index_and_seed(banks: Path, kind: str) -> None:
    generator = GENERATORS[kind]
    again, other = generator.make(1, 5), generator.make(1, 6)
    stored = cv2.imread(str(banks / kind / open_bank(str(banks / kind)).entries[1].name), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), again)
    assert again.shape != other.shape or not np.array_equal(again, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_draws_patterns_and_replays_without_the_bank(
    make_config: MakeConfig, banks: Path, tmp_path: Path, kind: str
) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(banks / kind, bank)
    name = "flare_overlay" if kind == "flare" else f"{kind}_pattern"
    recipe = {"name": "p", "version": 1, "category": kind, "variants": 2, "chain": [{"type": name, "severity": 0.7}]}
    config = make_config(recipes=[recipe], banks={kind: str(bank)})
    report = run(config, on_local)
    assert dict(report.fates) == {"kept": 24, "rejected": 0, "failed": 0}
    shutil.rmtree(bank)
    snapshot = open_snapshot(config.output)
    assert verify(snapshot).problems == ()
    assert replay_snapshot(snapshot, None, 0, 1).problems == ()
    used = {entry.name for entry in open_storage(config.output).list("patterns/")}
    assert 1 <= len(used) <= 3


def test_banks_maps_and_dataset_on_s3_are_the_bytes_of_local_folders(
    make_config: MakeConfig, banks: Path, s3_url: str, tmp_path: Path
) -> None:
    names = [*("flare_overlay" if kind == "flare" else f"{kind}_pattern" for kind in KINDS), "haze", "segment_noise"]
    recipes = [
        {"name": name, "version": 1, "category": name, "variants": 1, "chain": [{"type": name, "severity": 0.6}]}
        for name in names
    ]
    held: list[dict[str, bytes]] = []
    for place in (str(tmp_path), s3_url):
        for kind in KINDS:
            build_bank(BankOrder(kind, 3, 5, f"{place}/banks/{kind}"), local, lambda made: None)
            assert hashes(f"{place}/banks/{kind}") == hashes(banks / kind)
        urls = {kind: f"{place}/banks/{kind}" for kind in KINDS}
        config = make_config(f"{place}/dataset", recipes=recipes, banks=urls)
        report = run(config, on_local)
        assert dict(report.fates) == {"kept": 12 * len(names), "rejected": 0, "failed": 0}
        snapshot, storage = open_snapshot(config.output), open_storage(config.output)
        assert verify(snapshot).problems == ()
        replayed = replay_snapshot(snapshot, None, 0, 1)
        assert replayed.problems == () and replayed.replayed == 12 * len(names)
        assert run(config, on_local).parts_made == 0, "what is stored is found again"
        entries = [entry for part in ("shards/", "bases/", "scene/", "patterns/") for entry in storage.list(part)]
        held.append({e.name: storage.read(e.name) for e in entries if not e.name.endswith(".marker.json")})
    kinds = {name.split("/")[0]: name for name in held[0]}
    assert set(kinds) == {"shards", "bases", "scene", "patterns"}
    assert len([name for name in held[0] if name.startswith("scene/")]) == 24, "depth and segments of 12 bases"
    assert held[0] == held[1]


def test_another_bank_makes_other_parts(make_config: MakeConfig, banks: Path, tmp_path: Path) -> None:
    recipe = {"name": "p", "version": 1, "category": "c", "variants": 1}
    recipe["chain"] = [{"type": "haze_pattern", "severity": 0.5}]
    build_bank(BankOrder("haze", 3, 6, str(tmp_path / "other")), local, lambda made: None)
    found = []
    for url in (banks / "haze", tmp_path / "other"):
        config = make_config(recipes=[recipe], banks={"haze": str(url)})
        catalog = Catalog(open_storage(config.output))
        catalog.scan(config)
        found.append([part.fingerprint for part in plan_parts(config, catalog)])
    assert len(found[0]) == len(found[1]) and not set(found[0]) & set(found[1])


def test_a_bank_that_changed_since_the_plan_is_named(banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks / "rain", tmp_path / "rain")
    ref = pin_bank("rain", str(tmp_path / "rain"))
    (tmp_path / "rain" / BANK_FILE).write_bytes((banks / "rain" / BANK_FILE).read_bytes() + b" ")
    read_bank.cache_clear()
    with pytest.raises(DamagedError, match=r"bank\.json has changed since the run was planned"):
        read_bank(ref)


def test_a_dataset_remembers_the_bank_it_was_made_from(banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks / "rain", tmp_path / "rain")
    url, dataset = str(tmp_path / "rain"), open_storage(str(tmp_path / "out"))
    pin = pin_bank("rain", url, dataset)
    keep_pins(dataset, [pin])
    shutil.rmtree(url)
    assert pin_bank("rain", url, dataset) == pin
    with pytest.raises(ValueError, match="holds no bank"):
        pin_bank("rain", url)
    with pytest.raises(ValueError, match="holds no bank"):
        pin_bank("rain", f"{url}2", dataset)
    read_bank.cache_clear()
    with pytest.raises(DamagedError, match=r"bank\.json is gone, and there are records left to make"):
        read_bank(pin)
    shutil.copytree(banks / "haze", url)
    with pytest.raises(ValueError, match="holds a bank of haze patterns; rain patterns are wanted"):
        pin_bank("rain", url, dataset)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, r"needs a bank of haze patterns: banks: \{haze: URL\}"),
        ({"banks": {"haze": "nowhere"}}, r"nowhere holds no bank: bank\.json is missing"),
        ({"banks": {"haze": "RAIN"}}, "holds a bank of rain patterns; haze patterns are wanted"),
    ],
)
def test_a_missing_or_wrong_bank_is_named(
    make_config: MakeConfig, banks: Path, changes: dict[str, Any], says: str
) -> None:
    recipe = {"name": "p", "version": 1, "category": "c", "variants": 1}
    recipe["chain"] = [{"type": "haze_pattern", "severity": 0.5}]
    if changes.get("banks") == {"haze": "RAIN"}:
        changes = {"banks": {"haze": str(banks / "rain")}}
    with pytest.raises(ValueError, match=says):
        render_settings(make_config(recipes=[recipe], **changes))


def test_pictures_become_a_bank_and_bad_ones_are_named(tmp_path: Path, photo_folder: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(photo_folder, folder)
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    shutil.copy(next((folder / "b").glob("*.png")), folder / "twice.png")
    bank, refused = import_bank("haze", folder, str(tmp_path / "bank"), "CC0-1.0", "us")
    assert len(bank.entries) == 12, "equal pictures count once"
    assert list(refused) == ["a/broken.png"]
    with pytest.raises(ValueError, match="holds a bank of haze patterns; choose another place"):
        import_bank("moire", folder, str(tmp_path / "bank"), "CC0-1.0", "us")
    with pytest.raises(ValueError, match=r"no step takes 'hase' patterns; did you mean 'haze'\? \(allowed: flare"):
        import_bank("hase", folder, str(tmp_path / "new"), "CC0-1.0", "us")
    with pytest.raises(ValueError, match="holds no usable picture"):
        (tmp_path / "empty").mkdir()
        import_bank("haze", tmp_path / "empty", str(tmp_path / "new"), "CC0-1.0", "us")


def test_the_commands(tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = console.guarded(lambda: cli.app([str(argument) for argument in arguments], "pairforge"))
        return code, *capsys.readouterr()

    url, photo = tmp_path / "moire", next(photo_folder.rglob("*.png"))
    code, out, _ = call("bank", "build", "moire", "--count", "2", "-o", url, "--local")
    assert code == 0 and "2 moire patterns" in out and f"banks: {{moire: {url}}}" in out
    code, out, _ = call("bank", "show", url, "--json")
    assert json.loads(out)["patterns"] == 2
    code, out, _ = call("degrade", photo, "--type", "moire_pattern", "--bank", url, "-o", tmp_path / "x.png")
    assert code == 0 and json.loads(out)["steps"][0]["name"] == "moire_pattern"
    code, _, said = call("degrade", photo, "--type", "moire_pattern", "-o", tmp_path / "x.png")
    assert code == 2 and "needs --bank URL, of moire patterns" in said
    code, _, said = call("degrade", photo, "--type", "jpeg", "--bank", url, "-o", tmp_path / "x.png")
    assert code == 2 and "takes no --bank" in said
    code, _, said = call("bank", "build", "sand", "-o", tmp_path / "sand", "--local")
    assert code == 2 and "'sand' patterns cannot be built; allowed: flare, haze, moire, rain" in said
    code, _, said = call("bank", "import", "haze", photo_folder, "-o", tmp_path / "haze", "--licence", "CC0-1.0")
    assert code == 0


def test_one_flat_picture_does_not_end_an_import(
    banks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "captures"
    shutil.copytree(banks / "moire" / "patterns", folder)
    assert cv2.imwrite(str(folder / "black.png"), np.zeros((64, 64, 3), np.uint8))
    assert cv2.imwrite(str(folder / "grey.png"), np.full((64, 64, 3), 128, np.uint8))
    arguments = ["bank", "import", "moire", str(folder), "-o", str(tmp_path / "moire"), "--licence", "CC0-1.0"]
    assert console.guarded(lambda: cli.app(arguments, "pairforge")) == console.FLAWED
    said = capsys.readouterr()
    assert "3 moire patterns" in said.out
    for name in ("black.png", "grey.png"):
        assert f"left out {name}: flat: one colour all over holds no pattern" in said.err


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_are_no_patterns_are_refused(banks: Path, tmp_path: Path, photo_folder: Path, kind: str) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(banks / kind / "patterns", folder)
    for name in ("astronaut", "coffee", "chelsea"):
        shutil.copy(next(photo_folder.rglob(f"{name}*.png")), folder)
    bank, refused = import_bank(kind, folder, str(tmp_path / "bank"), "CC0-1.0", "us")
    on_black = kind in ("flare", "rain")
    assert len(bank.entries) == (3 if on_black else 6), "what generators make is accepted"
    assert all("light on black" in why for why in refused.values()) and len(refused) == (3 if on_black else 0)


def test_a_bank_in_use_grows_and_is_not_replaced(banks: Path, tmp_path: Path, photo_folder: Path) -> None:
    url = str(tmp_path / "bank")
    import_bank("haze", photo_folder, url, "CC0-1.0", "us")
    with pytest.raises(ValueError, match="holds 12 other patterns"):
        build_bank(BankOrder("haze", 3, 5, url), local, lambda made: None)
    shutil.copytree(banks / "rain", tmp_path / "rain")
    for order in (BankOrder("rain", 3, 6, str(tmp_path / "rain")), BankOrder("rain", 2, 5, str(tmp_path / "rain"))):
        with pytest.raises(ValueError, match="holds 3 other patterns"):
            build_bank(order, local, lambda made: None)


def test_a_lost_pattern_gives_its_part_up_and_is_no_bug(make_config: MakeConfig, banks: Path, tmp_path: Path) -> None:
    shutil.copytree(banks / "haze", tmp_path / "haze")
    for path in (tmp_path / "haze" / "patterns").iterdir():
        path.unlink()
    recipe = {"name": "p", "version": 1, "category": "c", "variants": 1}
    recipe["chain"] = [{"type": "haze_pattern", "severity": 0.5}]
    engine = {"max_attempts": 1}
    config = make_config(recipes=[recipe], banks={"haze": str(tmp_path / "haze")}, run={"engine": engine})
    with pytest.raises(TooManyFailedError, match=r"patterns/haze-.*\.png is gone"):
        run(config, on_local)


def test_a_finished_set_needs_its_bank_no_more_and_an_unfinished_one_does(
    make_config: MakeConfig, banks: Path, tmp_path: Path
) -> None:
    shutil.copytree(banks / "haze", tmp_path / "haze")
    recipe = {"name": "p", "version": 1, "category": "c", "variants": 1}
    recipe["chain"] = [{"type": "haze_pattern", "severity": 0.5}]
    config = make_config(recipes=[recipe], banks={"haze": str(tmp_path / "haze")})
    first = run(config, on_local)
    shutil.rmtree(tmp_path / "haze")
    again = run(config, on_local)
    assert again.snapshot == first.snapshot and again.parts_made == 0 and again.parts_before == first.parts_made
    more = config.model_copy(update={"seed": 8})
    with pytest.raises(ValueError, match=r"haze holds no bank: bank\.json is missing"):
        run(more, on_local)
