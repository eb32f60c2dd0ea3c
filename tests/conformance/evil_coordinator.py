"""A coordinator that holds the consortium's real keys, certificates and log, and lies to one owner as its knobs say.

It is the real server with two of its services bent: every answer that no knob touches is the real coordinator's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import grpc

from common.errors import NotFoundError
from common.formats.entries import encode_entry, parse_entry
from common.formats.fields import format_time, parse_time
from common.rpc.errors import wire_status
from common.rpc.v1 import elmgrove_pb2 as pb
from common.rpc.v1 import elmgrove_pb2_grpc as stubs
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.merkle import consistency_proof, inclusion_proof, leaf_hash, nodes_of, root_hash
from common.translog.proof import encode_receipt
from common.trust.keys import generate_log_key
from coordinator.service.handling import Slots
from coordinator.service.server import CoordinatorServer
from coordinator.service.servicers import LogService, TransferService
from coordinator.usecases.context import Coordinator

Context = grpc.ServicerContext


@dataclass
class Knobs:
    """All off: an honest coordinator. Each is one way to lie."""

    rolls_back_to: int = 0
    """Entries that are left; the log's key signs the shorter log. 0 leaves all."""
    splits_the_view: bool = False
    """Show a log in which an early entry is another one, signed all the same."""
    reorders: bool = False
    """Show a log in which two entries changed places."""
    signs_a_wrong_root: bool = False
    """Sign the right size with a root that no tree has."""
    signs_with_another_key: bool = False
    """Sign checkpoints with a key that is not the log's."""
    withholds: str = ""
    """``proof``: no consistency proof; ``document``: no documents; ``file``: a file ends before its end."""
    serves_anothers_bytes: bool = False
    """Answer downloads with as many other bytes."""
    serves_anothers_document: bool = False
    """Answer for a document with another one."""
    gives_anothers_receipt: bool = False
    """Answer a commit with the receipt of the first entry."""
    gives_a_receipt_from_nowhere: bool = False
    """Answer a commit with an entry that no tree holds, under a checkpoint that the log's key signed."""

    def turn(self, **values: Any) -> None:
        """Set these and let go of all others."""
        for field in fields(self):
            setattr(self, field.name, values.pop(field.name, field.default))
        assert not values, f"there is no knob {sorted(values)}"


class EvilLog(LogService):
    """A log that is not what it was."""

    def __init__(self, coordinator: Coordinator, knobs: Knobs) -> None:
        super().__init__(coordinator)
        self._here, self._knobs = coordinator, knobs
        self._other_key = generate_log_key()

    def shown(self) -> list[bytes]:
        """The entries that this owner is shown."""
        view = self._here.ledger.view
        view.refresh()
        entries = view.entries(0, view.size)
        if self._knobs.splits_the_view:
            entries[1] = _later(entries[1])
        if self._knobs.reorders:
            entries[1], entries[2] = entries[2], entries[1]
        return entries[: self._knobs.rolls_back_to or None]

    def note(self) -> bytes:
        """The checkpoint of what is shown, signed."""
        hashes = [leaf_hash(entry) for entry in self.shown()]
        root = hashlib.sha256(b"no tree").digest() if self._knobs.signs_a_wrong_root else root_hash(hashes)
        key = self._other_key if self._knobs.signs_with_another_key else self._here.keys.log()
        origin = self._here.log_key.partition("+")[0]
        return sign_checkpoint(Checkpoint(origin, len(hashes), root), key)

    def receipt(self, index: int) -> pb.Receipt:
        """The entry at an index with a proof under :meth:`note`."""
        entries = self.shown()
        proof = inclusion_proof(index, len(entries), nodes_of([leaf_hash(entry) for entry in entries]))
        return pb.Receipt(index=index, entry=entries[index], tlog_proof=encode_receipt(index, proof, self.note()))

    def Checkpoint(self, request: pb.CheckpointRequest, context: Context) -> pb.CheckpointReply:
        return pb.CheckpointReply(checkpoint=self.note())

    def Consistency(self, request: pb.ConsistencyRequest, context: Context) -> pb.ConsistencyReply:
        hashes = [leaf_hash(entry) for entry in self.shown()]
        proof: list[bytes] = []
        if 0 < request.old_size < len(hashes) and self._knobs.withholds != "proof":
            proof = consistency_proof(request.old_size, len(hashes), nodes_of(hashes))
        return pb.ConsistencyReply(proof=proof, checkpoint=self.note())

    def Inclusion(self, request: pb.InclusionRequest, context: Context) -> pb.Receipt:
        return self.receipt(request.index)

    def Document(self, request: pb.DocumentRequest, context: Context) -> pb.DocumentReply:
        if self._knobs.withholds == "document":
            _refuse(context)
        if self._knobs.serves_anothers_document:
            return pb.DocumentReply(document=self._here.ledger.view.document(parse_entry(self.shown()[0]).document))
        return super().Document(request, context)


class EvilTransfer(TransferService):
    """A store that gives what it likes."""

    def __init__(self, coordinator: Coordinator, knobs: Knobs, log: EvilLog) -> None:
        super().__init__(coordinator, Slots(of_one=8, of_all=64))
        self._knobs, self._log = knobs, log

    def Download(self, request: pb.DownloadRequest, context: Context) -> Iterator[pb.DownloadPiece]:
        for piece in super().Download(request, context):
            if self._knobs.withholds == "file":
                _refuse(context)
            yield pb.DownloadPiece(data=bytes(len(piece.data)), size=piece.size) if self._knobs.serves_anothers_bytes else piece

    def Commit(self, request: pb.CommitRequest, context: Context) -> pb.Receipt:
        honest = super().Commit(request, context)
        if self._knobs.gives_anothers_receipt:
            return self._log.receipt(0)
        if self._knobs.gives_a_receipt_from_nowhere:
            return pb.Receipt(index=honest.index, entry=_later(honest.entry), tlog_proof=honest.tlog_proof)
        return honest


class EvilServer(CoordinatorServer):
    """Both ports, with the bent services in place of the real ones."""

    def __init__(self, coordinator: Coordinator, knobs: Knobs) -> None:
        self._knobs = knobs
        super().__init__(coordinator)

    def _register(self) -> None:
        super()._register()
        log = EvilLog(self._coordinator, self._knobs)
        # Of two services of one name, gRPC asks the one that was added last.
        stubs.add_LogServicer_to_server(log, self._main)
        stubs.add_TransferServicer_to_server(EvilTransfer(self._coordinator, self._knobs, log), self._main)


def _later(raw: bytes) -> bytes:
    """The same fact, a second later: another entry."""
    entry = parse_entry(raw)
    moment = parse_time(entry.time)
    return encode_entry(entry.model_copy(update={"time": format_time(moment.replace(second=(moment.second + 1) % 60))}))


def _refuse(context: Context) -> None:
    wire = wire_status(NotFoundError())
    context.set_trailing_metadata(wire.metadata)
    context.abort(wire.status, wire.text)
