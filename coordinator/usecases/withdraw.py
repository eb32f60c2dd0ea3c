"""Taking an expert out of every later assembly, on its owner's signed word alone."""

from __future__ import annotations

import hashlib

from common.errors import ElmgroveError, ForbiddenError, NotFoundError, SignatureError, SignerError, VersionError, WithdrawnError
from common.formats.fields import subject_expert, utc_now
from common.formats.statements import ExpertWithdrawn
from common.ledger.state import ConsortiumState, ExpertState, OwnerState
from common.trust.statements import VerifiedStatement, verify_statement
from coordinator.log.ledger import Submission
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.identity import check_signer

__all__ = ["withdraw_expert"]


def withdraw_expert(coordinator: Coordinator, owner: OwnerState, envelope: bytes) -> LogReceipt:
    """Log a withdrawal. Repeating the same envelope gives the same entry.

    1. The envelope holds an expert-withdrawn statement of this consortium, signed by the caller with a logged certificate.
    2. The expert is the caller's, was not withdrawn before, and the statement names its newest manifest.

    Raises:
        FormatError, SignatureError, CertificateError, SignerError: 1 does not hold.
        ForbiddenError, NotFoundError, VersionError, WithdrawnError: 2 does not hold.
        StorageError: the disk is full or not writable.
    """
    try:
        verified = verify_statement(envelope, coordinator.root, at=utc_now())  # (1)
        statement = _statement(coordinator, owner, verified)
        receipt = coordinator.ledger.submit(lambda state, _: _decide(state, owner, statement, envelope))  # (2)
    except ElmgroveError as error:
        coordinator.audit.refused("withdraw", error, owner=owner.name)
        raise
    coordinator.audit.record("withdrawn", owner=owner.name, expert=statement.expert, index=receipt.index)
    return receipt


def _decide(state: ConsortiumState, owner: OwnerState, statement: ExpertWithdrawn, envelope: bytes) -> Submission | int:
    logged = state.documents.get(hashlib.sha256(envelope).hexdigest())
    if logged is not None:
        return logged
    newest = _newest(state, owner, statement.expert)
    if newest.status == "withdrawn":
        raise WithdrawnError(f"Expert {newest.name} was withdrawn before.")
    if newest.digest != statement.manifest:
        raise VersionError(f"The statement does not name the newest manifest of expert {newest.name}.")
    return Submission("expert-withdrawn", subject_expert(newest.name, newest.version), envelope)


def _statement(coordinator: Coordinator, owner: OwnerState, verified: VerifiedStatement) -> ExpertWithdrawn:
    statement = verified.statement
    if not isinstance(statement, ExpertWithdrawn) or statement.consortium != coordinator.consortium:
        raise SignatureError("That is not a withdrawal in this consortium.")
    if verified.signer.uri != owner.uri or statement.owner != owner.uri:
        raise SignerError("A withdrawal must be signed by the owner who sends it.")
    check_signer(owner, verified.signer.der)
    return statement


def _newest(state: ConsortiumState, owner: OwnerState, name: str) -> ExpertState:
    versions = state.experts.get(name, ())
    if not versions:
        raise NotFoundError(f"There is no expert {name}.")
    if versions[0].owner != owner.uri:
        raise ForbiddenError(f"Expert {name} belongs to another owner.")
    return versions[-1]
