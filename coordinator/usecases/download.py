"""Which bytes an owner may fetch: published anchors, its own packages, and every logged document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import NotFoundError, UsageError
from common.formats.manifest import Manifest
from common.ledger.state import ConsortiumState, OwnerState
from common.rpc.limits import PIECE_BYTES
from coordinator.usecases.context import Coordinator

__all__ = ["Download", "open_download"]


@dataclass(frozen=True, slots=True)
class Download:
    """A range of one file: the size of the whole file, and the pieces of the range."""

    size: int
    pieces: Iterator[bytes]


def open_download(coordinator: Coordinator, owner: OwnerState, digest: str, *, offset: int, length: int) -> Download:
    """Open a range of a file by its digest.

    Args:
        coordinator: whose files.
        owner: who asks.
        digest: SHA-256 of the file.
        offset: first byte wanted.
        length: bytes wanted; 0 means to the end.

    Raises:
        NotFoundError: there is no such file, or it is another owner's: the answer does not tell which.
        UsageError: the range does not lie in the file.
    """
    size = _sizes(coordinator.ledger.state(), owner).get(digest)
    if size is None:
        return _document(coordinator, digest, offset, length)
    wanted = _range(size, offset, length)
    return Download(size, coordinator.blobs.read(digest, offset, wanted, PIECE_BYTES))


def _document(coordinator: Coordinator, digest: str, offset: int, length: int) -> Download:
    try:
        raw = coordinator.ledger.view.document(digest)
    except NotFoundError as error:
        raise NotFoundError("There is no such file, or it is not yours to fetch.") from error
    end = offset + _range(len(raw), offset, length)
    return Download(len(raw), (raw[start : min(start + PIECE_BYTES, end)] for start in range(offset, end, PIECE_BYTES)))


def _range(size: int, offset: int, length: int) -> int:
    if offset > size or length > size - offset:
        raise UsageError(f"The file has {size} bytes; {length} from {offset} on are not in it.")
    return length or size - offset


def _sizes(state: ConsortiumState, owner: OwnerState) -> dict[str, int]:
    """Size of every file that ``owner`` may fetch, by digest."""
    mine = (version.manifest for versions in state.experts.values() for version in versions if version.owner == owner.uri)
    manifests: list[Manifest] = [*(anchor.manifest for anchor in state.anchors.values()), *mine]
    return {entry.sha256: entry.size for manifest in manifests for entry in manifest.files}
