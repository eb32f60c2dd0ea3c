"""What lies in a folder or file of weights: names, headers, and one digest per tensor (``docs/formats.md``, sections 3 and 4)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import FormatError, LayoutError, LimitError, NotFoundError, SafetensorsError, StorageError
from common.formats.limits import MAX_FILES
from common.formats.safetensors import PREFIX_BYTES, Header, TensorSpan, parse_header, parse_length
from common.weights.digests import FileDigest, HashingReader, open_regular
from common.weights.parallel import Meter

__all__ = ["SAFETENSORS_SUFFIX", "ScannedFile", "check_members", "list_folder", "read_header", "scan_file", "tensor_digests"]

SAFETENSORS_SUFFIX: Final = ".safetensors"
_FLAT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")  # fields.FileName


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """One file after one pass: its digests and, if it is a safetensors file, its header and the SHA-256 of each tensor.

    ``tensors`` is empty when tensors were not asked for. ``fault`` says why a file named ``.safetensors`` is not one; its digests
    hold all the same.
    """

    digest: FileDigest
    header: Header | None
    tensors: Mapping[str, str]
    fault: FormatError | None


def list_folder(folder: Path) -> tuple[str, ...]:
    """Names of the regular files of a flat folder, sorted.

    Raises:
        NotFoundError: there is no such folder.
        LayoutError: it holds a link, a folder, a FIFO or device, or a name that no manifest may hold.
        LimitError: it holds more than ``MAX_FILES`` files.
    """
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise LayoutError(f"{folder.name} holds {entry.name[:100]!r}, which is not a regular file.")
                if not _FLAT_NAME.fullmatch(entry.name):
                    raise LayoutError(f"{folder.name} holds a file with the name {entry.name[:100]!r}, which is not allowed.")
                names.append(entry.name)
                if len(names) > MAX_FILES:
                    raise LimitError(f"{folder.name} holds more than {MAX_FILES} files.")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"There is no folder {folder}.") from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {os.strerror(error.errno or 0)}.") from error
    return tuple(sorted(names))


def check_members(found: Collection[str], expected: Collection[str], what: str) -> None:
    """Check that the files ``found`` are exactly those ``expected``.

    Raises:
        LayoutError: one is missing or surplus; the message names the first of each.
    """
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing:
        raise LayoutError(f"{what} lacks {missing[0]}{_more(missing)}.")
    if surplus:
        raise LayoutError(f"{what} holds {surplus[0]}{_more(surplus)}, which it may not hold.")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def read_header(path: Path) -> Header:
    """The strictly parsed header of a safetensors file; reads nothing but the header.

    Raises:
        SafetensorsError, LimitError: it is not a well-formed safetensors file; the message begins with the file's name.
        NotFoundError, LayoutError, StorageError: as :func:`common.weights.digests.open_regular`.
    """
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        try:
            length = parse_length(os.pread(descriptor, PREFIX_BYTES, 0), size)
            return parse_header(os.pread(descriptor, length, PREFIX_BYTES), size)
        except FormatError as error:
            raise _named(error, path.name) from error


def _named(error: FormatError, name: str) -> FormatError:
    return type(error)(f"{name}: {error}")


def scan_file(path: Path, *, name: str | None = None, chunks: bool = True, tensors: bool = True, meter: Meter | None = None) -> ScannedFile:
    """Digest a file and, if ``name`` ends in ``.safetensors``, each of its tensors, in one pass over one descriptor.

    Every further digest costs as much time as the file's own.

    Args:
        path: where the bytes lie.
        name: the file's name in its manifest; ``path.name`` by default. A content-addressed blob has another name on disk.
        chunks: also digest the 16 MiB chunks.
        tensors: also digest every tensor; the header is parsed in any case.
        meter: told of every block.

    Raises:
        NotFoundError, LayoutError, StorageError: as :func:`common.weights.digests.open_regular`.
        DigestError: the file changed while it was read.
    """
    name = name or path.name
    with open_regular(path) as descriptor:
        reader = HashingReader(descriptor, name, chunks=chunks, meter=meter)
        if not name.endswith(SAFETENSORS_SUFFIX):
            return ScannedFile(digest=reader.finish(), header=None, tensors={}, fault=None)
        try:
            length = parse_length(reader.take(PREFIX_BYTES), reader.size)
            header = parse_header(reader.take(length), reader.size)
        except FormatError as error:
            return ScannedFile(digest=reader.finish(), header=None, tensors={}, fault=_named(error, name))
        digests = {span.name: _feed_tensor(reader, span) for span in header.tensors} if tensors else {}
        return ScannedFile(digest=reader.finish(), header=header, tensors=digests, fault=None)


def _feed_tensor(reader: HashingReader, span: TensorSpan) -> str:
    hasher = hashlib.sha256()
    reader.feed(span.end - span.start, hasher)
    return hasher.hexdigest()


def tensor_digests(path: Path) -> Mapping[str, str]:
    """Tensor name to SHA-256 of its bytes, in file order.

    Raises:
        SafetensorsError, LimitError: it is not a well-formed safetensors file.
        NotFoundError, LayoutError, StorageError, DigestError: as :func:`scan_file`.
    """
    scanned = scan_file(path, name=path.name if path.name.endswith(SAFETENSORS_SUFFIX) else path.name + SAFETENSORS_SUFFIX, chunks=False)
    if scanned.fault is not None:
        raise scanned.fault
    if scanned.header is None:
        raise SafetensorsError(f"{path.name} is not a safetensors file.")
    return scanned.tensors
