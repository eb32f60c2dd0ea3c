"""Owners' clients as witnesses of the log: whose key is whose, and cosignatures under the checkpoint (C2SP tlog-cosignature)."""

from __future__ import annotations

from common.errors import ElmgroveError, LimitError, NotLoggedError, SignatureError, SignerError
from common.formats.fields import utc_now
from common.formats.statements import WitnessRegistered
from common.ledger.state import ConsortiumState, OwnerState
from common.trust.statements import verify_statement
from coordinator.log.ledger import Submission
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.identity import check_signer

__all__ = ["publish_cosignature", "register_witness"]

_MAX_LINE = 512  # characters; with the longest names a line has about 240


def register_witness(coordinator: Coordinator, owner: OwnerState, envelope: bytes) -> LogReceipt:
    """Log the key with which an owner's client cosigns. Repeating an envelope gives the same entry.

    1. The envelope holds a witness-registered statement of this consortium, signed by the caller with a logged certificate.
    2. The rules of the log let it in: the key is of the right kind and name, and nobody else's.

    Raises:
        FormatError, SignatureError, CertificateError, SignerError: 1 does not hold.
        LogError: 2 does not hold.
        StorageError: the disk is full or not writable.
    """
    try:
        verified = verify_statement(envelope, coordinator.root, at=utc_now())  # (1)
        statement = verified.statement
        if not isinstance(statement, WitnessRegistered) or statement.consortium != coordinator.consortium:
            raise SignatureError("That is not a registration of a witness in this consortium.")
        if verified.signer.uri != owner.uri or statement.owner != owner.uri:
            raise SignerError("A witness must be registered by the owner who sends it.")
        check_signer(owner, verified.signer.der)

        def decide(state: ConsortiumState, _: object) -> Submission | int:
            logged = state.documents.get(verified.digest)
            return logged if logged is not None else Submission("witness-registered", f"owner/{owner.name}", envelope)

        receipt = coordinator.ledger.submit(decide)  # (2)
    except ElmgroveError as error:
        coordinator.audit.refused("register-witness", error, owner=owner.name)
        raise
    coordinator.audit.record("witness-registered", owner=owner.name, index=receipt.index)
    return receipt


def publish_cosignature(coordinator: Coordinator, owner: OwnerState, size: int, line: str) -> bool:
    """Put an owner's cosignature under the published checkpoint, if it still is the one of this size.

    Returns:
        Whether it is published.

    Raises:
        NotLoggedError: the owner has registered no key.
        LimitError, FormatError, SignatureError: the line is not a signature of that key over this checkpoint.
        StorageError: the disk is full or not writable.
    """
    try:
        if owner.witness_key is None:
            raise NotLoggedError("This owner's client has registered no key to cosign with.")
        if len(line) > _MAX_LINE:
            raise LimitError("A cosignature is longer than any real one.")
        return coordinator.ledger.cosign(size, line, owner.witness_key)
    except ElmgroveError as error:
        coordinator.audit.refused("cosign", error, owner=owner.name)
        raise
