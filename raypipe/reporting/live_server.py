"""Serve the live page of a run to this machine: one HTML file, its state as server-sent events, and three actions.

The server listens on 127.0.0.1 only. Everything needs a token that is made at the start and kept in memory. A request
that would change something has it in a header, which no page of another origin can send. The name of the host is
checked, since a name of an attacker's may be made to mean 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import shlex
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from raypipe.core.errors import UserError, first_line
from raypipe.core.text import one_line
from raypipe.reporting.live_state import LiveReader, encode_state
from raypipe.reporting.page import PAGE_FILE, encode_page, render_template
from raypipe.search.requests import ask_to_end, ask_to_enqueue, ask_to_stop, next_driver
from raypipe.storage.remote import without_settings
from raypipe.storage.run_store import RunStore

HOST = "127.0.0.1"
HOST_NAMES = (HOST, "localhost")
"""Names by which the server may be called; the port differs where ssh forwards it."""
TOKEN_HEADER = "X-Raypipe-Token"
LOCAL_PAUSE, REMOTE_PAUSE = 1.0, 5.0
"""Seconds between two reads of a run here, and behind a URI."""
KEEPALIVE_SECONDS = 10.0
"""Seconds after which a silent stream of events shows that it is alive."""
REQUEST_SECONDS = 30.0
"""Seconds that a client may take to send a request, or to take a part of the answer."""
MAX_BODY_BYTES = 2**16
MAX_STREAMS = 16
"""Streams of events at a time."""
NO_SOURCES = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
"""The report has no scripts; one that came from elsewhere and has some may not run them."""


class Feed:
    """Read the state of a run in a thread, and hand out what is new.

    Parameters
    ----------
    read
        Returns the state.
    pause
        Seconds between two reads.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], pause: float) -> None:
        self._read, self._pause = read, pause
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._version, self._last, self._data = 0, dict[str, Any](), b"{}"
        self._thread = threading.Thread(target=self._follow, name="raypipe-watch", daemon=True)

    def __enter__(self) -> Feed:
        self.update()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(REQUEST_SECONDS)

    def _follow(self) -> None:
        while not self._closed.wait(self._pause):
            self.update()

    def update(self) -> None:
        """Read the state; where it cannot be read, keep the last one and say why."""
        try:
            self._last = self._read() | {"error": ""}
        except (UserError, OSError) as error:
            self._last = self._last | {"error": one_line(first_line(error))}
        except Exception as error:  # the page goes on; the next read may succeed
            self._last = self._last | {"error": f"{type(error).__name__}: {one_line(first_line(error))}"}
        data = encode_state(self._last)
        with self._changed:
            if data != self._data:
                self._version, self._data = self._version + 1, data
                self._changed.notify_all()

    def wait(self, after: int, timeout: float) -> tuple[int, bytes] | None:
        """Return a version newer than `after` and its data; None if there is none in time, or the feed is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > after or self._closed.is_set(), timeout)
            return (self._version, self._data) if self._version > after and not self._closed.is_set() else None

    @property
    def closed(self) -> bool:
        """Return whether no more states will come."""
        return self._closed.is_set()


class LiveServer(ThreadingHTTPServer):
    """The server of one run's live page.

    Parameters
    ----------
    run
        The run.
    port
        Port on 127.0.0.1; 0 for a free one.
    feed
        Its states.

    Raises
    ------
    OSError
        The port is taken.
    """

    daemon_threads = True

    def __init__(self, run: RunStore, port: int, feed: Feed) -> None:
        self.run, self.feed = run, feed
        self.token = secrets.token_urlsafe(24)
        self.streams = threading.Semaphore(MAX_STREAMS)
        self.acting = threading.Lock()
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        """Return the address of the page, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a client that has gone is no error."""


class Reply(NamedTuple):
    """An answer to a request."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    policy: str = NO_SOURCES


NOT_ALLOWED = Reply(403, b"not allowed: open the address that raypipe watch has printed\n")
NOT_FOUND = Reply(404, b"no such page\n")


