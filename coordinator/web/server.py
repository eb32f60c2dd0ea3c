"""``/healthz``, and the log's files under ``/log/`` as C2SP tlog-tiles lays them out; nothing else, and nothing can be written.

Plain HTTP is enough: every byte of the log is checked against a signed checkpoint by whoever reads it.
"""

from __future__ import annotations

import http.server
import logging
import re
import socket
import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from common.errors import ElmgroveError, PortInUseError
from coordinator.usecases.context import Coordinator

__all__ = ["WebServer"]

logger = logging.getLogger(__name__)

_THREADS: Final = 16  # requests at a time; more wait
_SECONDS: Final = 10  # a peer that sends or takes nothing for so long is dropped
_LOG_FILE = re.compile(r"/log/(checkpoint|tile/(?:entries|[0-9]{1,2})/(?:x[0-9]{3}/)*[0-9]{3}(?:\.p/[0-9]{1,3})?|documents/[0-9a-f]{64})")
_FOREVER: Final = "public, max-age=31536000, immutable"
_TEXT: Final = "text/plain; charset=utf-8"


class WebServer:
    """The HTTP port of one coordinator.

    Args:
        coordinator: whose.
        listen: local address.
        port: TCP port.

    Raises:
        PortInUseError: the port is taken, or the address is not this machine's.
    """

    def __init__(self, coordinator: Coordinator, *, listen: str, port: int) -> None:
        self._coordinator = coordinator
        web = self

        class Handler(_Handler):
            owner = web

        try:
            self._server = _Server((listen.strip("[]"), port), Handler)
        except OSError as error:
            raise PortInUseError(f"Cannot listen on {listen}, port {port}: it is in use, or not an address of this machine.") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)

    def start(self) -> None:
        """Answer from now on, in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def is_healthy(self) -> bool:
        """Whether the log can be read and every rule of it holds."""
        try:
            self._coordinator.ledger.state()
        except ElmgroveError as error:
            logger.warning("not healthy: %s", error)
            return False
        return True

    def log_file(self, path: str) -> Path | None:
        """The file behind a request path, if it is one of the log's."""
        match = _LOG_FILE.fullmatch(path)
        found = self._coordinator.home.log / match.group(1) if match else None
        return found if found is not None and found.is_file() else None


class _Server(socketserver.TCPServer):
    """Serves each connection in one of a bounded number of threads."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._pool = ThreadPoolExecutor(_THREADS, "web")
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand the connection to a thread."""
        self._pool.submit(self._serve, request, client_address)

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError as error:
            logger.debug("a reader went away: %s", error)
        finally:
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Close the port and wait for the answers under way."""
        super().server_close()
        self._pool.shutdown(cancel_futures=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: WebServer
    server_version = "elmgrove"
    sys_version = ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.path == "/healthz":
            healthy = self.owner.is_healthy()
            status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, b"ok\n" if healthy else b"not healthy\n", _TEXT, "no-store", body=body)
            return
        file = self.owner.log_file(self.path)
        if file is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", _TEXT, "no-store", body=body)
            return
        changes = file.name == "checkpoint"
        kind, cache = (_TEXT, "no-cache") if changes else ("application/octet-stream", _FOREVER)
        self._send(HTTPStatus.OK, file.read_bytes(), kind, cache, body=body)

    def _send(self, status: HTTPStatus, content: bytes, kind: str, cache: str, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", cache)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Requests are no news."""
        logger.debug(format, *args)
