"""Pushing a package: sign exactly what was reviewed, send what is missing, and keep the log's receipt."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import (
    ElmgroveError,
    IncompleteUploadError,
    InternalError,
    LimitError,
    NotFoundError,
    ProtocolError,
    SignerError,
    UnavailableError,
    WrongAnchorError,
)
from common.files import write_atomic
from common.formats.entries import parse_entry
from common.formats.fields import parse_time, subject_expert, utc_now
from common.formats.limits import MAX_BUNDLE_BYTES
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, AnchorManifest, ExpertManifest
from common.formats.strictjson import parse_document
from common.progress import ProgressSink
from common.rpc.limits import MAX_OFFER_BYTES
from common.rpc.v1 import elmgrove_pb2 as pb
from common.trust.oms import sign_resources, verify_bundle
from common.weights.packages import check_template, verify_expert_documents
from owner_client.daemon.client import Coordinator
from owner_client.daemon.locks import exclusive
from owner_client.daemon.patience import Patience
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, store_receipt
from owner_client.daemon.review import Review
from owner_client.daemon.session import SIGNING_CERTIFICATE, Session
from owner_client.daemon.transfer import chunks_of, send_chunks

__all__ = ["PushResult", "check_pushable", "push_package", "sign_reviewed"]

_FRUITLESS_OFFERS: Final = 3  # offers in a row after which no chunk arrived although the coordinator answered


@dataclass(frozen=True, slots=True)
class PushResult:
    """An accepted package: its checked receipt, and how many bytes of files this push sent."""

    receipt: CheckedReceipt
    sent_bytes: int
    was_accepted_before: bool


def check_pushable(session: Session, review: Review) -> None:
    """Find what the coordinator would refuse before anything is signed or sent.

    Raises:
        SignerError: the package names another owner or consortium.
        WrongAnchorError: it was trained from an anchor that was not pulled into this home.
        TemplateError: its tensors are not the anchor's.
        LimitError: its manifest is too large to be offered.
    """
    manifest = review.manifest
    if manifest.consortium != session.config.consortium or manifest.owner != session.config.uri:
        raise SignerError(f"The package is by {manifest.owner} for consortium {manifest.consortium}; this home is {session.config.uri}.")
    if len(review.package.manifest_bytes) + review.signature_bytes > MAX_OFFER_BYTES:
        raise LimitError("The package has too many tensors or files: its manifest and signature do not fit into one message.")
    path = session.home.anchors / manifest.anchor / MANIFEST_NAME
    if not path.is_file():
        raise WrongAnchorError(
            f"The package was trained from anchor {manifest.anchor[:16]}..., which is not in this home. "
            "Run 'elmgrove-owner pull --anchor' with its digest if this consortium published it."
        )
    check_template(manifest, parse_document(AnchorManifest, path.read_bytes()))


def sign_reviewed(session: Session, review: Review, passphrase: bytes | None) -> bytes:
    """The signature over exactly the reviewed digests, written into the package; an earlier one over the same is kept.

    Returns:
        The bytes of ``model.sig``.

    Raises:
        KeyStoreError: the signing key cannot be opened.
        CertificateError: the signing certificate is not valid now.
        StorageError: the package folder is not writable.
    """
    path = review.folder / SIGNATURE_NAME
    kept = _kept_signature(session, review, path)
    if kept is not None:
        return kept
    key, certificate = session.signer(passphrase)
    subject = f"{review.manifest.name}-v{review.manifest.version}"  # not the folder's name, which may be "."
    bundle = sign_resources(review.package.resources, subject, key, certificate)
    write_atomic(path, bundle)
    return bundle


def _kept_signature(session: Session, review: Review, path: Path) -> bytes | None:
    """A signature that an earlier push made with our present certificate over the same bytes, so that pushing again sends the same."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        raw = stream.read(MAX_BUNDLE_BYTES + 1)
    try:
        signed = verify_bundle(raw, session.root, at=utc_now())
    except ElmgroveError:
        return None
    ours = session.verified_leaf(SIGNING_CERTIFICATE)
    same = dict(signed.resources) == dict(review.package.resources) and signed.signer.fingerprint == ours.fingerprint
    return raw if same else None


def push_package(
    session: Session, coordinator: Coordinator, review: Review, bundle: bytes, patience: Patience, progress: ProgressSink
) -> PushResult:
    """Upload a signed package and keep the receipt; an upload that was cut off goes on with what is missing.

    Raises:
        AdmissionError: the coordinator does not take the package; the class says why.
        UnavailableError: the coordinator stayed away too long; what arrived is kept there.
        DigestError: a file changed since it was reviewed.
        VerificationError: the receipt does not hold.
    """
    with exclusive(session.home.path / ".push.lock", busy="Another push is running from this home."):
        return _push(session, coordinator, review, bundle, patience, progress)


