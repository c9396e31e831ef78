"""Requests to a web server that are tried again where that may help, and stop at once where it cannot.

Only http and https, also after a redirect. A cut connection, a stall, or a busy server is tried again after a pause that
doubles, or after the one that the server asks for.
"""

import contextlib
import datetime
import email.utils
import http.client
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import URLError

Result = TypeVar("Result")

CHUNK = 1 << 16  # bytes read at once
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that another try may not meet again


class DownloadError(OSError):
    """A file that did not come, in one line: its address and what happened."""


class TryAgain(Exception):
    """What an attempt raises when another may succeed.

    wait: seconds that the server asks for. further: more of the file is there than ever before, so the tries count anew.
    """

    def __init__(self, reason: str, wait: float | None = None, further: bool = False):
        super().__init__(reason)
        self.wait, self.further = wait, further


class Stopped(Exception):
    """The client was stopped: what the thread was doing does not matter any more."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to try. Times in seconds."""

    timeout: float = 20.0
    """Seconds without a byte after which a connection counts as broken."""
    tries: int = 5
    """Requests for one file before it counts as failed."""
    pause: float = 1.0
    """Before the second try; then twice as long each time."""
    longest_pause: float = 120.0
    """A server that asks for a longer one is not waited for."""
    redirects: int = 5
    """Followed for one request."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 3600:
            raise ValueError(f"--timeout is {self.timeout}: give seconds, above 0 and at most 3600")
        if self.tries < 1:
            raise ValueError(f"--tries is {self.tries}: give 1 or more")


class Client:
    """Requests to servers, from any number of threads. sleep: called in place of waiting, for tests."""

    def __init__(self, patience: Patience | None = None, sleep: Callable[[float], Any] | None = None):
        self.patience = patience or Patience()
        self.stopped = threading.Event()
        """Once set, every thread leaves with `Stopped` at its next chunk, pause or request."""
        self._sleep = sleep or self.stopped.wait
        # No handler for files or FTP, and none that follows redirects: `answer` does that, and sees where they lead.
        self._opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            self._opener.add_handler(handler())

    def size(self, url: str) -> int | None:
        """Bytes of a file, by a HEAD request; None where the server does not say. Raises DownloadError."""

        def attempt() -> int | None:
            # 405 and 501: a server that knows no HEAD.
            with self.answer(url, method="HEAD", accepted=(200, 405, 501)) as response:
                return length(response) if response.status == 200 else None

        return self.persist(url, attempt)

    def persist(self, url: str, attempt: Callable[[], Result]) -> Result:
        """The result of `attempt`, tried again where it raises TryAgain. Raises DownloadError when the tries are used up."""
        tried = 0
        while True:
            self.check_stopped()
            try:
                return attempt()
            except TryAgain as error:
                tried = 1 if error.further else tried + 1
                if tried >= self.patience.tries:
                    raise DownloadError(f"{url}: {error} (tries: {tried})") from error
                if error.wait is not None and error.wait > self.patience.longest_pause:
                    raise DownloadError(
                        f"{url}: {error} and asks to wait {error.wait:.0f} s: run again later"
                    ) from error
                pause = self.patience.pause * 2 ** (tried - 1) if error.wait is None else error.wait
                self._sleep(min(pause, self.patience.longest_pause))

    def check_stopped(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    @contextlib.contextmanager
    def answer(
        self,
        url: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        accepted: Collection[int] = (200,),
    ) -> Iterator[http.client.HTTPResponse]:
        """The server's answer to one request, redirects followed.

        Raises TryAgain or DownloadError where the server cannot be reached, or its status is not `accepted`.
        """
        asked = url
        for _ in range(self.patience.redirects + 1):
            if not asked.lower().startswith(("http://", "https://")):
                came = "" if asked == url else f": redirected to {asked}"
                raise DownloadError(f"{url}{came}: only http:// and https:// addresses are followed")
            with self._errors(url):
                request = urllib.request.Request(
                    asked, method=method, headers={"User-Agent": "ddetr-lite", **(headers or {})}
                )
                response = self._opener.open(request, timeout=self.patience.timeout)
            with response:
                if response.status in accepted:
                    yield response
                    return
                said = f"the server answers {response.status} {response.reason}"
                if response.status in PASSING:
                    raise TryAgain(said, wait=_retry_after(response))
                place = response.headers.get("Location")
                if response.status not in REDIRECTS or not place:
                    raise DownloadError(f"{url}: {said}")
            asked = urllib.parse.urljoin(asked, urllib.parse.quote(place, safe="!#$%&'()*+,/:;=?@[]~"))
        raise DownloadError(f"{url}: more than {self.patience.redirects} redirects, the last to {asked}")

    def chunks(self, response: http.client.HTTPResponse, expected: int | None) -> Iterator[bytes]:
        """The body, at most `expected` bytes of it; fewer come where the connection is closed. Raises TryAgain."""
        received = 0
        while expected is None or received < expected:
            self.check_stopped()
            try:
                chunk = response.read1(CHUNK if expected is None else min(CHUNK, expected - received))
            except TimeoutError as error:
                raise TryAgain(f"no byte came for {self.patience.timeout:g} s") from error
            except (http.client.HTTPException, OSError) as error:
                raise TryAgain(f"the connection broke: {str(error) or type(error).__name__}") from error
            if not chunk:
                return
            received += len(chunk)
            yield chunk

    @contextlib.contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except (http.client.InvalidURL, ValueError) as error:
            raise DownloadError(f"{url}: not a web address: {error}") from error
        except (http.client.HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise DownloadError(f"{url}: the server's certificate is not valid: {cause.verify_message}") from error
            if isinstance(cause, TimeoutError):
                raise TryAgain(f"no answer for {self.patience.timeout:g} s") from error
            raise TryAgain(f"the server cannot be reached: {str(cause) or type(cause).__name__}") from error


def length(response: http.client.HTTPResponse) -> int | None:
    """Content-Length, None where it is missing or no number."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isascii() and value.isdigit() else None


def validator(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of a file from another in `If-Range`: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """Seconds, from a number or a date."""
    value = (response.headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
