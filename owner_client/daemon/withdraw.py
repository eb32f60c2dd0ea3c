"""Withdrawing an expert: a statement signed here, by the owner alone, answered by the log's receipt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import NotFoundError, WithdrawnError
from common.files import storage_errors, write_atomic
from common.formats.fields import format_time, subject_expert, utc_now
from common.formats.statements import ExpertWithdrawn
from common.rpc.v1 import elmgrove_pb2 as pb
from common.trust.statements import sign_statement, verify_statement
from owner_client.daemon.client import Coordinator
from owner_client.daemon.patience import Patience
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, store_receipt
from owner_client.daemon.session import Session

__all__ = ["WithdrawalPlan", "plan_withdrawal", "withdraw_expert"]


@dataclass(frozen=True, slots=True)
class WithdrawalPlan:
    """What a withdrawal will name: the newest logged version of the expert, and the models that hold any version of it."""

    expert: str
    version: int
    manifest: str
    models: tuple[str, ...]


def plan_withdrawal(session: Session, coordinator: Coordinator, expert: str, patience: Patience) -> WithdrawalPlan:
    """Look up what withdrawing ``expert`` means; changes nothing.

    Raises:
        NotFoundError: we have no accepted expert of that name.
        WithdrawnError: it was withdrawn before.
    """
    status = patience.persist(coordinator.status)
    versions = [version for version in status.experts if version.name == expert]
    if not versions:
        raise NotFoundError(f"You have no accepted expert {expert!r}. {_known(status)}")
    current = max(versions, key=lambda version: version.version)
    if current.status == "withdrawn" and not _pending(session, expert).is_file():
        raise WithdrawnError(f"Expert {expert!r} was withdrawn before.")
    models = tuple(use.manifest for use in status.models if any(name.split("@")[0] == expert for name in use.experts))
    return WithdrawalPlan(expert, current.version, current.manifest, models)


def _known(status: pb.StatusReply) -> str:
    names = sorted({version.name for version in status.experts})
    return f"There is {', '.join(names)}." if names else "None of your experts was accepted yet."


def withdraw_expert(
    session: Session, coordinator: Coordinator, plan: WithdrawalPlan, reason: str, passphrase: bytes | None, patience: Patience
) -> CheckedReceipt:
    """Sign the withdrawal, send it, and keep the receipt.

    Raises:
        KeyStoreError, CertificateError: the statement cannot be signed.
        UnavailableError: the coordinator stayed away too long; run the command again.
        VerificationError: the receipt does not hold.
    """
    envelope = _envelope(session, plan, reason, passphrase)
    answer = patience.persist(lambda: coordinator.withdraw(envelope))
    claim = Claim("expert-withdrawn", subject_expert(plan.expert, plan.version), envelope)
    receipt = check_receipt(answer.entry, answer.tlog_proof, claim, session.config.pinned.log_key)
    patience.persist(lambda: session.follow_log(coordinator, receipt))
    store_receipt(session.home.withdrawal_receipt(plan.expert), receipt)
    _pending(session, plan.expert).unlink(missing_ok=True)
    return receipt


def _pending(session: Session, expert: str) -> Path:
    """Where the signed statement waits until its receipt is kept, so that a withdrawal cut off in between is finished with the same one."""
    folder = session.home.withdrawal_receipt(expert).parent
    return folder / f".{expert}.pending"


def _envelope(session: Session, plan: WithdrawalPlan, reason: str, passphrase: bytes | None) -> bytes:
    pending = _pending(session, plan.expert)
    if pending.is_file():
        kept = pending.read_bytes()
        statement = verify_statement(kept, session.root, at=utc_now()).statement
        if isinstance(statement, ExpertWithdrawn) and (statement.expert, statement.manifest) == (plan.expert, plan.manifest):
            return kept
    envelope = _sign(session, plan, reason, passphrase)
    with storage_errors("the withdrawal"):
        pending.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(pending, envelope)
    return envelope


def _sign(session: Session, plan: WithdrawalPlan, reason: str, passphrase: bytes | None) -> bytes:
    key, certificate = session.signer(passphrase)
    statement = ExpertWithdrawn(
        schema="elmgrove.expert-withdrawn/v1",
        consortium=session.config.consortium,
        created=format_time(utc_now()),
        owner=session.config.uri,
        expert=plan.expert,
        manifest=plan.manifest,
        reason=reason,
    )
    return sign_statement(statement, key, certificate)
