"""An S3 service inside the test process, for tests and for the processes they start.

moto checks If-Match and If-None-Match of PutObject, but not atomically: two threads can both pass the
check before either writes. S3 decides one after the other, so requests are served under one lock here.
"""

import logging
import os
import threading
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from moto.server import ThreadedMotoServer

_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"


class Fault(NamedTuple):
    """What goes wrong with the next request of this method.

    With `carried_out` the request takes effect and only its reply is lost. Status 0 breaks the connection
    in the middle of the reply's body.
    """

    method: str
    status: int
    code: str = "InternalError"
    carried_out: bool = False


class FaultyApp:
    """WSGI application that serves one request at a time and plays the faults in `faults`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = threading.Lock()
        self.faults: list[Fault] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self.lock:
            fault = next((f for f in self.faults if f.method == environ["REQUEST_METHOD"]), None)
            if fault is None:
                return list(self.app(environ, start_response))
            self.faults.remove(fault)
            if fault.status == 0:
                body = b"".join(self.app(environ, start_response))
                return [body[: len(body) // 2]]
            if fault.carried_out:
                list(self.app(environ, lambda *_: None))
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = _ERROR.format(code=fault.code).encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            start_response(f"{fault.status} Injected", headers)
            return [body]


@pytest.fixture(scope="session")
def s3_app() -> Iterator[FaultyApp]:
    """The running service. botocore finds it through the environment, here and in subprocesses."""
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    app = FaultyApp(server._server.app)
    server._server.app = app
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(variable, raising=False)
        for variable in ("no_proxy", "NO_PROXY"):
            patch.setenv(variable, ",".join(filter(None, [os.environ.get(variable), host])))
        s3fs.S3FileSystem.clear_instance_cache()
        yield app
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3_url(s3_app: FaultyApp) -> Iterator[str]:
    """URL of a fresh, empty bucket."""
    bucket = f"test-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 200
    s3_app.faults.clear()
    yield f"s3://{bucket}"
    assert not s3_app.faults, f"faults that no request met: {s3_app.faults}"
