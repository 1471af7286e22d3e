"""The command as a stranger uses it: messages, exit codes, JSON, terminals, interrupts."""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from pairforge.image import decode_png
from pairforge.shards import read_marker
from pairforge.snapshot import open_snapshot, publish, verify
from pairforge.storage import open_storage
from pipelines import cli, console
from pipelines.settings import RunConfig
from tests.conftest import config_of
from tests.pairforge.test_snapshot import DAMAGES, PLAN, write_set

PAIRFORGE = [sys.executable, "-m", "pipelines.cli"]
MakeConfig = Callable[..., RunConfig]


class Said(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs one command in this process, as `main` does."""

    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = console.guarded(lambda: cli.app([str(argument) for argument in arguments], "pairforge"))
        return Said(code, *capsys.readouterr())

    return run


def write_config(config: RunConfig, path: Path) -> Path:
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=1))
    return path


@pytest.fixture
def config(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A config file of 36 records whose output is `tmp_path / "out"`."""
    return write_config(make_config(), tmp_path / "c.yaml")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A finished run, to be read only; its config is beside it."""
    folder = tmp_path_factory.mktemp("cli")
    path = write_config(config_of(folder / "out", photo_folder), folder / "c.yaml")
    assert console.guarded(lambda: cli.app(["run", str(path), "--local"], "pairforge")) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def photo(photo_folder: Path) -> Path:
    return sorted(photo_folder.rglob("*.png"))[0]


# --- wrong calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["pln"], "plan"),
        (["verfy", "x"], "verify"),
        (["inspec"], "inspect"),
        (["run", "c.yaml", "--locl"], "--local"),
        (["verify", "x", "--replya", "all"], "--replay"),
        (["import", "o", "--licens", "x"], "--licence"),
    ],
)
def test_a_typo_is_answered_with_a_suggestion(call: Call, arguments: list[str], hint: str) -> None:
    said = call(*arguments)
    assert said.code == 2 and said.out == ""
    assert re.search(rf"(Did you mean|Possible options).*{hint}", said.err, re.DOTALL)


WRONG: dict[str, tuple[list[str], str]] = {
    "no such config": (["run", "nosuch.yaml"], r"nosuch\.yaml.*No such file"),
    "a folder as config": (["validate", "{dataset}"], r"{dataset}.*directory"),
    "a picture as config": (["plan", "{photo}"], r"{photo}: cannot be read"),
    "an empty config": (["validate", "/dev/null"], r"/dev/null:1: .*allowed keys: name, output"),
    "no dataset": (["inspect", "nowhere"], r"no snapshot has been published below nowhere"),
    "no run yet": (["status", "nowhere"], r"no run has written to nowhere yet"),
    "no such pin": (["verify", "{dataset}/snapshots/20200101-00000000"], r"no snapshot .*written are: \d{{8}}-"),
    "another scheme": (["verify", "ftp://host/set"], r"ftp:// is not supported; use a local path"),
    "empty URL": (["inspect", ""], r"'' is no path"),
    "replay of words": (["verify", "{dataset}", "--replay", "some"], r"--replay 'some': allowed are .* and `all`"),
    "negative replay": (["verify", "{dataset}", "--replay", "-1"], r"--replay '-1': allowed"),
    "tolerance": (["verify", "{dataset}", "--tolerance", "256"], r"--tolerance.*255"),
    "local workers": (["run", "{config}", "--local", "--workers", "2"], r"--local runs in this process; it goes with"),
    "no workers": (["run", "c.yaml", "--workers", "0"], r"--workers.*1"),
    "unknown key": (["inspect", "{dataset}", "nokey"], r"no kept record 'nokey' in snapshot"),
    "unknown fate": (["inspect", "{dataset}", "--fate", "lost"], r"--fate 'lost': allowed are kept, rejected, failed"),
    "unknown category": (["preview", "{dataset}", "--category", "fog"], r"no category fog .*'compression', "),
    "sheet extension": (["preview", "{dataset}", "-o", "x.gif"], r"cannot write x\.gif: allowed .*\.png"),
    "sheet to nowhere": (["preview", "{dataset}", "-o", "/proc/x/y.png"], r"/proc/x"),
    "files over a file": (["inspect", "{dataset}", "{key}", "-o", "{photo}"], r"{photo}: File exists"),
    "no photo": (["degrade", "no.png", "--type", "jpeg", "-o", "o.png"], r"no\.png cannot be read: No such file"),
    "not a photo": (["degrade", "{config}", "--type", "jpeg", "-o", "o.png"], r"{config}: not_an_image"),
    "unknown type": (["degrade", "{photo}", "--type", "hase", "-o", "o.png"], r"'hase' is unknown.*allowed: .*haze"),
    "severity": (["degrade", "{photo}", "--type", "jpeg", "--severity", "1.5", "-o", "o.png"], r"severity.*1\.5"),
    "no second": (["degrade", "{photo}", "--type", "reflection", "-o", "o.png"], r"reflection needs --second IMAGE"),
    "a second": (["degrade", "{photo}", "--type", "jpeg", "--second", "{photo}", "-o", "o.png"], r"takes no --second"),
    "a clip": (["degrade", "{photo}", "--type", "temporal_blur", "-o", "o.png"], r"needs a clip"),
    "output extension": (["degrade", "{photo}", "--type", "jpeg", "-o", "o.xyz"], r"o\.xyz: allowed extensions"),
    "import names": (
        ["import", "o", "--lq", "a", "--hq", "b", "--name", "A b", "--category", "c/d", "--licence", "l"],
        r"--name: .*'A b'.*--category: .*'c/d'",
    ),
    "import folder": (
        ["import", "o", "--lq", "a", "--hq", "b", "--name", "a", "--category", "c", "--licence", "l"],
        r"'a': a does not exist",
    ),
    "import into a run": (
        ["import", "{dataset}", "--lq", "a", "--hq", "b", "--name", "a", "--category", "c", "--licence", "l"],
        r"{dataset} is the output of a run; choose another folder",
    ),
    "unknown source": (["remove", "{config}", "0000", "--why", "x"], r"no usable source 0000"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_names_what_is_wrong(
    call: Call, dataset: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, says = WRONG[what]
    key = open_snapshot(str(dataset)).first_keys(1)[0]
    known = {"dataset": dataset, "photo": photo, "config": dataset.parent / "c.yaml", "key": key}
    said = call(*(argument.format(**known) for argument in arguments))
    assert said.code == 2, said
    assert re.search(says.format(**known), said.err.replace("\n", " "), re.DOTALL), said.err
    assert said.out == "" and "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_config_faults_are_all_told_with_their_lines(call: Call, config: Path) -> None:
    text = config.read_text().replace('"seed": 7', '"sead": 7').replace('"size_px": 128', '"size_px": 3')
    config.write_text(text)
    said = call("validate", config)
    lines = text.splitlines()
    seed, size = (1 + next(i for i, line in enumerate(lines) if word in line) for word in ('"sead"', '"size_px"'))
    assert said.code == 2
    assert f"{config}:{seed}: sead: unknown key; did you mean 'seed'?" in said.err
    assert f"{config}:{size}: base.size_px: " in said.err and "3 is not allowed" in said.err
    assert "seed: is required" in said.err


def test_a_sheet_that_cannot_be_written_is_told_before_the_run(call: Call, config: Path, tmp_path: Path) -> None:
    said = call("run", config, "--local", "--sheet", "sheet.gif")
    assert said.code == 2 and "sheet.gif" in said.err
    assert not (tmp_path / "out").exists()


COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_narrow_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = call(*filter(None, [name]), "--help")
    assert said.code == 0 and "Usage: pairforge" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_the_version_names_what_determines_pixels(call: Call) -> None:
    said = call("--version")
    assert said.code == 0
    assert re.match(r"pairforge \d+\.\d+", said.out)
    for library, version in (("numpy", np.__version__), ("opencv", cv2.__version__), ("pillow", "")):
        assert re.search(rf"{library}\S* {re.escape(version)}", said.out)


def test_the_entry_point_is_the_command() -> None:
    done = subprocess.run([*PAIRFORGE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pairforge ") and done.stderr == ""


# --- exit codes --------------------------------------------------------------------------------------


def _with_bad_photo(folder: Path, photo_folder: Path) -> list[dict[str, Any]]:
    shutil.copytree(photo_folder, folder)
    cut = bytes(cv2.imencode(".jpg", cv2.imread(str(sorted(folder.rglob("*.png"))[3])))[1])
    (folder / "a" / "cut_off.jpg").write_bytes(cut[: len(cut) // 2])
    return [{"kind": "files", "url": str(folder), "licence": "CC0-1.0", "group": {"by": "file"}}]


@pytest.mark.parametrize(("allowed", "code"), [(0.5, console.FLAWED), (0.01, console.STOPPED)])
def test_failed_records_have_exit_codes(
    call: Call, make_config: MakeConfig, tmp_path: Path, photo_folder: Path, allowed: float, code: int
) -> None:
    sources = _with_bad_photo(tmp_path / "photos", photo_folder)
    made = make_config(sources=sources, run={"max_failed_fraction": allowed})
    said = call("run", write_config(made, tmp_path / "c.yaml"), "--local")
    assert said.code == code
    if code == console.STOPPED:
        assert "3 of 20 records failed, more than max_failed_fraction 0.01 allows" in said.err
        assert "3 truncated" in said.err and said.out == ""
    else:
        assert "not kept: 3 truncated" in said.out
        listed = call("inspect", tmp_path / "out", "--fate", "failed")
        assert listed.out.count("cut_off.jpg") >= 3 and "3 failed records" in listed.out


def test_an_import_with_a_bad_pair_has_an_exit_code(call: Call, tmp_path: Path, photo: Path) -> None:
    for side in ("lq", "hq"):
        (tmp_path / side).mkdir()
        for name in ("1.png", "2.png"):
            shutil.copyfile(photo, tmp_path / side / name)
    (tmp_path / "hq" / "2.png").write_bytes(b"")
    names = ["--name", "old", "--category", "derain", "--licence", "CC0-1.0"]
    said = call("import", tmp_path / "out", "--lq", tmp_path / "lq", "--hq", tmp_path / "hq", *names)
    assert said.code == 0 and "not kept: 1 duplicate" in said.out  # both LQ files have the same bytes
    assert f"pairforge inspect {tmp_path}/out --fate rejected" in said.out
    (tmp_path / "lq" / "2.png").write_bytes(photo.read_bytes() + b"x")
    said = call("import", tmp_path / "out", "--lq", tmp_path / "lq", "--hq", tmp_path / "hq", *names)
    assert said.code == console.FLAWED and "--fate failed" in said.out


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("as_json", [True, False])
def test_damage_is_named_with_exit_code_5(call: Call, tmp_path: Path, damage: Any, as_json: bool) -> None:
    storage = open_storage(str(tmp_path / "set"))
    publish(storage, write_set(storage, plan=PLAN))
    named = damage(open_snapshot(storage.root))
    said = call("verify", storage.root, *(["--json"] if as_json else []))
    assert said.code == console.UNVERIFIED
    assert "Traceback" not in said.err
    if as_json:
        problems = json.loads(said.out)["problems"]
        assert any(named in problem for problem in problems) and said.err == ""
    else:
        assert re.search(rf"^fault .*{re.escape(named)}", said.err, re.MULTILINE) and "faults" in said.out


def test_other_commands_tell_damage_too(call: Call, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "set"))
    publish(storage, write_set(storage))
    storage.write("snapshots/latest.json", b"{")
    for arguments in (["inspect", storage.root], ["preview", storage.root], ["inspect", storage.root, "key"]):
        said = call(*arguments)
        assert said.code == console.UNVERIFIED and "snapshots/latest.json is damaged" in said.err
        assert said.out == ""


def test_storage_that_cannot_be_written_has_its_exit_code(call: Call, make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    path = write_config(make_config(tmp_path / "file" / "out"), tmp_path / "c.yaml")
    said = call("run", path, "--local")
    assert said.code == console.INFRA
    assert f"storage or machinery failed: {tmp_path}/file" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("boom"), console.BUG, "this is a bug in PairForge, please report it: boom"),
        (KeyboardInterrupt(), console.INTERRUPTED, "interrupted; what was committed stays"),
        (
            OSError(28, "No space left on device", "/x/sheet.png"),
            console.INFRA,
            "/x/sheet.png: No space left on device",
        ),
        (PermissionError(13, "Permission denied", "/x"), console.USAGE, "error /x: Permission denied"),
        (ImportError("s3:// needs s3fs: pip install 'pairforge[s3]'"), console.USAGE, "pairforge[s3]"),
        (SystemExit(15), console.TERMINATED, "terminated; what was committed stays"),
        (ValueError("[bold]x[/bold] [/red]"), console.USAGE, "error [bold]x[/bold] [/red]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_exit_code(
    call: Call, dataset: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("pairforge.snapshot.open_snapshot", fail)
    said = call("inspect", dataset)
    assert said.code == code and says in said.err and said.out == ""
    assert ("Traceback" in said.err) == (code == console.BUG)


def test_exit_codes_are_documented() -> None:
    for code in (console.BUG, console.USAGE, console.FLAWED, console.STOPPED, console.UNVERIFIED, console.INFRA):
        assert re.search(rf"\b{code} ", cli.__doc__ or "") and re.search(rf"\b{code} ", cli.app.info.epilog or "")
    for code in (console.INTERRUPTED, console.PIPE_CLOSED, console.TERMINATED):
        assert str(code) in (cli.__doc__ or "")


# --- results -----------------------------------------------------------------------------------------


def _imported(dataset: Path, tmp_path: Path) -> list[str | Path]:
    for side in ("lq", "hq"):
        shutil.copytree(dataset.parent / "pairs", tmp_path / side)
    names = ["--name", "old", "--category", "derain", "--licence", "CC0-1.0"]
    return ["import", tmp_path / "imported", "--lq", tmp_path / "lq", "--hq", tmp_path / "hq", *names]


JSON_CALLS: dict[str, Callable[[Path, Path], Sequence[str | Path]]] = {
    "validate": lambda dataset, _: ["validate", dataset.parent / "c.yaml"],
    "plan": lambda dataset, _: ["plan", dataset.parent / "c.yaml"],
    "plan, unmeasured": lambda dataset, _: ["plan", dataset.parent / "c.yaml", "--measure", "0"],
    "run": lambda dataset, _: ["run", dataset.parent / "c.yaml", "--local"],
    "status": lambda dataset, _: ["status", dataset],
    "verify": lambda dataset, _: ["verify", dataset, "--replay", "1"],
    "inspect": lambda dataset, _: ["inspect", dataset],
    "inspect a record": lambda dataset, _: ["inspect", dataset, open_snapshot(str(dataset)).first_keys(1)[0]],
    "inspect a fate": lambda dataset, _: ["inspect", dataset, "--fate", "kept"],
    "inspect an empty fate": lambda dataset, _: ["inspect", dataset, "--fate", "failed"],
    "import": _imported,
}


@pytest.mark.parametrize("what", JSON_CALLS)
def test_json_is_one_document_and_nothing_else(
    call: Call, dataset: Path, photo: Path, tmp_path: Path, what: str
) -> None:
    (dataset.parent / "pairs").mkdir(exist_ok=True)
    shutil.copyfile(photo, dataset.parent / "pairs" / "1.png")
    said = call(*JSON_CALLS[what](dataset, tmp_path), "--json")
    assert (said.code, said.err) == (0, "")
    document, end = json.JSONDecoder().raw_decode(said.out)
    assert said.out[end:] == "\n" and document is not None
    assert "\x1b" not in said.out


@pytest.mark.parametrize("what", [name for name in JSON_CALLS if name != "inspect a record"])
def test_text_goes_to_pipes_without_colour_or_progress(
    call: Call, dataset: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    (dataset.parent / "pairs").mkdir(exist_ok=True)
    shutil.copyfile(photo, dataset.parent / "pairs" / "1.png")
    said = call(*JSON_CALLS[what](dataset, tmp_path))
    assert (said.code, said.err) == (0, "")
    assert "\x1b" not in said.out and "\r" not in said.out and "━" not in said.out
    assert said.out.endswith("\n") and len(said.out.splitlines()) >= 1


def test_a_run_tells_its_table_and_what_to_try_next(call: Call, make_config: MakeConfig, tmp_path: Path) -> None:
    output = tmp_path / "my set"
    config = write_config(make_config(output), tmp_path / "c.yaml")
    said = call("run", config, "--local", "--sheet", tmp_path / "sheet.png")
    lines = said.out.splitlines()
    assert said.code == 0
    assert re.match(r"snapshot \d{8}-[0-9a-f]{8} of small$", lines[0])
    assert lines[1].split() == ["category", "planned", "kept", "rejected", "failed", "bytes"]
    assert [line.split()[:5] for line in lines[2:5]] == [
        ["compression", "24", "24", "0", "0"],
        ["reflection", "12", "12", "0", "0"],
        ["total", "36", "36", "0", "0"],
    ]
    assert len({len(line) for line in lines[1:5]}) == 1, "columns are aligned"
    assert "sources: 12 seen, 12 usable" in said.out
    assert (tmp_path / "sheet.png").is_file() and f"contact sheet: {tmp_path}/sheet.png" in said.out
    for line in lines[lines.index("next:") + 1 :]:
        done = subprocess.run(
            line.replace("pairforge", f"{sys.executable} -m pipelines.cli", 1),
            shell=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, (line, done.stderr)
    again = call("run", config, "--local")
    assert "nothing left to do" in again.out


def test_tables_are_never_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    rows = [{"category": "x" * 60, "kept": 10**9, "bytes": 10**14, "core_seconds": None}] * 3
    console.print_table("a [title]", ("category", "kept", "bytes", "core_seconds"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "a [title]"
    assert lines[1].split() == ["category", "kept", "bytes", "core", "seconds"]
    assert lines[2] == f"{'x' * 60}  1000000000  100.0 TB             -"


def test_the_tables_of_the_demo_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.estimate import FIELDS

    row = {"parts": 10**5, "parts_done": 10**5, "records": 10**8, "records_done": 10**8, "core_seconds": 10**7}
    console.print_table("plan", ("category", *FIELDS), [{"category": "compression", "bytes": 10**12, **row}])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("count", "says"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (10**6, "1.0 MB"), (1e16, "10000.0 TB")]
)
def test_bytes_in_words(count: float, says: str) -> None:
    assert console.human_bytes(count) == says


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18600, "5 h 10 min")]
)
def test_seconds_in_words(seconds: float, says: str) -> None:
    assert console.human_seconds(seconds) == says


# --- plan and status ---------------------------------------------------------------------------------


def test_a_plan_writes_nothing_and_leaves_nothing_behind(
    call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    said = call("plan", config, "--json")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").iterdir())
    told = json.loads(said.out)
    assert told["total"]["records"] == 36 and told["total"]["records_done"] == 0
    assert told["measured"] == 4 and told["workers"] == 2 and told["sources"]["usable"] == 12
    assert told["bytes_left"] > 10**5 and told["seconds_left"] > 0


def test_a_plan_that_measures_everything_foretells_the_bytes(call: Call, config: Path, tmp_path: Path) -> None:
    told = json.loads(call("plan", config, "--measure", "1000", "--json").out)
    made = json.loads(call("run", config, "--local", "--json").out)
    assert {row["category"]: row["bytes"] for row in told["categories"]} == {
        row["category"]: row["bytes"] for row in made["categories"] if row["category"] != "total"
    }


def test_a_plan_knows_what_is_done(call: Call, config: Path, tmp_path: Path) -> None:
    call("run", config, "--local")
    stored = json.loads(call("inspect", tmp_path / "out", "--json").out)["categories"][-1]
    told = json.loads(call("plan", config, "--json").out)
    assert told["measured"] == 0 and told["bytes_left"] == 0 and told["seconds_left"] == 0
    assert told["total"]["records_done"] == 36 and told["total"]["bytes"] == stored["bytes"]
    assert "nothing left to do" in call("plan", config).out
    victim = sorted((tmp_path / "out").rglob("*.marker.json"))[0]
    count = read_marker(open_storage(str(tmp_path / "out")), str(victim.relative_to(tmp_path / "out"))).planned
    victim.unlink()
    told = json.loads(call("plan", config, "--json").out)
    assert told["total"]["records_done"] == 36 - count and told["measured"] == 2
    assert told["bytes_left"] == pytest.approx(stored["bytes"] * count / 36, rel=0.7)


def test_a_plan_without_measuring_knows_no_bytes(call: Call, config: Path) -> None:
    told = json.loads(call("plan", config, "--measure", "0", "--json").out)
    assert told["total"]["bytes"] is told["bytes_left"] is told["seconds_left"] is None
    assert told["total"]["records"] == 36
    text = call("plan", config, "--measure", "0").out
    assert "left to do" not in text and re.search(r"total .* 36 +0 +- +-$", text, re.MULTILINE)


def test_status_is_asked_by_config_or_by_url(call: Call, dataset: Path) -> None:
    texts = {call("status", target).out for target in (dataset, dataset.parent / "c.yaml", f"{dataset}/")}
    assert len(texts) == 1
    text = texts.pop()
    assert "small: 36 of 36 records, 9 of 9 parts" in text and "kept 36, rejected 0, failed 0" in text
    assert f"latest snapshot: {open_snapshot(str(dataset)).manifest.id}" in text


# --- records and pictures ----------------------------------------------------------------------------


def test_a_record_is_shown_and_its_files_are_written(call: Call, dataset: Path, tmp_path: Path) -> None:
    snapshot = open_snapshot(str(dataset))
    key = snapshot.first_keys(2)[1]
    said = call("inspect", dataset, key, "-o", tmp_path / "files")
    _, files = snapshot.find(key)
    assert json.loads(said.out) == json.loads(files["json"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()} == {
        f"{key}.{extension}": data for extension, data in files.items()
    }


def test_the_examples_of_inspect_work(call: Call, dataset: Path) -> None:
    examples = re.findall(r"e\.g\. pairforge (.*)", call("inspect", dataset).out)
    assert len(examples) == 2
    for example in examples:
        assert call(*example.split()).code == 0


def test_a_preview_is_a_picture(call: Call, dataset: Path, tmp_path: Path) -> None:
    said = call(
        "preview", dataset, "-o", tmp_path / "deep" / "sheet.png", "--category", "reflection", "--thumb-px", "64"
    )
    assert said == (0, f"{tmp_path}/deep/sheet.png\n", "")
    assert decode_png((tmp_path / "deep" / "sheet.png").read_bytes()).shape[0] > 64


def test_degrading_one_photo_is_repeatable(call: Call, photo: Path, tmp_path: Path) -> None:
    arguments = ["degrade", photo, "--type", "haze", "--severity", "0.7", "--seed", "3"]
    said = [call(*arguments, "-o", tmp_path / f"{n}.png", "--target", tmp_path / f"t{n}.png") for n in (1, 2)]
    told = [json.loads(each.out) for each in said]
    assert told[0]["steps"] == told[1]["steps"] and told[0]["steps"][0]["severity"] == 0.7
    pictures = [decode_png((tmp_path / f"{name}.png").read_bytes()) for name in ("1", "2", "t1")]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    other = call(*arguments[:-1], "4", "-o", tmp_path / "4.png")
    changed = json.loads(other.out)["steps"][0]
    assert all(changed[name] != told[0]["steps"][0][name] for name in ("params", "seed"))


def test_a_reflection_takes_its_second_photo(call: Call, photo_folder: Path, tmp_path: Path) -> None:
    first, second, third = sorted(photo_folder.rglob("*.png"))[:3]
    shots = []
    for number, other in enumerate((second, third)):
        said = call("degrade", first, "--type", "reflection", "--second", other, "-o", tmp_path / f"{number}.png")
        assert said.code == 0
        shots.append((tmp_path / f"{number}.png").read_bytes())
    assert shots[0] != shots[1]


def test_a_removed_source_is_gone_from_the_next_snapshot(call: Call, config: Path, tmp_path: Path) -> None:
    call("run", config, "--local")
    victim = open_snapshot(str(tmp_path / "out")).rows(["source_id"])["source_id"][0].as_py()
    said = call("remove", config, victim, "--why", "taken down")
    assert said.code == 0 and f"pairforge run {config}" in said.out
    assert call("run", config, "--local").code == 0
    assert victim not in open_snapshot(str(tmp_path / "out")).rows(["source_id"])["source_id"].to_pylist()


# --- streams, terminals, signals ---------------------------------------------------------------------


def test_a_closed_pipe_is_no_bug(dataset: Path) -> None:
    command = [*PAIRFORGE, "inspect", str(dataset), "--fate", "kept", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == console.PIPE_CLOSED


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_encoding_of_the_terminal_works(tmp_path: Path, photo: Path, encoding: str) -> None:
    for side in ("lq", "hq"):
        (tmp_path / side).mkdir()
        shutil.copyfile(photo, os.fsencode(tmp_path / side) + b"/caf\xe9.png")
    shutil.copyfile(photo, tmp_path / "lq" / "日本.png")
    names = ["--name", "old", "--category", "c", "--licence", "Müller, 日本", "--lq", str(tmp_path / "lq")]
    command = [*PAIRFORGE, "import", str(tmp_path / "out"), "--hq", str(tmp_path / "hq"), *names]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    key = open_snapshot(str(tmp_path / "out")).first_keys(1)[0]
    shown = subprocess.run([*PAIRFORGE, "inspect", str(tmp_path / "out"), key], capture_output=True, env=environment)
    assert json.loads(shown.stdout.decode(encoding))["source"]["licence"] == "Müller, 日本"
    listed = subprocess.run(
        [*PAIRFORGE, "inspect", str(tmp_path / "out"), "--fate", "rejected"], capture_output=True, env=environment
    )
    assert listed.returncode == 0 and b"duplicate" in listed.stdout and listed.stderr == b""


def on_terminal(command: Sequence[str], columns: int = 80, interrupt_at: bytes = b"\0") -> tuple[int, str]:
    """Exit code and everything that a terminal of this width was sent; Ctrl-C is typed once it shows a word."""
    child, screen = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], list(command))
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    shown, typed, limit = b"", False, time.monotonic() + 90
    while time.monotonic() < limit:
        if not typed and interrupt_at in shown:
            os.write(screen, b"\x03")
            typed = True
        if select.select([screen], [], [], 0.1)[0]:
            try:
                data = os.read(screen, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode(errors="replace")


def test_a_terminal_shows_progress_with_rate_and_time_left(make_config: MakeConfig, tmp_path: Path) -> None:
    config = write_config(make_config(shards={"records_per_shard": 2}), tmp_path / "c.yaml")
    code, shown = on_terminal([*PAIRFORGE, "run", str(config), "--local"])
    assert code == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    bars = re.findall(r"making \S+ +(\d+)/36 ([\d.]+/(?:s|min)) (\d\d:\d\d)", text)
    assert bars and [int(done) for done, _, _ in bars] == sorted(int(done) for done, _, _ in bars)
    assert "snapshot " in text and "\x1b[1m" in shown, "the head of the table is bold"
    frames = re.split(r"[\r\n]", text)
    assert all(len(frame) <= 80 for frame in frames if "making" in frame)
    assert "making" not in frames[-1]


def test_a_narrow_terminal_gets_one_line_of_progress(make_config: MakeConfig, tmp_path: Path) -> None:
    config = write_config(make_config(), tmp_path / "c.yaml")
    code, shown = on_terminal([*PAIRFORGE, "run", str(config), "--local"], columns=50)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert code == 0
    assert max(len(frame) for frame in re.split(r"[\r\n]", text) if "making" in frame) <= 50


def _alive(session: int) -> set[str]:
    """Names of the processes of a session that live. Ray's agents notice by themselves that Ray is gone."""
    names = set()
    for entry in Path("/proc").iterdir():
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, fields = rest.split()[0], rest.split()
        if entry.name.isdigit() and int(fields[3]) == session and state != "Z" and not name.startswith(_AGENTS):
            names.add(name)
    return names


MANY = [
    {
        "name": "many",
        "version": 1,
        "category": "rain",
        "variants": 40,
        "chain": [{"type": "rain", "severity": 0.5}],
    }
]
"""Work for about ten seconds."""
_AGENTS = ("ray::DashboardA", "ray::RuntimeEnv")


@pytest.mark.parametrize(
    ("mode", "sent", "code", "says"),
    [
        ("--local", signal.SIGINT, 130, "interrupted"),
        ("--local", signal.SIGTERM, 143, "terminated"),
        ("ray", signal.SIGINT, 130, "interrupted"),
    ],
)
def test_an_interrupted_run_leaves_nothing_half_visible(
    make_config: MakeConfig, tmp_path: Path, mode: str, sent: signal.Signals, code: int, says: str
) -> None:
    config = write_config(make_config(recipes=MANY), tmp_path / "c.yaml")
    command = [*PAIRFORGE, "run", str(config), *([mode] if mode == "--local" else [])]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 90
    while not any((tmp_path / "out").rglob("*.marker.json")):
        assert driver.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    driver.send_signal(sent)
    out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (code, "")
    told = err.splitlines()
    assert told.pop() == f"error {says}; what was committed stays, run again to go on"
    assert all(re.fullmatch(r"finishing \d parts in flight; Ctrl-C again to stop now", line) for line in told)
    assert len(told) == (sent == signal.SIGINT)
    limit = time.monotonic() + 20
    while _alive(driver.pid) and time.monotonic() < limit:
        time.sleep(0.2)
    assert _alive(driver.pid) == set()
    storage = open_storage(str(tmp_path / "out"))
    assert not list(storage.list("snapshots/"))
    markers = [read_marker(storage, e.name) for e in storage.list("shards/") if e.name.endswith(".marker.json")]
    assert 0 < sum(marker.planned for marker in markers) < 480
    for marker in markers:
        assert hashlib.sha256(storage.read(marker.tar_name)).hexdigest() == marker.tar_sha256
        assert hashlib.sha256(storage.read(marker.rows_name)).hexdigest() == marker.rows_sha256


def test_ctrl_c_on_a_terminal_says_what_stays(make_config: MakeConfig, tmp_path: Path) -> None:
    config = write_config(make_config(recipes=MANY), tmp_path / "c.yaml")
    code, shown = on_terminal([*PAIRFORGE, "run", str(config), "--local"], interrupt_at=b"making")
    assert code == 130
    assert "interrupted; what was committed stays, run again to go on" in shown and "Traceback" not in shown


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(call: Call, config: Path, tmp_path: Path) -> None:
    call("run", config, "--local")
    expected = open_snapshot(str(tmp_path / "out")).manifest
    for path in sorted((tmp_path / "out" / "shards").rglob("*.marker.json"))[::2]:
        path.unlink()
    said = json.loads(call("run", config, "--local", "--json").out)
    assert said["snapshot"] == expected.id and not said["published"]
    assert said["parts_made"] == 5 and said["parts_before"] == 4
    assert verify(open_snapshot(str(tmp_path / "out"))).problems == ()
