"""From what use cases return to the messages of ``elmgrove.proto``."""

from __future__ import annotations

from cryptography import x509

from common.formats.manifest import Manifest
from common.rpc.v1 import elmgrove_pb2 as pb
from coordinator.config import CoordinatorConfig
from coordinator.log.view import LogReceipt
from coordinator.usecases.enrol import Admission
from coordinator.usecases.renew import Renewal
from coordinator.usecases.status import OwnerStatus, standing
from coordinator.usecases.uploads import OfferResult

__all__ = ["encode_admission", "encode_offer", "encode_receipt", "encode_renewal", "encode_status"]


def encode_receipt(receipt: LogReceipt) -> pb.Receipt:
    """``Receipt``."""
    return pb.Receipt(index=receipt.index, entry=receipt.entry, tlog_proof=receipt.proof)


def encode_admission(admission: Admission, *, consortium: str, root_der: bytes, log_key: str) -> pb.JoinReply:
    """``JoinReply``."""
    return pb.JoinReply(
        consortium=consortium,
        owner_uri=admission.owner_uri,
        signing_certificate_der=admission.signing_der,
        transport_certificate_der=admission.transport_der,
        root_der=root_der,
        log_key=log_key,
        receipt=encode_receipt(admission.receipt),
    )


def encode_renewal(renewal: Renewal) -> pb.RenewReply:
    """``RenewReply``."""
    return pb.RenewReply(
        signing_certificate_der=renewal.certificates.get("signing", b""),
        transport_certificate_der=renewal.certificates.get("transport", b""),
        receipt=encode_receipt(renewal.receipt),
    )


def encode_offer(result: OfferResult) -> pb.OfferReply:
    """``OfferReply``."""
    return pb.OfferReply(
        upload_id=result.upload_id,
        missing=[pb.ChunkRef(file=file, chunk=chunk) for file, chunk in result.missing],
        already_accepted=result.receipt is not None,
        receipt=encode_receipt(result.receipt) if result.receipt is not None else None,
    )


def encode_status(status: OwnerStatus, config: CoordinatorConfig) -> pb.StatusReply:
    """``StatusReply``."""
    return pb.StatusReply(
        consortium=config.consortium,
        owner_uri=status.owner.uri,
        now=int(status.now.timestamp()),
        anchors=_anchors(status),
        experts=_experts(status),
        certificates=_certificates(status),
        uploads=_uploads(status),
        models=[
            pb.ModelUse(manifest=use.manifest, index=use.index, assembled_at=int(use.time.timestamp()), experts=use.experts)
            for use in status.models
        ],
        checkpoint=status.checkpoint,
        quota=pb.Quota(
            bytes_limit=config.quota.bytes_per_owner,
            bytes_used=status.bytes_used,
            open_uploads_limit=config.quota.open_uploads,
        ),
    )


def _anchors(status: OwnerStatus) -> list[pb.Anchor]:
    return [
        pb.Anchor(
            digest=anchor.digest,
            name=anchor.name,
            document=anchor.document,
            index=anchor.index,
            published_at=int(anchor.published_at.timestamp()),
            size=_size(anchor.manifest),
        )
        for anchor in status.anchors
    ]


def _experts(status: OwnerStatus) -> list[pb.Expert]:
    return [
        pb.Expert(
            name=expert.name,
            version=expert.version,
            manifest=expert.digest,
            document=expert.document,
            anchor=expert.manifest.anchor,
            status=standing(expert, status.now),
            index=expert.index,
            accepted_at=int(expert.accepted_at.timestamp()),
            size=_size(expert.manifest),
        )
        for expert in status.experts
    ]


def _certificates(status: OwnerStatus) -> list[pb.Certificate]:
    return [
        pb.Certificate(
            purpose=record.purpose,
            der=der,
            not_after=int(x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()),
        )
        for record, der in status.certificates
    ]


def _uploads(status: OwnerStatus) -> list[pb.OpenUpload]:
    return [
        pb.OpenUpload(
            upload_id=record.id,
            name=record.expert,
            version=record.version,
            manifest=record.manifest,
            size=record.size,
            received=received,
        )
        for record, received in status.uploads
    ]


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files)
