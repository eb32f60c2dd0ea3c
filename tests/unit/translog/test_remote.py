"""Reading a log over HTTP from a server that can be bent: what it may do, what is refused, and that no answer takes long or much."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from common.errors import LogError, NotFoundError, UnavailableError, UsageError
from common.translog.remote import HttpReader

Answer = Callable[["_Handler"], None]


@dataclass
class Server:
    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def reader(self) -> HttpReader:
        return HttpReader(self.url, silence_seconds=0.5, file_seconds=1.5, pause_seconds=0.01)


class _Handler(http.server.BaseHTTPRequestHandler):
    world: Server

    def do_GET(self) -> None:
        self.world.asked.append((self.path, self.headers.get("Accept-Encoding")))
        answers = self.world.answers
        with contextlib.suppress(ConnectionError):  # a reader may give up before the end
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("Handler", (_Handler,), {})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    handler.world = world = Server(f"http://127.0.0.1:{listening.server_address[1]}/log")
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield world
    listening.shutdown()
    listening.server_close()


def say(status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> Answer:
    def answer(handler: _Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drip(handler: _Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.1)


def endless(handler: _Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 65536)


def silent(_: _Handler) -> None:
    time.sleep(2)


def hang_up(handler: _Handler) -> None:
    handler.wfile.write(b"not HTTP at all\r\n")


def test_a_file_is_fetched_as_it_is(server: Server) -> None:
    for url in (server.url, server.url + "/"):
        server.url = url
        server.answers = [say(200, b"bytes\x00\xff")]
        assert server.reader().fetch("tile/0/x001/x234/067") == b"bytes\x00\xff"
    assert set(server.asked) == {("/log/tile/0/x001/x234/067", "identity")}
    server.answers = [say(200, b"until the end", length=-1)]
    assert server.reader().fetch("checkpoint") == b"until the end"


def test_a_missing_file_is_said_at_once(server: Server) -> None:
    server.answers = [say(404, b"none")]
    with pytest.raises(NotFoundError, match="no file tile/0/000"):
        server.reader().fetch("tile/0/000")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "trouble", [say(503), say(200, b"half", length=8), hang_up, silent, say(429)], ids=["503", "short", "nonsense", "silent", "429"]
)
def test_trouble_is_tried_again_and_then_told(server: Server, trouble: Answer) -> None:
    server.answers = [trouble, say(200, b"there")]
    assert server.reader().fetch("checkpoint") == b"there"
    server.answers, server.asked = [trouble], []
    with pytest.raises(UnavailableError, match="checkpoint cannot be fetched"):
        server.reader().fetch("checkpoint")
    assert 2 <= len(server.asked) <= 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say(302, Location="http://127.0.0.1:1/elsewhere"), "status 302"),
        (say(403), "status 403"),
        (say(206, b"part"), "something else"),
        (say(200, b"x", Content_Encoding="gzip"), "something else"),
        (say(200, b"x" * 65537), "larger than any"),
        (endless, "larger than any"),
    ],
    ids=["redirect", "forbidden", "part", "compressed", "large", "endless"],
)
def test_what_is_no_file_of_a_log_is_refused_at_once(server: Server, answer: Answer, says: str) -> None:
    server.answers = [answer]
    with pytest.raises(LogError, match=says):
        server.reader().fetch("checkpoint")
    assert len(server.asked) == 1


def test_each_kind_of_file_has_its_limit(server: Server) -> None:
    for path, limit in (("tile/3/000", 8192), ("tile/entries/000", 256 * 2050), ("documents/" + "0" * 64, 4 * 2**20)):
        server.answers = [say(200, bytes(limit)), say(200, bytes(limit + 1))]
        assert len(server.reader().fetch(path)) == limit
        with pytest.raises(LogError, match="larger than any"):
            server.reader().fetch(path)


def test_a_server_that_sends_byte_after_byte_is_given_up(server: Server) -> None:
    server.answers = [drip]
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="takes too long"):
        server.reader().fetch("checkpoint")
    assert time.monotonic() - began < 4


def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match="refused"):
        HttpReader("http://127.0.0.1:1/log", pause_seconds=0).fetch("checkpoint")


@pytest.mark.parametrize(
    "url",
    ["ftp://host/log", "file:///etc", "http://", "http://user@host/log", "http://host/log?x=1", "http://host/#x", "http://host:x/", "http://[::1/",
     "http://host:0/", "http://h\u00f6st/", "http://host/a b", "http://host/\r\nX: y"],
)  # fmt: skip
def test_what_is_no_address_of_a_log(url: str) -> None:
    with pytest.raises(UsageError, match="not an address of a log"):
        HttpReader(url)