def _push(
    session: Session, coordinator: Coordinator, review: Review, bundle: bytes, patience: Patience, progress: ProgressSink
) -> PushResult:
    patience.persist(lambda: _abandon_older(coordinator, review))
    push = _Push(session, coordinator, review, bundle, patience, progress)
    answer, before = push.run()
    manifest = review.manifest
    logged = _logged_bundle(session, coordinator, review, answer, patience) if before else bundle
    claim = Claim("expert-accepted", subject_expert(manifest.name, manifest.version), logged)
    receipt = check_receipt(answer.entry, answer.tlog_proof, claim, session.config.pinned.log_key)
    patience.persist(lambda: session.follow_log(coordinator, receipt))
    store_receipt(session.home.expert_receipt(manifest.name, manifest.version), receipt)
    return PushResult(receipt, push.sent_bytes, before)


def _logged_bundle(session: Session, coordinator: Coordinator, review: Review, answer: pb.Receipt, patience: Patience) -> bytes:
    """The signature under which this very package was accepted before; it may be an older one of ours.

    Raises:
        VerificationError: it is not ours, or over other bytes.
    """
    entry = parse_entry(answer.entry)
    bundle = patience.persist(lambda: coordinator.document(entry.document))
    at = parse_time(entry.time)
    verify_expert_documents(bundle, review.package.manifest_bytes, session.root, at=at, owner=session.config.uri)
    return bundle


def _abandon_older(coordinator: Coordinator, review: Review) -> None:
    """Give up unfinished uploads of the same version with other bytes: it was trained anew, and they would only use up our quota."""
    manifest = review.manifest
    for upload in coordinator.status().uploads:
        if (upload.name, upload.version) == (manifest.name, manifest.version) and upload.manifest != review.package.digest:
            with contextlib.suppress(NotFoundError):
                coordinator.abandon(upload.upload_id)


class _Push:
    """One push: offer, send, commit, and again from the offer when the connection breaks."""

    def __init__(
        self, session: Session, coordinator: Coordinator, review: Review, bundle: bytes, patience: Patience, progress: ProgressSink
    ) -> None:
        self._streams = session.config.transfer.streams
        self._coordinator = coordinator
        self._folder = review.folder
        self._manifest: ExpertManifest = review.manifest
        self._raw_manifest = review.package.manifest_bytes
        self._bundle = bundle
        self._patience = patience
        self._progress = progress
        self._lock = threading.Lock()
        self._total = sum(entry.size for entry in review.manifest.files)
        self._done = 0
        self.sent_bytes = 0

    def run(self) -> tuple[pb.Receipt, bool]:
        """The receipt, and whether the package had been accepted before."""
        fruitless = 0
        while True:
            before = self.sent_bytes
            try:
                return self._patience.persist(self._attempt)
            except (IncompleteUploadError, NotFoundError, InternalError):
                # The coordinator lost the upload or a chunk of it, or died in the middle of an answer: the next offer says what it has.
                fruitless = 0 if self.sent_bytes > before else fruitless + 1
                if fruitless >= _FRUITLESS_OFFERS:
                    raise

    def _attempt(self) -> tuple[pb.Receipt, bool]:
        offer = self._coordinator.offer(self._bundle, self._raw_manifest)
        if offer.already_accepted:
            return offer.receipt, True
        if not offer.upload_id:
            raise ProtocolError("The coordinator neither took nor refused the offer.")
        chunks = chunks_of(self._folder, self._manifest.files, offer.missing)
        self._done = self._total - sum(chunk.size for chunk in chunks)
        self._progress("Uploading the package", self._done, self._total, "bytes")
        if chunks:
            send_chunks(self._coordinator, offer.upload_id, chunks, self._streams, self._on_sent)
        self._progress("The coordinator checks the package", 0, 1, "packages")
        receipt = self._commit(offer.upload_id)
        self._progress("The coordinator checks the package", 1, 1, "packages")
        return receipt, False

    def _commit(self, upload_id: str) -> pb.Receipt:
        try:
            return self._coordinator.commit(upload_id)
        except ProtocolError as error:
            # An earlier commit whose answer was lost may still be at work there; its result is asked for again.
            raise UnavailableError(str(error)) from error

    def _on_sent(self, size: int) -> None:
        self._patience.progressed()
        with self._lock:
            self._done += size
            self.sent_bytes += size
            self._progress("Uploading the package", self._done, self._total, "bytes")
