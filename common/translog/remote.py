"""Reading a log over HTTP or HTTPS (C2SP tlog-tiles); every byte is verified by whoever reads, so the connection needs no trust.

Limits hold for whatever the server does: a size for each kind of file, a time for each file, no redirects, no compression.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Final

from common.errors import LogError, NotFoundError, UnavailableError, UsageError
from common.formats.limits import MAX_BUNDLE_BYTES, MAX_DOCUMENT_BYTES, MAX_ENTRY_BYTES
from common.translog.merkle import HASH_BYTES
from common.translog.tiles import TILE_WIDTH

__all__ = ["HttpReader"]

_SILENCE_SECONDS: Final = 15.0  # a server that sends nothing for so long is given up
_FILE_SECONDS: Final = 60.0  # for one file, whose largest kind has 4 MiB
_ATTEMPTS: Final = 3  # of a connection that breaks or a server that is busy
_PAUSE_SECONDS: Final = 0.5
_PIECE_BYTES: Final = 64 * 1024
_CHECKPOINT_BYTES: Final = 64 * 1024
_ENTRIES_BYTES: Final = TILE_WIDTH * (MAX_ENTRY_BYTES + 2)
_PRINTABLE: Final = re.compile(r"[!-~]{1,2000}")
_BUSY: Final = {429, 500, 502, 503, 504}


def _limit(path: str) -> int:
    if path.startswith("documents/"):
        return max(MAX_BUNDLE_BYTES, MAX_DOCUMENT_BYTES)
    if path.startswith("tile/entries/"):
        return _ENTRIES_BYTES
    return TILE_WIDTH * HASH_BYTES if path.startswith("tile/") else _CHECKPOINT_BYTES


class _BrokenError(Exception):
    """An attempt failed in a way that the next may not."""


@dataclass(frozen=True, slots=True)
class HttpReader:
    """A log below an address such as ``https://moe.example.org/log``; a :class:`common.translog.reader.LogReader`.

    Attributes:
        url: without credentials, query or fragment.
        silence_seconds: how long to wait for the next bytes.
        file_seconds: how long one file may take altogether.
        pause_seconds: before a second attempt; the third waits twice as long.
    """

    url: str
    silence_seconds: float = _SILENCE_SECONDS
    file_seconds: float = _FILE_SECONDS
    pause_seconds: float = _PAUSE_SECONDS

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            plain = parts.scheme in {"http", "https"} and parts.hostname and not (parts.username or parts.query or parts.fragment)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{self.url[:200]!r} is not an address of a log.") from error
        if not plain or port == 0 or not _PRINTABLE.fullmatch(self.url):
            raise UsageError(f"{self.url[:200]!r} is not an address of a log, such as https://moe.example.org/log.")

    def fetch(self, path: str) -> bytes:
        """See :class:`common.translog.reader.LogReader`.

        Raises:
            NotFoundError: the server has no such file.
            UnavailableError: it does not answer, or not in time.
            LogError: it answers with something that is no file of a log.
        """
        deadline = time.monotonic() + self.file_seconds
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._fetch_once(path, deadline)
            except _BrokenError as error:
                if attempt == _ATTEMPTS or time.monotonic() >= deadline:
                    raise UnavailableError(f"The log's file {path} cannot be fetched from {self.url}: {error}.") from error
                time.sleep(self.pause_seconds * attempt)
        raise UnavailableError

    def _fetch_once(self, path: str, deadline: float) -> bytes:
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", headers={"Accept-Encoding": "identity"})  # noqa: S310 - http(s) only
        try:
            with _opener().open(request, timeout=self.silence_seconds) as answer:
                if answer.status != http.HTTPStatus.OK or answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise LogError(f"The server answers for {path} with something else than the file.")
                return self._read(answer, path, deadline)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE}:
                raise NotFoundError(f"The log has no file {path}.") from error
            if error.code in _BUSY:
                raise _BrokenError(f"the server answers {error.code}") from error
            raise LogError(f"The server answers for {path} with HTTP status {error.code}.") from error
        except urllib.error.URLError as error:
            raise _BrokenError(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(str(error) or type(error).__name__) from error

    def _read(self, answer: http.client.HTTPResponse, path: str, deadline: float) -> bytes:
        limit, raw = _limit(path), bytearray()
        promised = answer.length
        while piece := answer.read1(_PIECE_BYTES):
            raw += piece
            if len(raw) > limit:
                raise LogError(f"The log's file {path} is larger than any of its kind.")
            if time.monotonic() > deadline:
                raise _BrokenError("it takes too long")
        if promised is not None and len(raw) != promised:
            raise _BrokenError("the connection broke")
        return bytes(raw)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS alone, by way of a proxy if the environment names one; a redirect is an error like any other status."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
