"""A file behind an http address, or the rest of one: RFC 9110's Range with If-Range.

Whatever goes wrong on the network ends as a `BrokenOffError` (another attempt may help) or an
`UnavailableError` (it would not).
"""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from lovasz_repro import __version__
from lovasz_repro.errors import RunFailed, UserError

BLOCK = 2**18  # bytes
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


class UnavailableError(RunFailed):
    """The file is not to be had at this address."""


class BrokenOffError(Exception):
    """The connection ended too early; the next attempt may get further."""


class OtherFileError(BrokenOffError):
    """What is there already is no beginning of the file that the server has now."""


@dataclass(frozen=True)
class Beginning:
    """What is known of the first bytes of a file.

    Attributes:
        length: bytes that are there.
        version: what names the version that they are of: a strong ETag or Last-Modified.
        total: bytes of the whole file.
    """

    length: int = 0
    version: str | None = None
    total: int | None = None


@dataclass(frozen=True)
class Answer:
    """A server's answer, of which nothing but the header has been read.

    Attributes:
        start: byte of the file at which it begins: that asked for, or 0.
        total: bytes of the whole file; None where it is not said.
        version: see `Beginning`; None where the server has no name for it.
    """

    response: http.client.HTTPResponse
    start: int
    total: int | None
    version: str | None

    @property
    def ends_clearly(self) -> bool:
        """Whether the end of the file can be told from a connection that broke."""
        return self.total is not None or bool(self.response.chunked)

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they arrive, up to `BLOCK` at a time; raises BrokenOffError."""
        while block := self._next():
            yield block

    def _next(self) -> bytes:
        try:
            return self.response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenOffError(_in_words(error)) from error


def check_address(url: str) -> None:
    """Raise UserError unless this is an http or https address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"[^!-~]", url):
        raise UserError(f"{url!r} is no address of a file: expected https://... or http://...")


@contextmanager
def ask(url: str, there: Beginning, timeout: float) -> Iterator[Answer]:
    """Ask for a file, or for the rest of it where the version of what is there is known.

    Arguments:
        url: http or https.
        there: what need not be sent again.
        timeout: seconds of silence after which the connection counts as broken.

    Raises:
        OtherFileError: the rest of another version came, or there is no rest.
        BrokenOffError, UnavailableError: see the top of this module.
    """
    request = urllib.request.Request(url, headers={"User-Agent": f"lovasz-repro/{__version__}"})
    if there.length and there.version:
        request.add_header("Range", f"bytes={there.length}-")
        request.add_header("If-Range", there.version)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise _of_status(url, error) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise UnavailableError(f"{url}: redirects to no address ({error}).") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UnavailableError(f"{url}: its certificate: {reason.verify_message}.") from error
        raise BrokenOffError(_in_words(reason)) from error
    with closing(response):
        yield _answer(url, response, there)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes along to http and https, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """The request for the new address; raises UnavailableError for another."""
        if not newurl.startswith("https:" if req.type == "https" else ("https:", "http:")):
            raise UnavailableError(f"{req.full_url}: redirects to {newurl}, not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _of_status(url: str, error: urllib.error.HTTPError) -> Exception:
    """What a status other than success means."""
    if error.code == RANGE_NOT_SATISFIABLE:
        return OtherFileError("the file has become shorter")
    if error.code in TRY_AGAIN:
        return BrokenOffError(f"HTTP {error.code} {error.reason}")
    return UnavailableError(f"{url}: HTTP {error.code} {error.reason}.")


def _answer(url: str, response: http.client.HTTPResponse, there: Beginning) -> Answer:
    """The answer, if its header is that of (the rest of) a file."""
    header = response.headers
    if header.get("Content-Type", "").lower().startswith("text/html"):
        raise UnavailableError(f"{url}: a web page came in place of a file. Open it in a browser.")
    if header.get("Content-Encoding", "identity") != "identity":
        raise UnavailableError(f"{url}: came as {header['Content-Encoding']}, which is not read.")
    etag = header.get("ETag", "")
    version = etag if etag.startswith('"') else header.get("Last-Modified")
    if response.status != PARTIAL_CONTENT:
        length = None if response.chunked else _number(header.get("Content-Length", ""))
        return Answer(response, 0, length, version)
    found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/(.*)", header.get("Content-Range", ""))
    total = _number(found[2]) if found else None
    if (
        not found
        or _number(found[1]) != there.length
        or version not in (None, there.version)
        or there.total not in (None, total)
    ):
        raise OtherFileError("the rest of another file came")
    return Answer(response, there.length, total, there.version)


def _number(text: str) -> int | None:
    """Bytes as a header writes them."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _in_words(error: object) -> str:
    """What went wrong with a connection."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
