"""The choice of a store and its health, against real sockets."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lovasz_repro.store import Store, StoreError
from lovasz_repro.store.tracking import check_server, choose_uri, database_of, explain


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_argument_then_environment_then_results(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Path("/data/results")
    assert choose_uri(results, None) == "sqlite:////data/results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:1")
    assert choose_uri(results, None) == "http://a:1"
    assert choose_uri(results, "http://b:2") == "http://b:2"


@pytest.mark.parametrize(
    ("results", "uri", "told"),
    [("results", uri, r"is a folder.*use sqlite:///PATH/mlflow.db")
     for uri in ("file:///runs", "file:runs", "/runs", "runs", "./mlruns")]
    + [(results, None, "may not have % or") for results in ("100%", "what?")],
)  # fmt: skip
def test_what_cannot_be_a_store(results: str, uri: str | None, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        choose_uri(Path(results), uri)


def test_a_scheme_that_mlflow_does_not_know_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Store(tmp_path, "gopher://somewhere").runs()
    assert "\n" not in str(caught.value)


def test_which_file_an_uri_means() -> None:
    assert database_of("sqlite:////a/b.db") == Path("/a/b.db")
    assert database_of("sqlite:///b.db") == Path("b.db").absolute()
    assert database_of("sqlite:///:memory:") is None
    assert database_of("sqlite:///file:/a/b.db?mode=ro&uri=true") is None
    assert database_of("http://host") is None


def test_a_server_that_dies_amid_its_answer_or_has_only_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str
) -> None:
    monkeypatch.setattr(Answer, "do_POST", Answer.do_GET, raising=False)
    store = Store(tmp_path, server)
    with pytest.raises(StoreError, match="answers with errors"):
        store.runs()

    def die(answer: BaseHTTPRequestHandler) -> None:
        answer.send_response(200)
        answer.send_header("Content-Length", "1000")
        answer.end_headers()

    monkeypatch.setattr(Answer, "do_POST", die)
    monkeypatch.setattr(Answer, "do_GET", die)
    with pytest.raises(StoreError, match="does not answer"):
        store.runs()


def test_unknown_errors_keep_their_first_line() -> None:
    error = explain(RuntimeError("first\nsecond"), "here")
    assert str(error) == "store here: first"
    assert str(explain(KeyError(), "here")) == "store here: KeyError"


class Answer(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code if self.path == "/base/health" else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/base"
        running.shutdown()
        thread.join()


def test_living_servers_and_something_else(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (200, 401, 403):
        monkeypatch.setattr(Answer, "code", code)
        check_server(server)
        check_server(server + "/")
    for code in (404, 500):
        monkeypatch.setattr(Answer, "code", code)
        with pytest.raises(StoreError, match=f"answers HTTP {code} on /health"):
            check_server(server)


def test_a_dead_server_is_one_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(StoreError, match="does not answer") as caught:
            Store(tmp_path, f"http://somebody:secret@127.0.0.1:{port}")
    assert f"http://***@127.0.0.1:{port}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "unset MLFLOW_TRACKING_URI" in str(caught.value)


def test_what_is_no_server_of_the_web_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            caller, _ = listening.accept()
            with caller:
                caller.recv(1000)
                caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(StoreError, match="does not answer"):
            check_server(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    with pytest.raises(StoreError, match="does not answer"):
        check_server("http://127.0.0.1:port")


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lovasz_repro.store.tracking.HEALTH_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreError, match="does not answer"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")
