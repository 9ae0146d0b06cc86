"""The choice of a store and its health, against real sockets and a real MLflow server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lovasz_repro.store import Store, StoreError
from lovasz_repro.store.journal import Journal, Point
from lovasz_repro.store.shipping import Shipper
from lovasz_repro.store.tracking import check_server, choose_uri, database_of, explain
from lovasz_repro.store.transfer import export_runs, import_runs


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_argument_then_environment_then_results(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Path("/data/results")
    assert choose_uri(results, None) == "sqlite:////data/results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:1")
    assert choose_uri(results, None) == "http://a:1"
    assert choose_uri(results, "http://b:2") == "http://b:2"


@pytest.mark.parametrize("uri", ["file:///runs", "file:runs", "/runs", "runs", "./mlruns"])
def test_folders_are_refused(uri: str) -> None:
    with pytest.raises(StoreError, match=r"is a folder.*use sqlite:///PATH/mlflow.db"):
        choose_uri(Path("results"), uri)


@pytest.mark.parametrize("name", ["100%", "what?"])
def test_results_folders_that_a_uri_cannot_hold(name: str) -> None:
    with pytest.raises(StoreError, match="may not have % or"):
        choose_uri(Path(name), None)


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


@pytest.mark.parametrize("code", [200, 401, 403])
def test_a_living_server_passes(server: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "code", code)
    check_server(server)
    check_server(server + "/")


@pytest.mark.parametrize("code", [404, 500])
def test_something_else_does_not(server: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answer, "code", code)
    with pytest.raises(StoreError, match=f"answers HTTP {code} on /health"):
        check_server(server)


def test_a_dead_server_is_one_line_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(StoreError, match="does not answer") as caught:
            Store(tmp_path, f"http://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)
    assert "unset MLFLOW_TRACKING_URI" in str(caught.value)


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lovasz_repro.store.tracking.HEALTH_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreError, match="does not answer"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.fixture
def mlflow_server(
    empty_database: Path, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real `mlflow server` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    shutil.copy(empty_database, tmp_path / "served.db")
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/served.db"]
    command += ["--artifacts-destination", str(tmp_path / "served")]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                check_server(uri)
                break
            except StoreError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield uri, process
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.mark.slow
def test_a_real_server_holds_runs_and_may_hang_for_a_while(
    mlflow_server: tuple[str, subprocess.Popen[bytes]],
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, process = mlflow_server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    store = Store(tmp_path / "results", uri)
    parent = store.open_parent("e", "parent", {})
    run_id = store.open_child("e", parent, "run", "id", {"a": 1}, {"b": "c"})
    assert store.open_child("e", parent, "run", "id", {"a": 1}, {"b": "c"}) == run_id
    said: list[str] = []
    with Journal(tmp_path / "work" / "journal.jsonl") as journal:
        shipper = Shipper(store, run_id, journal, every=0.1, say=said.append)
        journal.log(1, {"loss": 0.5})
        shipper.commit(1)
        while not store.history(run_id, "loss"):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        for step in range(2, 3000):
            journal.log(step, {"loss": 1 / step})
        shipper.commit(3000)
        while not said:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGCONT)
        assert shipper.close("FINISHED", patience=60)
    expected = [(1, 0.5)] + [(step, 1 / step) for step in range(2, 3000)]
    assert store.history(run_id, "loss") == expected
    assert len(store.points(run_id)) == 2999
    (tmp_path / "a.txt").write_text("x")
    store.add_artifact(run_id, tmp_path / "a.txt", "sub")
    assert store.artifact_names(run_id) == ["sub/a.txt"]
    assert store.artifact(run_id, "sub/a.txt").read_text() == "x"
    with pytest.raises(StoreError, match="no artifact"):
        store.artifact(run_id, "sub/b.txt")
    assert export_runs(store, tmp_path / "out") == 1
    local = make_store("local")
    assert import_runs(local, tmp_path / "out").added == ["e/run"]
    assert local.history(local.runs()[0].run_id, "loss") == expected
    store.log(run_id, [Point("loss", float("inf"), 5000, 1)])
    assert store.runs()[0].tags["nonfinite/loss"] == "inf at step 5000"
    assert store.get("0" * 32) is None
