"""The one table from error class to gRPC status: what a failure looks like on the wire.

A class not in the table cannot be sent; ``tests/unit/rpc/test_rpc_errors.py`` compares the table with the exception tree. The peer gets the
class's stable code and public text, and for classes marked ``detail`` the message too, which for them is made of the peer's own request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc

from common import errors
from common.errors import ElmgroveError, InternalError, ProtocolError, UnavailableError

__all__ = ["CODE_KEY", "DETAIL_KEY", "WIRE_ERRORS", "WireError", "WireStatus", "error_from_rpc", "wire_status"]

CODE_KEY: Final = "elmgrove-code"
DETAIL_KEY: Final = "elmgrove-detail-bin"
MAX_DETAIL: Final = 1024  # characters; HTTP/2 metadata is limited to 8 KiB by default
_PATH = re.compile(r"(?:^|[\s'\"(=:])/[^\s/]")

_S = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class WireError:
    """How one class travels: its status, and whether its message may."""

    status: grpc.StatusCode
    detail: bool = False


@dataclass(frozen=True, slots=True)
class WireStatus:
    """A failed call as gRPC sends it."""

    status: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, str | bytes], ...]


WIRE_ERRORS: Final[Mapping[type[ElmgroveError], WireError]] = {
    errors.ElmgroveError: WireError(_S.UNKNOWN),
    errors.UsageError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.ConfigError: WireError(_S.FAILED_PRECONDITION),
    errors.DataError: WireError(_S.FAILED_PRECONDITION),
    errors.TextFieldError: WireError(_S.FAILED_PRECONDITION),
    errors.ArchitectureError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.PortInUseError: WireError(_S.FAILED_PRECONDITION),
    errors.StorageError: WireError(_S.RESOURCE_EXHAUSTED),
    errors.NotFoundError: WireError(_S.NOT_FOUND, detail=True),
    errors.AlreadyExistsError: WireError(_S.ALREADY_EXISTS, detail=True),
    errors.MissingExtraError: WireError(_S.FAILED_PRECONDITION),
    errors.FormatError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.SafetensorsError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.LimitError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.LayoutError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.InvitationFormatError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.IdentityError: WireError(_S.PERMISSION_DENIED),
    errors.InvitationRefusedError: WireError(_S.PERMISSION_DENIED),
    errors.RootFingerprintError: WireError(_S.PERMISSION_DENIED),
    errors.UnauthenticatedError: WireError(_S.UNAUTHENTICATED),
    errors.ForbiddenError: WireError(_S.PERMISSION_DENIED, detail=True),
    errors.KeyStoreError: WireError(_S.FAILED_PRECONDITION),
    errors.TransportError: WireError(_S.UNAVAILABLE),
    errors.UnavailableError: WireError(_S.UNAVAILABLE),
    errors.ProtocolError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.InternalError: WireError(_S.INTERNAL),
    errors.LostProcessError: WireError(_S.INTERNAL),
    errors.AdmissionError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.WrongAnchorError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.TemplateError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.NonFiniteError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.VersionError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.QuotaError: WireError(_S.RESOURCE_EXHAUSTED, detail=True),
    errors.IncompleteUploadError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.WithdrawnError: WireError(_S.FAILED_PRECONDITION, detail=True),
    errors.MaterialisationError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.VerificationError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.SignatureError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.CertificateError: WireError(_S.PERMISSION_DENIED, detail=True),
    errors.SignerError: WireError(_S.PERMISSION_DENIED, detail=True),
    errors.DigestError: WireError(_S.INVALID_ARGUMENT, detail=True),
    errors.LogError: WireError(_S.DATA_LOSS),
    errors.LogInconsistentError: WireError(_S.DATA_LOSS),
    errors.QuorumError: WireError(_S.FAILED_PRECONDITION),
    errors.NotLoggedError: WireError(_S.NOT_FOUND),
    errors.RevokedError: WireError(_S.PERMISSION_DENIED),
    errors.ModelMismatchError: WireError(_S.FAILED_PRECONDITION),
    errors.InterruptedByUserError: WireError(_S.UNAVAILABLE),
}

_BY_CODE: Final[Mapping[str, type[ElmgroveError]]] = {kind.code: kind for kind in WIRE_ERRORS}


def wire_status(error: ElmgroveError) -> WireStatus:
    """What a peer is told about ``error``: never a path, and its message only where that speaks of the peer's own request."""
    kind = type(error)
    wire = WIRE_ERRORS.get(kind, WIRE_ERRORS[InternalError])
    metadata: list[tuple[str, str | bytes]] = [(CODE_KEY, kind.code)]
    message = str(error)
    if wire.detail and message != kind.public and not _PATH.search(message):
        metadata.append((DETAIL_KEY, message[:MAX_DETAIL].encode("utf-8", "replace")))
    return WireStatus(wire.status, kind.public, tuple(metadata))


def error_from_rpc(error: grpc.RpcError) -> ElmgroveError:
    """The error a failed call stands for, with the coordinator's public text and detail as its message.

    A failure without our code was made by gRPC itself: the connection, a deadline or a message out of bounds.
    """
    metadata = _trailing(error)
    kind = _BY_CODE.get(_text(metadata.get(CODE_KEY, "")))
    if kind is None:
        return _without_code(error)
    detail = _text(metadata.get(DETAIL_KEY, ""))[:MAX_DETAIL]
    printable = "".join(char if char.isprintable() else " " for char in detail)
    return kind(f"The coordinator answered: {kind.public}{' ' + printable if printable else ''}")


def _trailing(error: grpc.RpcError) -> dict[str, str | bytes]:
    trailing = getattr(error, "trailing_metadata", None)
    pairs: Iterable[tuple[str, str | bytes]] = (trailing() if trailing is not None else None) or ()
    return dict(pairs)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _without_code(error: grpc.RpcError) -> ElmgroveError:
    code = getattr(error, "code", None)
    status = code() if code is not None else None
    if status == _S.DEADLINE_EXCEEDED:
        return UnavailableError("The coordinator did not answer in time.")
    if status in {_S.RESOURCE_EXHAUSTED, _S.INVALID_ARGUMENT, _S.OUT_OF_RANGE, _S.UNIMPLEMENTED}:
        return ProtocolError(f"The coordinator's gRPC layer refused the message ({status.name.lower().replace('_', ' ')}).")
    if status in {_S.UNKNOWN, _S.INTERNAL}:
        return InternalError()
    return UnavailableError("The coordinator cannot be reached, or the connection broke.")
