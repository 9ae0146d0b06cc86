"""Downloads from a real server that breaks off, lies, stalls and redirects."""

import contextlib
import hashlib
import json
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host import download as module
from lovasz_repro.host.download import (
    ATTEMPTS,
    UnavailableError,
    check_address,
    download,
    redirected,
)
from tests.file_server import Exchange, FileServer, file, raw, serving

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
OTHER = CONTENT[::-1]
SIZE, HALF = len(CONTENT), len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that downloads wanted to wait; they do not, and take no proxy."""
    waits: list[float] = []
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "weights.bin"


def fetch(server: FileServer, target: Path, **known: Any) -> Path:
    return download(server.url, target, **known)


def lies_there(target: Path) -> dict[str, int]:
    """Every file beside the target, and its length."""
    return {path.name: path.stat().st_size for path in target.parent.iterdir()}


def assert_whole(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert lies_there(target) == {target.name: len(content)}


# -- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known", [{}, {"size": SIZE}, {"sha256": SHA256}, {"size": SIZE, "sha256": SHA256[:8].upper()}]
)
def test_a_whole_file(target: Path, known: dict[str, Any]) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(file(CONTENT)) as server:
        done = fetch(server, target, progress=lambda *state: seen.append(state), **known)
    assert done == target
    assert_whole(target)
    assert seen[0] == (0, SIZE)
    assert seen[-1] == (SIZE, SIZE)
    assert sorted(seen) == seen


def test_goes_on_where_it_broke_off(target: Path, waits: list[float]) -> None:
    with serving(file(CONTENT, cut=HALF), file(CONTENT, cut=100), file(CONTENT)) as server:
        fetch(server, target, sha256=SHA256)
    assert_whole(target)
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + 100}-"]
    assert server.versions == [None, '"one"', '"one"']
    assert server.served == SIZE  # every byte once
    assert waits == [1.0, 1.0]  # each attempt brought something


def test_a_later_call_goes_on(target: Path) -> None:
    with serving(file(CONTENT, cut=HALF), raw(503)) as server:
        with pytest.raises(UnavailableError, match=f"503.*{HALF:,} bytes are kept.*the same comm"):
            fetch(server, target)
        assert set(lies_there(target)) == {"weights.bin.part", "weights.bin.part.json"}
        server.answers = (file(CONTENT),)
        fetch(server, target)
    assert_whole(target)
    assert server.served == SIZE


def chunked(content: bytes, whole: bool) -> Any:
    def answer(exchange: Exchange) -> None:
        exchange.head(200, {"Transfer-Encoding": "chunked", "ETag": '"one"'})
        exchange.body(b"%x\r\n%s\r\n" % (len(content), content) + (b"0\r\n\r\n" if whole else b""))

    return answer


def rest(content: bytes, etag: str, extent: str) -> Any:
    """What somebody takes for the second half."""
    return raw(206, content[HALF:], Content_Length=HALF, ETag=etag, Content_Range=extent)


DAY = {"Last-Modified": "Mon, 04 Dec 2017 10:00:00 GMT"}
CUT, REST, FIT = file(CONTENT, cut=HALF), f"bytes={HALF}-", f"bytes {HALF}-{SIZE - 1}/{SIZE}"
SEVERAL_ATTEMPTS = {
    # the answers, the file that is there in the end, the ranges that were asked for
    "the last change names a version too": (
        [file(CONTENT, 'W/"weak"', cut=HALF, **DAY), file(CONTENT, DAY["Last-Modified"])],
        CONTENT, [None, REST],
    ),
    "no version": ([file(CONTENT, None, cut=HALF), file(OTHER, None)], OTHER, [None, None]),
    "ranges are ignored": (
        [CUT, raw(200, CONTENT, Content_Length=SIZE, ETag='"one"')], CONTENT, [None, REST]
    ),
    "another file": ([CUT, file(OTHER, '"two"')], OTHER, [None, REST]),
    "the rest of another file": (
        [CUT, rest(OTHER, '"two"', FIT), file(OTHER, '"two"')], OTHER, [None, REST, None]
    ),
    "the file became shorter": (
        [CUT, raw(416), file(OTHER[:9], '"two"')], OTHER[:9], [None, REST, None]
    ),
    "chunks without an end": (
        [chunked(CONTENT[:HALF], False), file(CONTENT)], CONTENT, [None, REST]
    ),
    "chunks tell their end": ([chunked(OTHER, True)], OTHER, [None]),
} | {
    f"the rest is {extent!r}": (
        [CUT, rest(CONTENT, '"one"', extent), file(CONTENT)], CONTENT, [None, REST, None]
    )
    for extent in (f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes {HALF}-{SIZE}/{SIZE + 1}", "bytes */9", "")
}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "content", "ranges"), SEVERAL_ATTEMPTS.values(), ids=SEVERAL_ATTEMPTS
)
def test_in_the_end_the_file_is_whole(
    target: Path, answers: list[Any], content: bytes, ranges: list[str | None]
) -> None:
    with serving(*answers) as server:
        fetch(server, target)
    assert_whole(target, content)
    assert server.ranges == ranges


def test_silence_counts_as_broken(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
    left: list[bool] = []

    def stall(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": SIZE, "ETag": '"one"'})
        exchange.body(CONTENT[:HALF])
        left.append(exchange.server.closing.wait(5))

    with serving(stall, file(CONTENT)) as server:
        fetch(server, target)
    assert_whole(target)
    assert server.served == SIZE
    assert left == [True]  # not after the silence


def test_redirects_keep_the_range(target: Path) -> None:
    def send_on(exchange: Exchange) -> None:
        raw(302, Location=exchange.server.url, Content_Length=0)(exchange)

    with serving(file(CONTENT, cut=HALF), send_on, file(CONTENT)) as server:
        fetch(server, target)
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert server.served == SIZE


def test_what_is_complete_is_not_asked_for_again(target: Path) -> None:
    target.parent.mkdir()
    with serving(file(CONTENT)) as server:
        target.with_name("weights.bin.part").write_bytes(CONTENT)
        note = {"url": server.url, "version": '"one"', "total": SIZE}
        target.with_name("weights.bin.part.json").write_text(json.dumps(note))
        fetch(server, target, sha256=SHA256)
    assert server.ranges == []
    assert_whole(target)


@pytest.mark.parametrize(
    "note",
    [
        None, "", "[]", "{", "[" * 100_000, '{"url": 1}', "\udcff",
        {"total": 5}, {"total": "many"}, {"total": {}}, {"url": "http://127.0.0.1/other"},
    ],
)  # fmt: skip
def test_a_part_of_who_knows_what_is_dropped(target: Path, note: Any) -> None:
    target.parent.mkdir()
    target.with_name("weights.bin.part").write_bytes(OTHER[:HALF])
    with serving(file(CONTENT)) as server:
        if isinstance(note, dict):
            right = {"url": server.url, "version": '"one"', "total": SIZE}
            note = json.dumps(right | note)
        if note is not None:
            path = target.with_name("weights.bin.part.json")
            path.write_bytes(note.encode(errors="surrogateescape"))
        fetch(server, target)
    assert server.ranges == [None]
    assert_whole(target)


# -- what is refused -----------------------------------------------------------------------------


def refused(server: FileServer, target: Path, **known: Any) -> str:
    """The one line of a download that fails; an older file stays as it was."""
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"older")
    with pytest.raises(UnavailableError) as caught:
        fetch(server, target, **known)
    assert target.read_bytes() == b"older"
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(server.url)
    return str(caught.value)


def test_a_server_that_promises_more_than_it_sends(target: Path, waits: list[float]) -> None:
    with serving(raw(200, CONTENT, Content_Length=SIZE + 9, ETag='"one"')) as server:
        message = refused(server, target)
    assert f"broke off; 4 attempts in a row brought nothing. {SIZE:,} bytes are kept" in message
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(server.ranges) == 1 + ATTEMPTS


def flood(headers: dict[str, str], block: bytes) -> Any:
    """An answer that does not end."""

    def answer(exchange: Exchange) -> None:
        exchange.head(200, headers)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                exchange.body(block)

    return answer


LESS = raw(200, CONTENT, Content_Length=HALF)
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
DISGUISED = raw(200, PAGE, Content_Length=len(PAGE))
ENDLESS = raw(200, CONTENT, Connection="close")  # nobody tells its end
TOO_MUCH = f"sends more than the {SIZE:,} bytes"


@pytest.mark.parametrize(
    ("answer", "known", "told"),
    [
        (LESS, {"size": SIZE}, f"has {HALF:,} bytes, expected {SIZE:,}"),
        (
            LESS,
            {"sha256": SHA256},
            f"SHA-256 is {hashlib.sha256(CONTENT[:HALF]).hexdigest()}, expected {SHA256}",
        ),
        (flood({"Connection": "close"}, bytes(2**18)), {"size": SIZE}, TOO_MUCH),
        (
            flood({"Transfer-Encoding": "chunked"}, b"40000\r\n" + bytes(2**18) + b"\r\n"),
            {"size": SIZE},
            TOO_MUCH,
        ),
        (ENDLESS, {}, "Give its --sha256"),
        (DISGUISED, {}, "web page"),
        (DISGUISED, {"sha256": SHA256}, "web page"),
        (raw(200, Content_Length=0), {}, "an empty file came"),
        (raw(200, CONTENT, Content_Length=SIZE, Content_Encoding="gzip"), {}, "came as gzip"),
        (raw(404, Content_Length=0), {}, "HTTP 404"),
        (raw(403, Content_Length=0), {}, "HTTP 403"),
    ],
)
def test_what_is_not_the_file(target: Path, answer: Any, known: dict[str, Any], told: str) -> None:
    with serving(answer) as server:
        assert told in refused(server, target, **known)
    assert len(server.ranges) == 1
    assert lies_there(target) == {"weights.bin": 5}


def test_no_limit_but_ours(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", HALF)
    with serving(file(CONTENT)) as server:
        assert "more than any weights" in refused(server, target)
    with serving(chunked(CONTENT, whole=True)) as server:
        assert f"more than the {HALF:,} bytes" in refused(server, target)


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"size": SIZE}])
def test_an_end_that_nobody_tells(target: Path, known: dict[str, Any]) -> None:
    with serving(ENDLESS) as server:
        fetch(server, target, **known)
    assert_whole(target)


def test_a_web_page_leaves_what_has_come(target: Path) -> None:
    page = raw(200, PAGE, Content_Length=len(PAGE), Content_Type="text/html; charset=utf-8")
    with serving(file(CONTENT, cut=HALF), page) as server:
        assert "web page" in refused(server, target, sha256=SHA256)
        assert lies_there(target)["weights.bin.part"] == HALF
        server.answers = (file(CONTENT),)
        fetch(server, target, sha256=SHA256)
    assert server.served == SIZE + len(PAGE)


@pytest.mark.parametrize("status", [500, 429])
def test_errors_that_may_pass(target: Path, status: int) -> None:
    with serving(raw(status, Content_Length=0)) as server:
        assert f"HTTP {status}" in refused(server, target)
    assert len(server.ranges) == ATTEMPTS


def test_no_server(target: Path) -> None:
    with serving(file(CONTENT)) as server:
        pass
    assert "Connection refused" in refused(server, target)


@pytest.mark.parametrize(
    "where",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "//[",
        "http://a b/",
        "http://[x]/",
        "/weights.bin",
    ],
)
def test_redirects_to_elsewhere_are_refused(target: Path, where: str) -> None:
    with (
        serving(raw(302, Location=where, Content_Length=0)) as server,
        pytest.raises(UnavailableError, match=r"(?i)redirect"),
    ):
        fetch(server, target)
    assert not target.exists()


def test_redirects_stay_encrypted() -> None:
    with pytest.raises(UnavailableError, match="not followed"):
        redirected("https://example.org/a", "http://example.org/a")
    assert redirected("https://example.org/a", "//example.com/b") == "https://example.com/b"
    assert redirected("http://example.org/a", "https://example.org/a").startswith("https")


def test_redirects_end(target: Path) -> None:
    """In time, and whatever lies behind them is not read."""

    def round_and_round(exchange: Exchange) -> None:
        raw(302, Location=exchange.server.url, Transfer_Encoding="chunked")(exchange)
        exchange.server.closing.wait(5)

    with serving(round_and_round) as server:
        assert "redirects more than 10 times" in refused(server, target)
    assert len(server.ranges) == 10


@pytest.mark.parametrize(
    "url",
    [
        "", "weights.bin", "file:///etc/passwd", "ftp://a/b", "http://", "http://a:x/", "http://[",
        "http://a:99999/b", "http://a/b c", "http://a/b\r\nX: y", "http://ä/b", "data:,x",
    ],
)  # fmt: skip
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="no address of a file"):
        check_address(url)
    with pytest.raises(UserError):
        download(url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def byte_by_byte(head: bytes, byte: bytes) -> Any:
    """Sends a byte of its answer ten times a second, for ten seconds."""

    def answer(exchange: Exchange) -> None:
        exchange.wfile.write(head)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                if exchange.server.closing.wait(0.1):
                    return
                exchange.body(byte)

    return answer


def test_a_body_that_comes_too_slowly(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.5)
    header = f'HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: "one"\r\n\r\n'
    with serving(byte_by_byte(header.encode(), b"\0")) as server:
        message = refused(server, target)
    assert "comes too slowly" in message
    assert re.search(r"[1-9] bytes are kept in .*; the same command goes on", message)
    assert server.served < 50


def test_a_byte_an_attempt_is_too_slow_as_well(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10**6, 100))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(seconds)))
    with serving(file(CONTENT, cut=1)) as server:
        assert "comes too slowly" in refused(server, target)
    assert server.served < 10


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_header_that_comes_too_slowly(
    target: Path, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)
    with serving(byte_by_byte(head, head or b"H")) as server:
        assert "no answer" in refused(server, target)
    assert len(server.ranges) == ATTEMPTS


# -- the disk, and others ------------------------------------------------------------------------


def test_one_at_a_time(target: Path) -> None:
    target.parent.mkdir()
    with serving(file(CONTENT)) as server:
        with (
            FileLock(target.with_name(".weights.bin.lock")),
            pytest.raises(UserError, match="being fetched by another process"),
        ):
            fetch(server, target)
        assert server.ranges == []
        fetch(server, target)
    assert_whole(target)


def test_no_room_is_seen_before(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE - 1))
    room = f"{SIZE - 1:,} bytes are free, {SIZE:,} are missing"
    with serving(file(CONTENT)) as server, pytest.raises(RunFailed, match=room):
        fetch(server, target)
    assert lies_there(target) == {}


@pytest.fixture
def largest_file() -> Iterator[int]:
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield 300_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_keeps_what_has_come(target: Path, largest_file: int) -> None:
    with serving(file(CONTENT)) as server:
        with pytest.raises(RunFailed, match=r"cannot write .* bytes are kept in .*goes on"):
            fetch(server, target)
        kept = lies_there(target)["weights.bin.part"]
        assert 0 < kept <= largest_file
        with pytest.raises(RunFailed):
            fetch(server, target)
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(file(CONTENT)) as server, pytest.raises(RunFailed, match="cannot write"):
        fetch(server, tmp_path / "file" / "weights.bin")
    assert server.ranges == []
