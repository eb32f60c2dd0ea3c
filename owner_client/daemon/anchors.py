"""Fetching an anchor: downloaded resumably beside its place, verified whole, and only then moved there.

Nothing is believed but the root pinned at joining: (1) the log's checkpoint extends what we saw; (2) the log took in this anchor;
(3) its bundle is signed by the operator and names the manifest; (4) every file has the digest the manifest signs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.errors import DigestError, ElmgroveError, NotFoundError, SignerError
from common.files import fsync_folder, fsync_tree, storage_errors
from common.formats.fields import parse_time
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, AnchorManifest, FileEntry
from common.formats.strictjson import parse_document
from common.progress import ProgressSink
from common.rpc.v1 import elmgrove_pb2 as pb
from common.weights.digests import digest_file
from common.weights.packages import SignedAnchor, VerifiedAnchor, verify_anchor, verify_anchor_documents
from owner_client.config import Home
from owner_client.daemon.client import Coordinator
from owner_client.daemon.download import Download
from owner_client.daemon.locks import exclusive
from owner_client.daemon.patience import Patience
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, load_receipt, store_receipt
from owner_client.daemon.session import Session

__all__ = ["LocalAnchor", "PulledAnchor", "find_anchor", "local_anchors", "pull_anchor", "verify_local_anchor"]


@dataclass(frozen=True, slots=True)
class PulledAnchor:
    """An anchor that lies verified under ``folder``; ``fetched_bytes`` is what this pull downloaded."""

    folder: Path
    signed: SignedAnchor
    index: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class LocalAnchor:
    """An anchor that was pulled before: its folder, digest, name, and the index and time of its log entry."""

    folder: Path
    digest: str
    name: str
    index: int
    logged: datetime


def local_anchors(home: Home, log_key: str) -> tuple[LocalAnchor, ...]:
    """The anchors that were pulled, in log order; their receipts are checked, their files are not read again.

    Raises:
        FormatError, LogError: a kept receipt or manifest was changed.
    """
    names = [path.name for path in home.anchors.iterdir()] if home.anchors.is_dir() else []
    found = [_local_anchor(home, name, log_key) for name in names if len(name) == hashlib.sha256().digest_size * 2]
    return tuple(sorted(found, key=lambda anchor: anchor.index))


def _local_anchor(home: Home, digest: str, log_key: str) -> LocalAnchor:
    folder = home.anchors / digest
    try:
        raw = (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"The anchor {folder} has no readable manifest. Remove the folder and run 'elmgrove-owner pull' again."
        ) from error
    if hashlib.sha256(raw).hexdigest() != digest:
        raise DigestError(f"The manifest of the anchor {folder} was changed. Remove the folder and run 'elmgrove-owner pull' again.")
    manifest = parse_document(AnchorManifest, raw)
    receipt = load_receipt(home.anchor_receipt(digest), "anchor-published", _subject(manifest), log_key)
    if receipt is None:
        raise NotFoundError(f"The anchor {digest[:16]}... has no receipt. Run 'elmgrove-owner pull --anchor {digest}' again.")
    return LocalAnchor(folder, digest, manifest.name, receipt.index, parse_time(receipt.entry.time))


def find_anchor(anchors: Sequence[LocalAnchor], wanted: str | None) -> LocalAnchor:
    """The pulled anchor of that name or digest, or the newest.

    Raises:
        NotFoundError: none was pulled, or none of that name.
    """
    matching = [anchor for anchor in anchors if wanted is None or wanted in {anchor.name, anchor.digest}]
    if matching:
        return matching[-1]
    if not anchors:
        raise NotFoundError("No anchor was pulled yet. Run 'elmgrove-owner pull' first.")
    known = ", ".join(sorted({anchor.name for anchor in anchors}))
    raise NotFoundError(f"No anchor {wanted!r} was pulled; there is {known}. Run 'elmgrove-owner pull --anchor {wanted}' first.")


def verify_local_anchor(session: Session, anchor: LocalAnchor, progress: ProgressSink) -> VerifiedAnchor:
    """Read a pulled anchor whole and verify it again, before something is built on it.

    Raises:
        VerificationError, LayoutError: its files were changed since they were pulled.
    """
    return verify_anchor(anchor.folder, session.root, anchor.logged, progress=progress)


def pull_anchor(session: Session, coordinator: Coordinator, wanted: str | None, patience: Patience, progress: ProgressSink) -> PulledAnchor:
    """Fetch and verify the anchor of that name or digest, or the newest one. A pull that was cut off goes on where it stopped.

    Raises:
        NotFoundError: no such anchor is published.
        StorageError: too little room on the disk.
        UnavailableError: the coordinator stayed away too long; what arrived is kept.
        VerificationError: a signature, digest or the log does not hold; what does not hold is removed.
    """
    published = _choose(patience.persist(coordinator.status).anchors, wanted)
    lock = session.home.anchors / f".{published.digest}.lock"
    with exclusive(lock, busy="Another pull of this anchor is running."):
        receipt, signed = _prove_published(session, coordinator, published, patience)
        store_receipt(session.home.anchor_receipt(published.digest), receipt)
        target = session.home.anchors / published.digest
        fetched = 0
        if not target.is_dir():
            fetched = _fetch(session, coordinator, receipt, signed, patience, progress)
        else:
            verify_anchor(target, session.root, parse_time(receipt.entry.time), progress=progress)
        return PulledAnchor(target, signed, receipt.index, fetched)


def _choose(anchors: Sequence[pb.Anchor], wanted: str | None) -> pb.Anchor:
    matching = [anchor for anchor in anchors if wanted is None or wanted in {anchor.name, anchor.digest}]
    if matching:
        return matching[-1]
    if not anchors:
        raise NotFoundError("The consortium has not published an anchor yet; ask its operator.")
    raise NotFoundError(f"No anchor {wanted!r} is published; there is {', '.join(sorted({anchor.name for anchor in anchors}))}.")


def _subject(manifest: AnchorManifest) -> str:
    return f"anchor/{manifest.name}"


def _prove_published(
    session: Session, coordinator: Coordinator, published: pb.Anchor, patience: Patience
) -> tuple[CheckedReceipt, SignedAnchor]:
    """Steps 1 to 3 of the module's recipe."""
    # (1) the checkpoint
    patience.persist(lambda: session.follow_log(coordinator))
    # (2) the entry
    bundle = patience.persist(lambda: coordinator.document(published.document))
    raw = patience.persist(lambda: coordinator.document(published.digest))
    claim = Claim("anchor-published", _subject(parse_document(AnchorManifest, raw)), bundle)
    answer = patience.persist(lambda: coordinator.inclusion(published.index))
    receipt = check_receipt(answer.entry, answer.tlog_proof, claim, session.config.pinned.log_key)
    patience.persist(lambda: session.follow_log(coordinator, receipt))
    # (3) the signer
    signed = verify_anchor_documents(bundle, raw, session.root, at=parse_time(receipt.entry.time))
    if signed.manifest.consortium != session.config.consortium:
        raise SignerError(f"The anchor was published for consortium {signed.manifest.consortium}, not for ours.")
    return receipt, signed


