"""A real HTTP server on this machine that misbehaves as a test says."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Exchange(BaseHTTPRequestHandler):
    """One request; a test's function answers it."""

    protocol_version = "HTTP/1.1"
    server: "FileServer"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.versions.append(self.headers.get("If-Range"))
        self.close_connection = True
        number = len(self.server.ranges) - 1
        answers = self.server.answers
        answers[min(number, len(answers) - 1)](self)

    def head(self, status: int, headers: Mapping[str, object]) -> None:
        """Send status and header."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def body(self, content: bytes) -> None:
        """Send bytes, which count as served."""
        self.wfile.write(content)
        self.wfile.flush()
        self.server.served += len(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FileServer(ThreadingHTTPServer):
    """Answers the first request with the first function, and so on; the last one stays."""

    daemon_threads = False  # closing waits for them

    def __init__(self, *answers: Callable[[Exchange], None]) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.answers = answers
        self.ranges: list[str | None] = []
        self.versions: list[str | None] = []
        self.served = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.bin"


@contextmanager
def serving(*answers: Callable[[Exchange], None]) -> Iterator[FileServer]:
    """The server, while it runs."""
    with FileServer(*answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def file(
    content: bytes, etag: str | None = '"one"', *, cut: int | None = None, **headers: object
) -> Callable[[Exchange], None]:
    """An honest server of a file, as RFC 9110 says; ``cut`` breaks off after so many bytes."""

    def answer(exchange: Exchange) -> None:
        start = 0
        wanted = exchange.headers.get("Range")
        if wanted and exchange.headers.get("If-Range") in (None, etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        given = {"Content-Length": len(content) - start, **({"ETag": etag} if etag else {})}
        if start:
            given["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        exchange.head(206 if start else 200, given | headers)
        exchange.body(content[start:][:cut])

    return answer


def raw(status: int, content: bytes = b"", **headers: object) -> Callable[[Exchange], None]:
    """Exactly this status, header (with _ for -) and body."""

    def answer(exchange: Exchange) -> None:
        exchange.head(status, {name.replace("_", "-"): v for name, v in headers.items()})
        exchange.body(content)

    return answer