class Handler(BaseHTTPRequestHandler):
    """Answer requests of the live page."""

    server: LiveServer
    server_version, sys_version = "raypipe", ""
    timeout = REQUEST_SECONDS

    def log_message(self, *_: object) -> None:
        """Do nothing: lines of a log would hold the token."""

    def do_GET(self) -> None:
        """Answer the page, its events and the report."""
        path, _, query = self.path.partition("?")
        given = parse_qs(query, max_num_fields=9).get("token", [""])[0] if len(query) < 999 else ""
        if not (self._host_is_ours() and self._is_token(given)):
            self._send(NOT_ALLOWED)
        elif path == "/events":
            self._send_events()
        else:
            pages = {"/": self._page, "/report": self._report}
            self._send(pages.get(path, lambda: NOT_FOUND)())

    def do_POST(self) -> None:
        """Carry out an action."""
        if not (self._host_is_ours() and self._is_token(self.headers.get(TOKEN_HEADER, ""))):
            self._send(NOT_ALLOWED)
        elif self.path != "/act":
            self._send(NOT_FOUND)
        else:
            self._send(self._act())

    def _host_is_ours(self) -> bool:
        """Return whether the request names this machine, and comes from a page that does."""
        hosts = self.headers.get_all("Host", [])
        places = [f"//{host}" for host in hosts] + self.headers.get_all("Origin", [])
        return len(hosts) == 1 and all(_host_name(place) in HOST_NAMES for place in places)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.server.token.encode())

    def _send(self, reply: Reply) -> None:
        self._head(reply.status, reply.kind, reply.policy)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def _head(self, status: int, kind: str, policy: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ):
            self.send_header(name, value)

    def _page(self) -> Reply:
        nonce = secrets.token_urlsafe(16)
        html = render_template("watch", nonce=nonce, where=one_line(without_settings(self.server.run.where)))
        policy = f"{NO_SOURCES}; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        return Reply(200, encode_page(html), "text/html; charset=utf-8", policy)

    def _report(self) -> Reply:
        try:
            page = self.server.run.folder.read(PAGE_FILE)
        except (OSError, UserError):
            return Reply(404, b"no report yet: raypipe report writes one\n")
        return Reply(200, page, "text/html; charset=utf-8", REPORT_POLICY)

    def _send_events(self) -> None:
        """Send each new state, until the client or the server ends."""
        if not self.server.streams.acquire(blocking=False):
            self._send(Reply(503, b"too many pages are open\n"))
            return
        try:
            self._head(200, "text/event-stream", NO_SOURCES)
            self.end_headers()
            version = 0
            while not self.server.feed.closed:
                new = self.server.feed.wait(version, KEEPALIVE_SECONDS)
                version, data = new or (version, b"")
                self.wfile.write(b"data: " + data + b"\n\n" if data else b": alive\n\n")
        finally:
            self.server.streams.release()

    def _act(self) -> Reply:
        try:
            with self.server.acting:
                return _json(200, {"said": f"asked to {act(self.server.run, self._body())}"})
        except UserError as error:
            return _json(400, {"error": one_line(first_line(error))})
        except OSError as error:
            return _json(500, {"error": one_line(first_line(error))})
        except Exception as error:  # the page shows it, and goes on
            return _json(500, {"error": f"{type(error).__name__}: {one_line(first_line(error))}"})

    def _body(self) -> Any:
        """Return the JSON of a request.

        Raises
        ------
        UserError
            It is none, or too long.
        """
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not (length.isascii() and length.isdigit()):
            raise UserError("a request must be JSON with a length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise UserError(f"a request may have {MAX_BODY_BYTES} bytes")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise UserError("a request must be JSON") from None


def _host_name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _json(status: int, value: dict[str, str]) -> Reply:
    return Reply(status, json.dumps(value).encode(), "application/json")


def act(run: RunStore, asked: Any) -> str:
    """Write the request for an action of the page; return what was asked for and, without a driver, what takes it up.

    Parameters
    ----------
    run
        The run.
    asked
        ``{"action": "stop", "trial": 3}``, ``{"action": "enqueue", "point": "optim/lr=0.003 ..."}`` or
        ``{"action": "end"}``.

    Raises
    ------
    UserError
        It is none of them, or cannot be done.
    """
    match asked:
        case {"action": "stop", "trial": int(number)} if number >= 0 and not isinstance(number, bool):
            request = ask_to_stop(run, number)
        case {"action": "enqueue", "point": str(point)}:
            try:
                words = shlex.split(point)
            except ValueError as error:
                raise UserError(f"the point: {first_line(error)}") from None
            request = ask_to_enqueue(run, words)
        case {"action": "end"}:
            request = ask_to_end(run)
        case _:
            raise UserError("an action must be stop, enqueue or end")
    return "; ".join(filter(None, (request.describe(), next_driver(run, request))))


def serve(run: RunStore, port: int, ready: Callable[[str], object]) -> None:
    """Serve the live page of a run to this machine, until it is interrupted.

    Parameters
    ----------
    run
        The run.
    port
        Port on 127.0.0.1; 0 for a free one.
    ready
        Called with the address before the first request is answered.

    Raises
    ------
    UserError
        The port is taken.
    """
    pause = LOCAL_PAUSE if run.local else REMOTE_PAUSE
    with contextlib.suppress(KeyboardInterrupt), Feed(LiveReader(run).read, pause) as feed:
        try:
            server = LiveServer(run, port, feed)
        except OSError as error:
            raise UserError(f"--port {port}: cannot listen on it ({error.strerror}); choose another") from None
        with server:
            ready(server.url)
            server.serve_forever(poll_interval=0.2)
