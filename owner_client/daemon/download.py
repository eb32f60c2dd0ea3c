"""Downloading a manifest's files, several at a time, each going on where an earlier attempt stopped.

The bytes are not believed here: the caller verifies the whole folder when everything has arrived.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from common.errors import DigestError, InternalError, StorageError, UnavailableError, UsageError
from common.files import storage_errors
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry
from common.progress import ProgressSink
from owner_client.daemon.client import Coordinator
from owner_client.daemon.patience import Patience

__all__ = ["Download"]

_FRUITLESS_TRIES: Final = 3
_MARGIN: Final = 64 * 1024 * 1024  # bytes kept free on the disk beyond the anchor itself


class Download:
    """The files of one anchor on their way into ``folder``; a file counts as whole when it has the size the manifest signs."""

    def __init__(
        self, folder: Path, files: Sequence[FileEntry], coordinator: Coordinator, patience: Patience, progress: ProgressSink
    ) -> None:
        self._folder = folder
        self._files = sorted(files, key=lambda entry: -entry.size)
        self._coordinator = coordinator
        self._patience = patience
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._total = sum(entry.size for entry in files)
        self._done = 0
        self._fetched = 0

    def run(self, streams: int) -> int:
        """Fetch what is missing; returns the number of bytes fetched."""
        self._discard_foreign()
        self._done = sum(min(self._have(entry), entry.size) for entry in self._files)
        self._check_room(self._total - self._done)
        self._progress("Downloading the anchor", self._done, self._total, "bytes")
        with ThreadPoolExecutor(max_workers=streams) as pool:
            futures = [pool.submit(self._fetch_file, entry) for entry in self._files]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise
        return self._fetched

    def _have(self, entry: FileEntry) -> int:
        path = self._folder / entry.name
        return path.stat().st_size if path.is_file() else 0

    def _discard_foreign(self) -> None:
        known = {entry.name for entry in self._files} | {MANIFEST_NAME, SIGNATURE_NAME}
        for path in self._folder.iterdir():
            if path.name not in known or path.is_symlink() or not path.is_file():
                raise UsageError(f"{path} does not belong to a download; remove it and pull again.")
        for entry in self._files:
            if self._have(entry) > entry.size:
                (self._folder / entry.name).unlink()

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed + _MARGIN:
            raise StorageError(f"The anchor needs {needed:,} bytes more, and {free:,} are free on that disk. Free some and pull again.")

    def _fetch_file(self, entry: FileEntry) -> None:
        with storage_errors(entry.name), (self._folder / entry.name).open("ab") as stream:
            fruitless = 0
            while not self._stop.is_set() and stream.tell() < entry.size:
                begin = stream.tell()
                try:
                    self._fetch_rest(entry, begin, stream.write)
                except (UnavailableError, InternalError) as error:
                    # A coordinator that dies in the middle of an answer can look like one that failed inside.
                    fruitless = 0 if stream.tell() > begin else fruitless + isinstance(error, InternalError)
                    if fruitless >= _FRUITLESS_TRIES:
                        raise
                    self._patience.wait(UnavailableError(str(error)), self._stop)

    def _fetch_rest(self, entry: FileEntry, offset: int, write: Callable[[bytes], int]) -> None:
        position = offset
        for data in self._coordinator.download(entry.sha256, offset):
            if self._stop.is_set():
                return
            position += len(data)
            if position > entry.size:
                raise DigestError(f"The coordinator sent more bytes of {entry.name} than the manifest signs.")
            write(data)
            self._patience.progressed()
            with self._lock:
                self._done += len(data)
                self._fetched += len(data)
                self._progress("Downloading the anchor", self._done, self._total, "bytes")
        if position < entry.size:
            raise UnavailableError(f"The download of {entry.name} ended early.")
