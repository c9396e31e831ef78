"""A web server on this machine that serves files, and misbehaves as a test asks: cut, stall, lie, redirect, refuse."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One request. `site` is set by `serve`."""

    site: "Site"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.site.log.append((self.command, self.path, dict(self.headers)))
        content = self.site.files.get(self.path)
        fault = None if self.command == "HEAD" else next(self.site.faults.get(self.path, iter(())), None)
        if fault is not None:
            fault(self, content or b"")
        elif content is None:
            self.reply(404, {})
        else:
            self.serve(content)

    def serve(self, content: bytes) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        wanted = self.headers.get("Range")
        headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
        if wanted and self.site.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206, headers, content[start:])
        else:
            self.reply(200, headers, content)

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"", send: int | None = None) -> None:
        """A whole answer, or only the first `send` bytes of its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:send])
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up, as one does after a stall, is no news."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


Fault = Callable[[Handler, bytes], None]


class Site:
    """What the server has, what it does wrong, and what it was asked."""

    def __init__(self, url: str):
        self.url = url
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Iterator[Fault]] = {}
        self.ranges = True
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()

    def spoil(self, path: str, *faults: Fault, always: bool = False) -> None:
        """The next answers to GET for a path; then, or with `always` never again, proper ones."""
        self.faults[path] = itertools.cycle(faults) if always else iter(faults)

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the GET requests for a path."""
        return [headers for method, asked, headers in self.log if (method, asked) == ("GET", path)]


@contextmanager
def serve(files: Iterable[tuple[str, bytes]] = ()) -> Iterator[Site]:
    server = QuietServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    site.files.update(files)
    server.RequestHandlerClass = type("SiteHandler", (Handler,), {"site": site})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def cut(after: int) -> Fault:
    """Close the connection after so many bytes of a body that was announced whole; the rest can be asked for."""

    def fault(handler: Handler, content: bytes) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        handler.reply(200, {"ETag": tag}, content, send=after)

    return fault


def stall(after: int) -> Fault:
    """Send so many bytes, then nothing for as long as the test runs."""

    def fault(handler: Handler, content: bytes) -> None:
        cut(after)(handler, content)
        handler.site.over.wait(20)

    return fault


def instead(content: bytes, kind: str = "application/octet-stream") -> Fault:
    """Other bytes, with a proper length."""
    return lambda handler, _: handler.reply(200, {"Content-Type": kind}, content)


def status(code: int, **headers: str) -> Fault:
    return lambda handler, _: handler.reply(code, {name.replace("_", "-"): value for name, value in headers.items()})


def announce(size: int) -> Fault:
    """The right bytes under a wrong Content-Length."""
    return lambda handler, content: handler.reply(200, {"Content-Length": str(size)}, content)