def _fetch(
    session: Session, coordinator: Coordinator, receipt: CheckedReceipt, signed: SignedAnchor, patience: Patience, progress: ProgressSink
) -> int:
    """Download into ``DIGEST.partial``, check, and move into place; returns the bytes downloaded now."""
    target = session.home.anchors / signed.digest
    partial = target.with_name(signed.digest + ".partial")
    files = signed.manifest.files
    with storage_errors("the anchor"):
        partial.mkdir(parents=True, exist_ok=True)
        fetched = Download(partial, files, coordinator, patience, progress).run(session.config.transfer.streams)
        (partial / MANIFEST_NAME).write_bytes(signed.manifest_bytes)
        (partial / SIGNATURE_NAME).write_bytes(signed.bundle)
        # (4) every file
        _verify_or_discard(partial, files, session, receipt, progress)
        fsync_tree(partial)
        partial.rename(target)
        fsync_folder(target.parent)
    return fetched


def _verify_or_discard(
    partial: Path, files: Sequence[FileEntry], session: Session, receipt: CheckedReceipt, progress: ProgressSink
) -> None:
    """Verify the whole folder; a file with wrong bytes is removed, so that the next pull fetches it again."""
    try:
        verify_anchor(partial, session.root, parse_time(receipt.entry.time), progress=progress)
    except ElmgroveError:
        for entry in files:
            if digest_file(partial / entry.name).sha256 != entry.sha256:
                (partial / entry.name).unlink()
        raise
