"""Fetching, locking and verifying models: the true Hub library against a loopback Hub."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from degradations.scene.learned import model_hash
from filters.weights import weights_hash
from generators.diffusion import pipeline_hash
from pairforge.config import ConfigError
from pairforge.local_chat import chat_hash
from pairforge.records import DamagedError, InfraError
from pipelines import cli_models, console
from pipelines.models import (
    LOCK,
    MODELS,
    Model,
    fetch_model,
    load_models,
    pin_of,
    read_lock,
    state_of,
)
from tests.hub_server import Hub, Repo, hub_server

hub_library = pytest.importorskip("huggingface_hub")

TOKEN = "hf_plantedSecretToken0123456789"
COMMITS = ("a" * 40, "b" * 40)
WEIGHTS = bytes(range(256)) * 400
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again, in a format that may hold code",
    "README.md": b"# tiny",
}
ENTRY: Mapping[str, Any] = {
    "purpose": "depth",
    "repo": "owner/tiny",
    "revision": "main",
    "files": ["*.json", "model.safetensors"],
    "licence": "Apache-2.0",
    "commercial": True,
}
TINY = Model.model_validate(ENTRY)
FETCHED = {"config.json", "model.safetensors", "preprocessor_config.json"}
FREE_ONLY = {"commercial": False, "licence": "Free-For-Study"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    repos = {
        "owner/tiny": Repo({COMMITS[0]: FILES}),
        "owner/gated": Repo({COMMITS[0]: FILES}, gated=True),
        "owner/study": Repo({COMMITS[0]: FILES}, licence="free-for-study"),
    }
    with hub_server(repos, TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache_of_others"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
    assert not (tmp_path / "cache_of_others").exists(), "something was written outside the folder"


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """`pairforge models ...` in this process, with a list of small models."""
    listing = tmp_path / "models.yaml"
    models = {
        "tiny": ENTRY,
        "study": {**ENTRY, **FREE_ONLY, "repo": "owner/study"},
        "unsure": {**ENTRY, "commercial": None, "licence": "who-knows"},
        "gated": {**ENTRY, "repo": "owner/gated"},
        "gone": {**ENTRY, "repo": "owner/gone"},
        "old": {**ENTRY, "revision": "v0"},
        "short": {**ENTRY, "files": ["config.json", "model.gguf"]},
        "relicensed": {**ENTRY, "repo": "owner/study"},
    }
    listing.write_text(yaml.safe_dump({"version": 1, "models": models}))

    def run(*arguments: object) -> Said:
        more = [] if arguments[0] == "verify" else ["--models", str(listing)]
        given = [*(str(argument) for argument in arguments), *more]
        code = console.guarded(lambda: cli_models.app(given, "pairforge models"))
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return Said(code, said.out, said.err)

    return run


def test_a_model_is_fetched_locked_and_verified(hub: Hub, call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    said = call("fetch", "tiny", "--to", folder, "--json")
    assert said.code == 0, said.err
    assert "owner/tiny, licence Apache-2.0 (allows commercial use)" in said.err
    told = json.loads(said.out)["tiny"]
    assert told["weights"] == model_hash(str(folder / "tiny")) and told["commit"] == COMMITS[0]
    there = {path.relative_to(folder / "tiny").as_posix(): path for path in (folder / "tiny").rglob("*")}
    assert set(there) == FETCHED
    assert all(path.read_bytes() == FILES[name] for name, path in there.items())
    text = (folder / LOCK).read_text()
    locked = read_lock(folder).models["tiny"]
    assert set(locked.files) == FETCHED and locked.weights == told["weights"]
    assert (locked.repo, locked.revision, locked.licence) == ("owner/tiny", "main", "Apache-2.0")
    assert TOKEN not in text and str(tmp_path) not in text and hub.tokens == {TOKEN}
    assert call("verify", "--to", folder) == Said(0, "1 models; no fault\n", "hashing tiny\n")
    rows = {row["name"]: row for row in json.loads(call("list", "--to", folder, "--json").out)}
    assert rows["tiny"]["present"] == "yes" and rows["study"]["present"] == "no"
    assert rows["tiny"]["bytes"] == sum(len(FILES[name]) for name in FETCHED)
    assert "Free-For-Study" in call("list").out


def test_fetching_again_asks_nobody_and_writes_the_same_lock(hub: Hub, call: Call, tmp_path: Path) -> None:
    call("fetch", "tiny", "--to", tmp_path / "a")
    before, asked = (tmp_path / "a" / LOCK).read_bytes(), len(hub.asked)
    assert call("fetch", "tiny", "--to", tmp_path / "a").code == 0
    assert len(hub.asked) == asked
    call("fetch", "tiny", "--to", tmp_path / "b")
    assert before == (tmp_path / "a" / LOCK).read_bytes() == (tmp_path / "b" / LOCK).read_bytes()


def test_the_lock_holds_the_commit_until_an_update(hub: Hub, tmp_path: Path) -> None:
    first = fetch_model("tiny", TINY, tmp_path)
    newer = {name: data for name, data in FILES.items() if name != "preprocessor_config.json"}
    hub.repos["owner/tiny"].commits[COMMITS[1]] = {**newer, "config.json": b'{"model_type": "newer"}'}
    (tmp_path / "tiny" / "config.json").unlink()
    assert fetch_model("tiny", TINY, tmp_path) == first
    second = fetch_model("tiny", TINY, tmp_path, update=True)
    assert second.commit == COMMITS[1] and second.weights != first.weights
    assert (
        {path.name for path in (tmp_path / "tiny").iterdir()}
        == set(second.files)
        == FETCHED - {"preprocessor_config.json"}
    )
    assert hub.downloads().count("model.safetensors") == 1, "weights that did not change came twice"


def test_an_interrupted_fetch_goes_on(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.broken.add("model.safetensors")
    said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.INFRA and "tiny: owner/tiny cannot be fetched" in said.err
    assert not (tmp_path / LOCK).exists()
    assert state_of("tiny", tmp_path, read_lock(tmp_path)) == "partly"
    hub.asked.clear()
    assert call("fetch", "tiny", "--to", tmp_path).code == 0
    assert hub.downloads() == ["model.safetensors"], "what had come whole was asked for again"
    assert call("verify", "--to", tmp_path).code == 0


def test_a_broken_connection_goes_on_at_the_byte(
    hub: Hub, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.stops_at["model.safetensors"] = 60_000
    assert call("fetch", "tiny", "--to", tmp_path).code == 0
    ranges = [asked[2] for asked in hub.asked if asked[0] == "GET" and asked[1].endswith("model.safetensors")]
    assert ranges == [None, "bytes=60000-"]
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() == WEIGHTS


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a byte": ("model.safetensors", _change, "has other bytes than the lock says"),
    "a byte of text": ("config.json", _change, "has other bytes than the lock says"),
    "cut": ("model.safetensors", lambda path: path.write_bytes(b"x"), f"has 1 bytes, not {len(WEIGHTS)}"),
    "gone": ("config.json", Path.unlink, "is missing"),
    "all gone": ("config.json", lambda path: shutil.rmtree(path.parent), "is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_repaired(hub: Hub, call: Call, tmp_path: Path, kind: str) -> None:
    file, damage, says = DAMAGE[kind]
    call("fetch", "tiny", "--to", tmp_path)
    lock = (tmp_path / LOCK).read_bytes()
    damage(tmp_path / "tiny" / file)
    said = call("verify", "--to", tmp_path)
    assert said.code == console.UNVERIFIED and f"fault tiny/{file} {says}" in said.err
    assert call("verify", "--to", tmp_path, "--json").code == console.UNVERIFIED
    assert call("fetch", "tiny", "--to", tmp_path).code == 0
    assert call("verify", "--to", tmp_path).code == 0
    assert (tmp_path / LOCK).read_bytes() == lock


def test_a_file_that_nobody_fetched_is_a_fault_and_is_not_removed(call: Call, tmp_path: Path) -> None:
    call("fetch", "tiny", "--to", tmp_path)
    stranger = tmp_path / "tiny" / "other.safetensors"
    stranger.write_bytes(b"mine")
    said = call("verify", "--to", tmp_path)
    assert said.code == console.UNVERIFIED and "tiny/other.safetensors is not in the lock" in said.err
    said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.USAGE and "move it away" in said.err
    assert stranger.read_bytes() == b"mine"


def test_a_folder_of_somebody_else_is_left_alone(hub: Hub, call: Call, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("mine")
    said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.USAGE and "no fetch put there" in said.err
    assert not hub.asked and (tmp_path / "tiny" / "config.json").read_text() == "mine"


REFUSED: dict[str, tuple[list[str], str]] = {
    "no commercial use": (["study"], r"does not allow commercial use; read it, .*--accept-licence Free-For-Study"),
    "not known": (["unsure"], r"may not allow commercial use.*--accept-licence who-knows"),
    "another accepted": (["study", "--accept-licence", "MIT"], r"--accept-licence Free-For-Study"),
    "one of two": (["tiny", "study"], r"--accept-licence Free-For-Study"),
    "unknown name": (["tinny"], r"there is no model 'tinny'; did you mean 'tiny'\?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_asked(hub: Hub, call: Call, tmp_path: Path, case: str) -> None:
    arguments, says = REFUSED[case]
    said = call("fetch", *arguments, "--to", tmp_path / "models")
    assert said.code == console.USAGE and said.out == ""
    assert re.search(says, said.err)
    assert not hub.asked and not (tmp_path / "models").exists()


def test_an_accepted_licence_is_fetched_and_recorded(call: Call, tmp_path: Path) -> None:
    assert call("fetch", "study", "--to", tmp_path, "--accept-licence", "Free-For-Study").code == 0
    locked = read_lock(tmp_path).models["study"]
    assert locked.licence == "Free-For-Study" and locked.commercial is False


def test_a_card_that_states_another_licence_is_not_overlooked(hub: Hub, call: Call, tmp_path: Path) -> None:
    said = call("fetch", "relicensed", "--to", tmp_path)
    assert said.code == console.USAGE
    assert "the list says Apache-2.0, the card of owner/study says free-for-study" in said.err
    assert not hub.downloads()
    assert call("fetch", "relicensed", "--to", tmp_path, "--accept-licence", "free-for-study").code == 0


TROUBLES = {
    "gone": "the Hub gives no access to owner/gone (HTTP 404)",
    "old": "owner/tiny has no such revision",
    "short": f"owner/tiny at {COMMITS[0]} holds no file model.gguf",
}


@pytest.mark.parametrize("name", TROUBLES)
def test_what_the_caller_must_change(call: Call, tmp_path: Path, name: str) -> None:
    said = call("fetch", name, "--to", tmp_path)
    assert said.code == console.USAGE and TROUBLES[name] in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("token", ["", "hf_wrongSecretToken987654321"])
def test_a_gated_model_needs_the_right_token(
    hub: Hub, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    said = call("fetch", "gated", "--to", tmp_path)
    assert said.code == console.USAGE
    assert f"owner/gated is gated: accept its licence at {hub.url}/owner/gated" in said.err
    assert "hf_wrong" not in said.err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert call("fetch", "gated", "--to", tmp_path).code == 0
    assert TOKEN not in (tmp_path / LOCK).read_text()


def test_no_network(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.INFRA
    assert "tiny: owner/tiny cannot be fetched from http://127.0.0.1:9: ConnectError" in said.err


def test_a_full_disk(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
        said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.INFRA and "tiny needs 0.0 GB more" in said.err

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_library, "snapshot_download", no_room)
    said = call("fetch", "tiny", "--to", tmp_path)
    assert said.code == console.INFRA and "tiny: the disk is full; what came stays" in said.err


def test_bytes_that_were_not_announced(hub: Hub, tmp_path: Path) -> None:
    hub.lies["model.safetensors"] = bytes(len(WEIGHTS))
    with pytest.raises(DamagedError, match="came with other bytes than the Hub announced"):
        fetch_model("tiny", TINY, tmp_path)
    assert not (tmp_path / LOCK).exists()
    hub.lies.clear()
    locked = fetch_model("tiny", TINY, tmp_path)
    hub.repos["owner/tiny"].commits[COMMITS[0]] = {**FILES, "config.json": b"{}"}
    (tmp_path / "tiny" / "config.json").unlink()
    with pytest.raises(DamagedError, match="holds other bytes than"):
        fetch_model("tiny", TINY, tmp_path)
    assert read_lock(tmp_path).models["tiny"] == locked


def test_a_library_that_takes_a_part_for_the_whole(hub: Hub, tmp_path: Path) -> None:
    """As the Hub's does, with a warning, where a folder is there and the listing cannot be had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_library, "snapshot_download", lambda *_, **__: str(tmp_path / "tiny"))
        with pytest.raises(InfraError, match="did not come whole"):
            fetch_model("tiny", TINY, tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_damaged_lock_and_none(call: Call, tmp_path: Path) -> None:
    said = call("verify", "--to", tmp_path)
    assert said.code == console.USAGE and f"holds no {LOCK}" in said.err
    (tmp_path / LOCK).write_text('{"models": {"tiny"')
    for arguments in (("verify", "--to", tmp_path), ("fetch", "tiny", "--to", tmp_path), ("list", "--to", tmp_path)):
        said = call(*arguments)
        assert said.code == console.UNVERIFIED and f"{LOCK} is damaged" in said.err


def test_pins_are_those_that_loaders_check(tmp_path: Path) -> None:
    files = ("config.json", "open_clip_config.json", "merges.txt", "chat_template.jinja", "model.safetensors")
    for file in (*files, "vae/config.json", "vae/model.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(file)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline", "vae": ["diffusers", "X"]}')
    path = str(tmp_path)
    assert pin_of("depth", tmp_path) == pin_of("segments", tmp_path) == model_hash(path)
    assert pin_of("clip", tmp_path) == pin_of("watermark", tmp_path) == weights_hash(tmp_path)
    assert pin_of("vlm", tmp_path) == chat_hash(path)
    assert pin_of("generator", tmp_path) == pipeline_hash(path)
    assert len({pin_of(purpose, tmp_path) for purpose in ("depth", "clip", "vlm", "generator")}) == 4
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        pin_of("depth", tmp_path)


def test_the_list_that_comes_with_pairforge(tmp_path: Path) -> None:
    models = load_models()
    assert {model.purpose for model in models.values()} == set(Model.model_fields["purpose"].annotation.__args__)  # type: ignore[union-attr]
    assert [name for name, model in models.items() if not model.commercial] == ["flux1_kontext_dev"]
    assert not any(pattern in ("*", "**") or pattern.endswith(".bin") for m in models.values() for pattern in m.files)
    broken = tmp_path / "models.yaml"
    broken.write_text(MODELS.read_text().replace("purpose: vlm", "purpose: vml"))
    with pytest.raises(ConfigError, match="qwen3_vl_8b"):
        load_models(broken)


def test_the_environment_names_the_hub_and_the_token(hub: Hub, tmp_path: Path) -> None:
    """A fresh process, as a user starts it."""
    listing = tmp_path / "models.yaml"
    listing.write_text(yaml.safe_dump({"version": 1, "models": {"gated": {**ENTRY, "repo": "owner/gated"}}}))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    script = "import sys; from pipelines import cli_models, console; sys.exit(console.guarded(cli_models.app))"
    arguments = ["fetch", "gated", "--to", str(tmp_path / "models"), "--models", str(listing)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent.parent,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "in a config: model:" in done.stdout and hub.tokens == {TOKEN}
    assert TOKEN not in done.stdout + done.stderr
    for path in (tmp_path / "models").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
