"""A real cluster head with its own token: a run as a submitted job, and what a wrong token gets."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.engine import LocalBackend
from pipelines.plan import render_settings
from pipelines.publication import read_status
from pipelines.run import run, stages_of
from tests.conftest import config_of
from tests.pipelines.test_run import hashes

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
UP_WITHIN_S = 40


@dataclass(frozen=True)
class Head:
    """A running head: where it answers, and the environment that its callers need."""

    gcs_port: int
    dashboard_port: int
    env: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports above those that Ray gives its workers (10002 to 19999)."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in range(20_000 + os.getpid() % 5000, 32_000):
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with its own ports, token and folder; ended by its own process id."""
    folder = tmp_path_factory.mktemp("r")
    token = folder / "token"
    token.write_text(os.urandom(32).hex())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    gcs, dashboard, client, agent = free_ports(4)
    options = {
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agent,
        "temp-dir": folder,  # sockets below it: their paths may have 107 bytes
        "num-cpus": 2,
        "object-store-memory": 100 * 2**20,
    }
    command = [RAY, "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        limit = time.monotonic() + UP_WITHIN_S
        while not answers(dashboard, token.read_text()):
            assert process.poll() is None and time.monotonic() < limit, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield Head(gcs, dashboard, env)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session that it leads, nothing else
            process.wait()


def answers(port: int, token: str) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/version")
    request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def submit(head: Head, name: str, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{head.dashboard_port}"
    job = [RAY, "job", "submit", "--address", address, "--submission-id", name, "--", *map(shlex.quote, command)]
    return subprocess.run(job, env=env, capture_output=True, text=True, timeout=120)


def test_a_submitted_run_leaves_the_bytes_of_a_local_one(head: Head, tmp_path: Path, photo_folder: Path) -> None:
    config = config_of(tmp_path / "job", photo_folder)
    path, log = tmp_path / "c.yaml", tmp_path / "log.jsonl"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path), "--address", "auto", "--log", str(log)]
    done = submit(head, "night-1", command, head.env)
    assert done.returncode == 0, done.stdout + done.stderr
    from pairforge.storage import open_storage

    status = read_status(open_storage(config.output))
    assert status["kept"] == 36 and status["latest_snapshot"]
    hosts = [json.loads(line) for line in log.read_text().splitlines()]
    assert not [line for line in hosts if line["event"] == "stage done"], "stages ran on the cluster's workers"
    alone = config_of(tmp_path / "local", photo_folder)
    run(alone, lambda config, output: LocalBackend(stages_of(config), (render_settings(config), output)))
    assert hashes(config.output) == hashes(alone.output)
    again = submit(head, "night-1", ["true"], head.env)
    assert again.returncode != 0, "the scheduler's id is taken once"


def test_a_job_that_fails_says_so(head: Head, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "absent.yaml"), "--address", "auto"]
    assert submit(head, "night-2", command, head.env).returncode == 1


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_wrong_token_is_refused_with_a_clear_message(
    head: Head, tmp_path: Path, photo_folder: Path, token: str | None
) -> None:
    config = config_of(tmp_path / "refused", photo_folder)
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    env = {**head.env, "HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "2"}
    if token is None:
        del env["RAY_AUTH_TOKEN_PATH"]
    else:
        (tmp_path / "wrong").write_text(token)
        env["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "wrong")
    command = [sys.executable, "-m", "pipelines.cli", "run", str(path), "--address", f"127.0.0.1:{head.gcs_port}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6, done.stdout + done.stderr
    message = done.stderr[done.stderr.index("error") :]
    assert "refused the token" in message and "RAY_AUTH_TOKEN_PATH" in message
    assert "Traceback" not in done.stderr
    assert not (Path(config.output) / "shards").exists()
