"""The coordinator as one owner sees it: each call of ``proto/common/rpc/v1`` as a method that returns checked sizes or our own errors."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, cast

from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import (
    DigestError,
    ElmgroveError,
    InterruptedByUserError,
    ProtocolError,
    TransportError,
    UnauthenticatedError,
    UnavailableError,
)
from common.formats.fields import NAME_PATTERN
from common.rpc.channels import ClientIdentity, Connection
from common.rpc.limits import CALL_SECONDS
from common.rpc.v1 import elmgrove_pb2 as pb
from common.trust.certificates import TrustRoot
from owner_client.config import CoordinatorAddress
from owner_client.daemon.sync import ConsistencyAnswer
from owner_client.daemon.witness import Witness

__all__ = ["Coordinator"]

_NAME: Final = re.compile(NAME_PATTERN)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_STATE: Final = re.compile(r"[a-z-]{1,20}")
_VERSION: Final = re.compile(r"[0-9]{1,7}")
_LATEST_TIME: Final = 2**33  # Unix seconds; the year 2242
_SECOND_LOOK_SECONDS: Final = 1.0
_COMMIT_SECONDS: Final = 3600.0  # the coordinator reads every byte of the package before it answers


class Coordinator:
    """A connection under our transport certificate. Safe to share between threads; use it as a context manager.

    Attributes:
        witness: who cosigns the checkpoints that are shown on it; None while we are only joining.
    """

    def __init__(self, address: CoordinatorAddress, root: TrustRoot, identity: ClientIdentity, witness: Witness | None = None) -> None:
        root_pem = root.certificate.public_bytes(Encoding.PEM)
        self._connection = Connection(address.host, address.port, root_pem=root_pem, identity=identity)
        self.witness = witness

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def _call(self, method: Callable[..., Any], request: object, *, timeout: float = CALL_SECONDS) -> Any:
        try:
            return self._call_once(method, request, timeout)
        except UnauthenticatedError:
            # A coordinator that is being stopped closes connections just as one that refuses our certificate does: look twice.
            time.sleep(_SECOND_LOOK_SECONDS)
            return self._call_once(method, request, timeout)

    def _call_once(self, method: Callable[..., Any], request: object, timeout: float) -> Any:
        try:
            return self._connection.call(method, request, timeout=timeout)
        except ElmgroveError as error:
            raise _as_outage(error) from error

    def status(self) -> pb.StatusReply:
        """What the coordinator knows about us, and what is published. Names and digests have the form that documents allow.

        Raises:
            ProtocolError: they have not; they would become file names and lines on a terminal.
        """
        reply: pb.StatusReply = self._call(self._connection.consortium.Status, pb.StatusRequest())
        names = [anchor.name for anchor in reply.anchors] + [expert.name for expert in reply.experts]
        names += [upload.name for upload in reply.uploads]
        names += [name.partition("@")[0] for use in reply.models for name in use.experts]
        digests = [anchor.digest for anchor in reply.anchors] + [anchor.document for anchor in reply.anchors]
        digests += [expert.manifest for expert in reply.experts] + [upload.manifest for upload in reply.uploads]
        digests += [use.manifest for use in reply.models]
        states = [expert.status for expert in reply.experts]
        versions = [name.partition("@")[2] or "?" for use in reply.models for name in use.experts]
        if any(not 0 <= expert.accepted_at < _LATEST_TIME for expert in reply.experts):
            raise ProtocolError("The coordinator sent a status with an impossible time.")
        for form, texts in ((_NAME, names), (_DIGEST, digests), (_STATE, states), (_VERSION, versions)):
            if not all(form.fullmatch(text) for text in texts):
                raise ProtocolError("The coordinator sent a status with malformed names or digests.")
        return reply

    def consistency(self, old_size: int) -> ConsistencyAnswer:
        """See :class:`owner_client.daemon.sync.LogSource`. A log shorter than ``old_size`` gives its checkpoint only."""
        try:
            reply: pb.ConsistencyReply = self._call(self._connection.log.Consistency, pb.ConsistencyRequest(old_size=old_size))
        except TransportError:
            raise
        except ElmgroveError:
            now: pb.CheckpointReply = self._call(self._connection.log.Checkpoint, pb.CheckpointRequest())
            return ConsistencyAnswer(now.checkpoint, ())
        return ConsistencyAnswer(reply.checkpoint, tuple(reply.proof))

    def inclusion(self, index: int) -> pb.Receipt:
        """The entry at ``index``, proved under the newest checkpoint."""
        return cast("pb.Receipt", self._call(self._connection.log.Inclusion, pb.InclusionRequest(index=index)))

    def document(self, digest: str) -> bytes:
        """A document beside the log.

        Raises:
            DigestError: other bytes than those of ``digest``.
        """
        reply: pb.DocumentReply = self._call(self._connection.log.Document, pb.DocumentRequest(sha256=digest))
        if hashlib.sha256(reply.document).hexdigest() != digest:
            raise DigestError("The coordinator sent another document than the one asked for.")
        return reply.document

    def download(self, digest: str, offset: int) -> Iterator[bytes]:
        """The bytes of a file from ``offset`` to its end, in pieces of at most 1 MiB. The caller checks the digest of the whole."""
        request = pb.DownloadRequest(sha256=digest, offset=offset)
        with self._streaming():
            call = self._connection.transfer.Download(request)
            try:
                for piece in call:
                    yield piece.data
            finally:
                call.cancel()

    def offer(self, bundle: bytes, manifest: bytes) -> pb.OfferReply:
        """Offer a signed package, or take up its upload again."""
        return cast("pb.OfferReply", self._call(self._connection.transfer.Offer, pb.OfferRequest(bundle=bundle, manifest=manifest)))

    def upload(self, messages: Iterator[pb.UploadMessage], on_call: Callable[[Callable[[], object]], None]) -> Iterator[pb.UploadAck]:
        """Send one stream of ``messages`` and yield the acknowledgements; ``on_call`` is given a function that cancels the stream."""
        with self._streaming():
            call = self._connection.transfer.Upload(messages)
            on_call(call.cancel)
            yield from call

    def commit(self, upload_id: str) -> pb.Receipt:
        """Have a complete upload admitted and logged; safe to repeat."""
        return cast(
            "pb.Receipt", self._call(self._connection.transfer.Commit, pb.CommitRequest(upload_id=upload_id), timeout=_COMMIT_SECONDS)
        )

    def abandon(self, upload_id: str) -> None:
        """Give up an upload of ours and free what it holds."""
        self._call(self._connection.transfer.Abandon, pb.AbandonRequest(upload_id=upload_id))

    def withdraw(self, envelope: bytes) -> pb.Receipt:
        """Submit a signed withdrawal; safe to repeat."""
        return cast("pb.Receipt", self._call(self._connection.experts.Withdraw, pb.WithdrawRequest(envelope=envelope)))

    def register_witness(self, envelope: bytes) -> pb.Receipt:
        """Submit the registration of our witness key; safe to repeat."""
        return cast("pb.Receipt", self._call(self._connection.log.RegisterWitness, pb.RegisterWitnessRequest(envelope=envelope)))

    def cosign(self, size: int, line: str) -> bool:
        """Have our cosignature published; false if the log has another checkpoint by now."""
        return bool(self._call(self._connection.log.Cosign, pb.CosignRequest(size=size, cosignature=line)).published)

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        """Around a streaming call and the reading of it: gRPC's failures come out as ours.

        A refusal to talk to us at all is left to the next short call to establish (:meth:`_call`).
        """
        try:
            with self._connection.translated():
                yield
        except UnauthenticatedError as error:
            raise UnavailableError(str(error)) from error
        except ElmgroveError as error:
            raise _as_outage(error) from error


def _as_outage(error: ElmgroveError) -> ElmgroveError:
    """A coordinator that is being stopped, or whose wire broke, is one that does not answer now."""
    return UnavailableError(str(error)) if type(error) in {InterruptedByUserError, ProtocolError, TransportError} else error
