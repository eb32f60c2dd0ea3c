"""Content-addressed files: ``blobs/sha256/ab/<digest>``, written once, read-only, never half there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from common.errors import DigestError, NotFoundError
from common.files import fsync_folder, storage_errors

__all__ = ["Blobs"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_ONLY: Final = 0o444
_COPY_BYTES: Final = 4 * 1024 * 1024  # bytes read at a time
_CANNOT_LINK: Final = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}


class Blobs:
    """The blobs of one coordinator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, digest: str) -> Path:
        """Where a blob lies or would lie.

        Raises:
            NotFoundError: ``digest`` is not a SHA-256 in lower-case hexadecimal.
        """
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError("That is not a digest.")
        return self._folder / "sha256" / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self.path(digest).is_file()

    def adopt(self, source: Path, digest: str) -> bool:
        """Make the verified file ``source`` a blob without copying it, where the file system can.

        Args:
            source: a regular file whose digest the caller has checked and which nobody writes to any more; it stays where it is.
            digest: its SHA-256.

        Returns:
            Whether the blob is new here.

        Raises:
            StorageError: the disk is full or not writable.
        """
        target = self._prepare(digest)
        if target.is_file():
            return False
        with storage_errors("a blob"):
            source.chmod(_READ_ONLY)
            try:
                os.link(source, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
                self._copy(source, target, digest)
            fsync_folder(target.parent)
        return True

    def discard(self, digests: Iterator[str] | list[str]) -> None:
        """Remove blobs that were added for something that was then refused."""
        for digest in digests:
            self.path(digest).unlink(missing_ok=True)

    def unnamed(self, named: Collection[str], *, older_than: float) -> tuple[str, ...]:
        """Digests of the blobs that are not among ``named`` and came before ``older_than`` (Unix seconds)."""
        found = (path for path in self._folder.glob("sha256/??/*") if _DIGEST.fullmatch(path.name) and path.name not in named)
        return tuple(sorted(path.name for path in found if path.stat().st_ctime < older_than))

    def read(self, digest: str, offset: int, length: int, piece: int) -> Iterator[bytes]:
        """Yield ``length`` bytes from ``offset`` on, in pieces of at most ``piece`` bytes.

        Raises:
            NotFoundError: no such blob.
        """
        try:
            stream = self.path(digest).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise NotFoundError("No such file.") from error
        with stream:
            os.posix_fadvise(stream.fileno(), offset, length, os.POSIX_FADV_SEQUENTIAL)
            while length > 0:
                data = os.pread(stream.fileno(), min(piece, length), offset)
                if not data:
                    raise NotFoundError("The file ends before the bytes that were asked for.")
                yield data
                offset += len(data)
                length -= len(data)

    def _prepare(self, digest: str) -> Path:
        target = self.path(digest)
        with storage_errors("a blob"):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @staticmethod
    def _copy(source: Path, target: Path, digest: str) -> None:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
        aside = Path(name)
        try:
            hasher = hashlib.sha256()
            with os.fdopen(descriptor, "wb") as out, source.open("rb") as stream:
                while data := stream.read(_COPY_BYTES):
                    hasher.update(data)
                    out.write(data)
                out.flush()
                os.fchmod(out.fileno(), _READ_ONLY)
                os.fsync(out.fileno())
            if hasher.hexdigest() != digest:
                raise DigestError(f"{source.name} changed while it was being copied.")
            aside.rename(target)
        finally:
            aside.unlink(missing_ok=True)
