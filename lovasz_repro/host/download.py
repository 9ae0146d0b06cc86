"""Downloads of large files: they go on where they broke off, and end whole and checked or not.

What has come lies in ``<target>.part``; ``<target>.part.json`` says of which address and which
version, so that a later call can ask for the rest (RFC 9110: Range with If-Range). A server decides
neither how long a download may take nor how much it may bring.
"""

import json
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from threading import Thread
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout

from lovasz_repro import __version__
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import rename_durably, sha256_of, write_durably

MOST_BYTES = 4 * 2**30  # of a file whose size nobody has told
ATTEMPTS = 4  # in a row that bring nothing
TIMEOUT_SECONDS = 60.0  # of silence, after which a connection counts as broken
SLOWEST = 10_000  # bytes per second on average, once the patience is at its end
PATIENCE_SECONDS = 300.0
REDIRECTS = 10
BYTES_AT_ONCE = 2**18  # bytes
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)

Progress = Callable[[int, int | None], object]
"""Takes the bytes that are there, and the bytes of the whole file where they are known."""


class UnavailableError(RunFailed):
    """The file is not to be had at this address."""


class BrokenOffError(Exception):
    """The connection ended too early; the next attempt may get further."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Fetch a file; ``target`` appears when all of it is there and right.

    Arguments:
        url: http or https.
        target: an older file of this name is replaced.
        size: bytes of the file, where known; without it at most `MOST_BYTES`.
        sha256: hex digits of its SHA-256, or the first of them, where known.
        progress: see `Progress`.

    Returns `target`.

    Raises:
        UserError: this is no such address, or another process fetches the same file.
        UnavailableError: nothing is there, it comes too slowly, the connection breaks again and
            again, or what came is not the file.
        RunFailed: the disk is full, or `target` cannot be written.
    """
    check_address(url)
    file = _Download(url, target, size, sha256, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            file.receive()
            file.verify()
            file.publish()
    except OSError as error:  # of the disk: those of the network have other names by now
        raise RunFailed(
            f"cannot write {target}: {error.strerror or error}. {file.kept()}; once that is "
            "mended, the same command goes on."
        ) from error
    return target


def check_address(url: str) -> None:
    """Raise UserError unless this is an http or https address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[^!-~]", url):
        raise UserError(f"{url!r} is no address of a file: expected https://... or http://...")


def redirected(url: str, location: str) -> str:
    """Where an answer sends on to; raises UnavailableError where that is no http or less safe."""
    safe = ("https",) if url.startswith("https:") else ("https", "http")
    try:
        onward = urljoin(url, location)
        check_address(onward)
    except (ValueError, UserError):
        onward = ""
    if urlsplit(onward).scheme not in safe:
        raise UnavailableError(f"{url}: redirects to {location!r}, which is not followed.")
    return onward


@dataclass
class _Download:
    """A file that is wanted; for the first attributes see `download`."""

    url: str
    target: Path
    size: int | None
    sha256: str | None
    progress: Progress
    length: int = 0
    """Bytes that are there, of a version, of how many in all where that is known."""
    version: str | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        self.part = self.target.with_name(f"{self.target.name}.part")
        self.note = self.target.with_name(f"{self.target.name}.part.json")

    def receive(self) -> None:
        """Fetch what is missing, with as many connections as it takes."""
        self.find()
        self.started, self.first = time.monotonic(), self.length
        furthest, in_vain = self.length, 0
        while self.total is None or self.length < self.total:
            try:
                self._go_on()
                return
            except BrokenOffError as error:
                self.find()
                in_vain = 0 if self.length > furthest else in_vain + 1
                furthest = max(furthest, self.length)
                if in_vain == ATTEMPTS:
                    why = f"{error}; {ATTEMPTS} attempts in a row brought nothing"
                    raise self._stopped(why) from error
                time.sleep(2.0**in_vain)

    def _go_on(self) -> None:
        """Ask for what is missing and write what comes to the end of the part."""
        with self._ask() as response:
            self._begin(response)
            whole = _total(response) or self.size
            with self.part.open("ab") as file:
                self.progress(self.length, whole)
                for block in _blocks(response):
                    self.length += len(block)
                    if self.length > (most := whole or MOST_BYTES):
                        self.remove()
                        raise self._refused(f"sends more than the {most:,} bytes of the file")
                    file.write(block)
                    self.progress(self.length, whole)
                    allowance = PATIENCE_SECONDS + (self.length - self.first) / SLOWEST
                    if time.monotonic() - self.started > allowance:
                        file.flush()
                        raise self._stopped("comes too slowly")
        if whole is not None and self.length < whole:
            raise BrokenOffError("broke off")

    @contextmanager
    def _ask(self) -> Iterator[requests.Response]:
        """The answer to a request for the rest, of which nothing but the header has been read."""
        headers = {"User-Agent": f"lovasz-repro/{__version__}", "Accept-Encoding": "identity"}
        if self.length and self.version:
            headers |= {"Range": f"bytes={self.length}-", "If-Range": self.version}
        url = self.url
        for _ in range(REDIRECTS):
            with _header(url, headers) as response:
                if not response.is_redirect:
                    yield response
                    return
                url = redirected(url, response.headers["Location"])
        raise self._refused(f"redirects more than {REDIRECTS} times")

    def _begin(self, response: requests.Response) -> None:
        """Make sure that an answer is the file as it is, or its rest, and that there is room."""
        status, header = response.status_code, response.headers
        if status == 416:
            self.remove()
            raise BrokenOffError("the file has become shorter")
        if status in TRY_AGAIN:
            raise BrokenOffError(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            raise self._refused(f"HTTP {status} {response.reason}")
        if header.get("Content-Type", "").lower().startswith("text/html"):
            raise self._refused("a web page came in place of a file. Open it in a browser")
        if (packed := header.get("Content-Encoding", "identity")) != "identity":
            raise self._refused(f"came as {packed}, which is not read")
        etag, total = header.get("ETag", ""), _total(response)
        version = etag if etag.startswith('"') else header.get("Last-Modified")
        if status == 206:
            extent = header.get("Content-Range", "")
            same = version in (None, self.version) and self.total in (None, total)
            if not (total and same and extent.startswith(f"bytes {self.length}-")):
                self.remove()
                raise BrokenOffError("the rest of another file came")
        self._check_size(total, self.length if status == 206 else 0, response.raw.chunked)
        if status == 200:
            self.remove()
            if version:
                note = {"url": self.url, "version": version, "total": total}
                write_durably(self.note, json.dumps(note).encode())

    def _check_size(self, total: int | None, length: int, chunked: bool) -> None:
        total = self.size if total is None else total
        if total != self.size is not None:
            raise self._refused(f"has {total:,} bytes, expected {self.size:,}")
        if total is None and self.sha256 is None and not chunked:
            raise self._refused("nobody says how long the file is. Give its --sha256")
        if (total or 0) > (self.size or MOST_BYTES):
            raise self._refused(f"has {total:,} bytes, more than any weights")
        free, missing = shutil.disk_usage(self.part.parent).free, (total or 0) - length
        if missing > free:
            text = f"{free:,} bytes are free, {missing:,} are missing."
            raise RunFailed(f"{self.part.parent}: {text}")

    def _refused(self, why: str) -> UnavailableError:
        return UnavailableError(f"{self.url}: {why}.")

    def _stopped(self, why: str) -> UnavailableError:
        return self._refused(f"{why}. {self.kept()}; the same command goes on")

    def find(self) -> None:
        """Learn what an earlier attempt left of this address; anything else is removed."""
        try:
            length, note = self.part.stat().st_size, json.loads(self.note.read_text())
            total = None if note["total"] is None else int(note["total"])
            if length and note["url"] == self.url and (total is None or length <= total):
                self.length, self.version, self.total = length, str(note["version"]), total
                return
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        self.remove()

    def remove(self) -> None:
        """Forget what has come."""
        self.length, self.version, self.total = 0, None, None
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def kept(self) -> str:
        """How much of the file is there, in words."""
        if not os.path.exists(self.part):
            return "Nothing has come"
        return f"{self.part.stat().st_size:,} bytes are kept in {self.part}"

    def verify(self) -> None:
        """Make sure that what came is the file; else remove it and raise UnavailableError."""
        length, found = self.part.stat().st_size, sha256_of(self.part)
        with self.part.open("rb") as file:
            page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
        if self.sha256 is not None and not found.startswith(self.sha256.lower()):
            problem = f"SHA-256 is {found}, expected {self.sha256.lower()}"
        elif self.size is not None and length != self.size:
            problem = f"{length:,} bytes came, expected {self.size:,}"
        elif page or not length:
            problem = "a web page came in place of a file" if page else "an empty file came"
        else:
            return
        self.remove()
        raise self._refused(f"{problem}. It was removed{' (a web page)' if page else ''}")

    def publish(self) -> None:
        """Give the file its name so that it survives a crash."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        rename_durably(self.part, self.target)
        self.note.unlink(missing_ok=True)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a file's name alone; raises UserError where another process does."""
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{target} is being fetched by another process.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _header(url: str, headers: dict[str, str]) -> requests.Response:
    """An answer up to its header, which may not take longer even if it comes byte by byte.

    An adapter is asked, as `requests.get` would read all that comes with a redirect.
    """
    answer: Future[requests.Response] = Future()

    def ask() -> None:
        try:
            with requests.Session() as session:
                request = session.prepare_request(requests.Request("GET", url, headers))
                given = session.merge_environment_settings(url, {}, True, None, None)
                given["timeout"] = TIMEOUT_SECONDS
                answer.set_result(session.get_adapter(url).send(request, **given))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(2 * TIMEOUT_SECONDS)  # to connect, and to answer
    except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
        raise _in_words(url, error) from error


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """The bytes as they arrive, up to `BYTES_AT_ONCE` at a time; raises BrokenOffError."""
    try:
        while block := response.raw.read1(BYTES_AT_ONCE, decode_content=False):
            yield block
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _in_words(response.url, error) from error


def _in_words(url: str, error: BaseException) -> Exception:
    error = innermost(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return UnavailableError(f"{url}: its certificate: {error.verify_message}.")
    if isinstance(error, TimeoutError):
        return BrokenOffError("no answer")
    if isinstance(error, IncompleteRead):
        return BrokenOffError("broke off")
    return BrokenOffError(str(getattr(error, "strerror", None) or error or type(error).__name__))


def innermost(error: BaseException) -> BaseException:
    """What went wrong with a connection, below what each layer made of it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _total(response: requests.Response) -> int | None:
    """Bytes of the whole file, where the header says so."""
    name = "Content-Range" if response.status_code == 206 else "Content-Length"
    found = re.fullmatch(r"(?:bytes [0-9]+-[0-9]+/)?([0-9]{1,15})", response.headers.get(name, ""))
    return int(found[1]) if found and not response.raw.chunked else None
