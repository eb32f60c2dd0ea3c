# ruff: noqa: N802, ARG002 - names and parameters are those of the .proto and of gRPC
"""The gRPC services of ``elmgrove.proto``: each method decodes, calls one use case, and encodes."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from common.errors import ProtocolError
from common.rpc.limits import MAX_ENTRIES
from common.rpc.v1 import elmgrove_pb2 as pb
from common.rpc.v1 import elmgrove_pb2_grpc as stubs
from coordinator.service.encode import encode_admission, encode_offer, encode_receipt, encode_status
from coordinator.service.handling import Slots, caller, handled, handled_stream
from coordinator.usecases.context import Coordinator
from coordinator.usecases.download import open_download
from coordinator.usecases.enrol import enrol
from coordinator.usecases.receive import ChunkReceiver
from coordinator.usecases.status import owner_status
from coordinator.usecases.uploads import abandon_upload, commit_upload, offer_upload
from coordinator.usecases.withdraw import withdraw_expert
from coordinator.usecases.witness import publish_cosignature, register_witness

__all__ = ["ConsortiumService", "EnrolmentService", "ExpertsService", "LogService", "TransferService"]

Context = grpc.ServicerContext


class EnrolmentService(stubs.EnrolmentServicer):
    """Reachable without a client certificate; shows the root, and takes a token for certificates."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    @handled
    def Trust(self, request: pb.TrustRequest, context: Context) -> pb.TrustReply:
        """The root certificate, which is no secret."""
        return pb.TrustReply(root_der=self._coordinator.root.der)

    @handled
    def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        """See :func:`coordinator.usecases.enrol.enrol`."""
        here = self._coordinator
        admission = enrol(here, token=request.token, signing_csr=request.signing_csr_der, transport_csr=request.transport_csr_der)
        return encode_admission(admission, consortium=here.consortium, root_der=here.root.der, log_key=here.log_key)


class ConsortiumService(stubs.ConsortiumServicer):
    """What the caller may know."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    @handled
    def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        """See :func:`coordinator.usecases.status.owner_status`."""
        return encode_status(owner_status(self._coordinator, caller(self._coordinator, context)), self._coordinator.config)


class TransferService(stubs.TransferServicer):
    """Packages in, anchors out."""

    def __init__(self, coordinator: Coordinator, slots: Slots) -> None:
        self._coordinator, self._slots = coordinator, slots

    @handled
    def Offer(self, request: pb.OfferRequest, context: Context) -> pb.OfferReply:
        """See :func:`coordinator.usecases.uploads.offer_upload`."""
        owner = caller(self._coordinator, context)
        return encode_offer(offer_upload(self._coordinator, owner, bundle=request.bundle, manifest_raw=request.manifest))

    @handled_stream
    def Upload(self, requests: Iterator[pb.UploadMessage], context: Context) -> Iterator[pb.UploadAck]:
        """Acknowledge each chunk once it is durable; see :class:`coordinator.usecases.receive.ChunkReceiver`."""
        owner = caller(self._coordinator, context)
        first = next(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise ProtocolError("An upload stream begins with a header.")
        with self._slots.take(owner.name), ChunkReceiver(self._coordinator, owner, first.header.upload_id) as receiver:
            for message in requests:
                if message.WhichOneof("message") != "piece":
                    raise ProtocolError("After its header an upload stream holds pieces only.")
                piece = message.piece
                if receiver.feed((piece.file, piece.chunk), piece.offset, piece.data):
                    yield pb.UploadAck(file=piece.file, chunk=piece.chunk)

    @handled
    def Commit(self, request: pb.CommitRequest, context: Context) -> pb.Receipt:
        """See :func:`coordinator.usecases.uploads.commit_upload`."""
        return encode_receipt(commit_upload(self._coordinator, caller(self._coordinator, context), request.upload_id))

    @handled
    def Abandon(self, request: pb.AbandonRequest, context: Context) -> pb.AbandonReply:
        """See :func:`coordinator.usecases.uploads.abandon_upload`."""
        abandon_upload(self._coordinator, caller(self._coordinator, context), request.upload_id)
        return pb.AbandonReply()

    @handled_stream
    def Download(self, request: pb.DownloadRequest, context: Context) -> Iterator[pb.DownloadPiece]:
        """See :func:`coordinator.usecases.download.open_download`."""
        owner = caller(self._coordinator, context)
        with self._slots.take(owner.name):
            download = open_download(self._coordinator, owner, request.sha256, offset=request.offset, length=request.length)
            size, sent = download.size, False
            for data in download.pieces:
                yield pb.DownloadPiece(data=data, size=0 if sent else size)
                sent = True
            if not sent:
                yield pb.DownloadPiece(size=size)


class LogService(stubs.LogServicer):
    """The log, to every member."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def _fresh(self, context: Context) -> None:
        caller(self._coordinator, context)
        self._coordinator.ledger.view.refresh()

    @handled
    def Checkpoint(self, request: pb.CheckpointRequest, context: Context) -> pb.CheckpointReply:
        """The newest signed checkpoint."""
        self._fresh(context)
        return pb.CheckpointReply(checkpoint=self._coordinator.ledger.view.checkpoint)

    @handled
    def Consistency(self, request: pb.ConsistencyRequest, context: Context) -> pb.ConsistencyReply:
        """The proof that the newest checkpoint continues an older tree."""
        self._fresh(context)
        proof, checkpoint = self._coordinator.ledger.view.consistency(request.old_size)
        return pb.ConsistencyReply(proof=proof, checkpoint=checkpoint)

    @handled
    def Inclusion(self, request: pb.InclusionRequest, context: Context) -> pb.Receipt:
        """The entry at an index and its proof."""
        self._fresh(context)
        return encode_receipt(self._coordinator.ledger.view.receipt(request.index))

    @handled
    def Entries(self, request: pb.EntriesRequest, context: Context) -> pb.EntriesReply:
        """Entries from an index on."""
        self._fresh(context)
        view = self._coordinator.ledger.view
        end = min(request.start + min(request.limit or MAX_ENTRIES, MAX_ENTRIES), view.size)
        return pb.EntriesReply(entries=view.entries(request.start, end), size=view.size)

    @handled
    def Document(self, request: pb.DocumentRequest, context: Context) -> pb.DocumentReply:
        """A logged document, or a manifest one names."""
        self._fresh(context)
        return pb.DocumentReply(document=self._coordinator.ledger.view.document(request.sha256))

    @handled
    def RegisterWitness(self, request: pb.RegisterWitnessRequest, context: Context) -> pb.Receipt:
        """See :func:`coordinator.usecases.witness.register_witness`."""
        return encode_receipt(register_witness(self._coordinator, caller(self._coordinator, context), request.envelope))

    @handled
    def Cosign(self, request: pb.CosignRequest, context: Context) -> pb.CosignReply:
        """See :func:`coordinator.usecases.witness.publish_cosignature`."""
        owner = caller(self._coordinator, context)
        return pb.CosignReply(published=publish_cosignature(self._coordinator, owner, request.size, request.cosignature))


class ExpertsService(stubs.ExpertsServicer):
    """What owners say about their experts."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    @handled
    def Withdraw(self, request: pb.WithdrawRequest, context: Context) -> pb.Receipt:
        """See :func:`coordinator.usecases.withdraw.withdraw_expert`."""
        return encode_receipt(withdraw_expert(self._coordinator, caller(self._coordinator, context), request.envelope))
