"""The operator's and the server's own keys in the course of time: renewed certificates, and new keys that the old operator key names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.formats.entries import EntryKind
from common.formats.fields import format_time, operator_uri, server_uri, utc_now
from common.formats.statements import CertificatesRenewed, KeyRecord, KeyRotated, NewKeys, request_digest
from common.formats.strictjson import b64encode
from common.trust.certificates import Purpose, issue_leaf, make_csr
from common.trust.keys import generate_signing_key
from common.trust.statements import sign_statement
from coordinator.log.ledger import LedgerSession
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.found import LEAF_DAYS, server_names
from coordinator.usecases.issue import key_text
from coordinator.usecases.staged_keys import HolderName, stage_keys, switch_staged

__all__ = ["OwnKeys", "ending_certificates", "renew_own_certificates", "rotate_own_keys"]

_PURPOSES: Final[dict[HolderName, Purpose]] = {"operator": "signing", "server": "server"}


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """When the new certificates end, by name, and the receipt of the entry that lists them."""

    expires: Mapping[HolderName, datetime]
    receipt: LogReceipt


def renew_own_certificates(coordinator: Coordinator) -> OwnKeys:
    """New certificates for the operator's and the server's present keys, logged.

    Raises:
        KeyStoreError: a key cannot be opened.
        StorageError: the disk is full or not writable.
    """
    return _change(coordinator, {})


def ending_certificates(coordinator: Coordinator, *, within: timedelta) -> Mapping[HolderName, datetime]:
    """Which of the operator's and the server's certificates end soon, and when.

    Raises:
        KeyStoreError: a certificate cannot be read.
    """
    names: tuple[HolderName, ...] = ("operator", "server")
    ends = {name: coordinator.keys.certificate(name).not_valid_after_utc for name in names}
    return {name: end for name, end in ends.items() if end - within <= utc_now()}


def rotate_own_keys(coordinator: Coordinator, names: Collection[HolderName]) -> OwnKeys:
    """New keys in the place of ``names``, named by the operator's present signing key, certified and logged.

    From the entry on the old operator key says nothing more. A server that is running keeps its old certificate until it is restarted.

    Raises:
        KeyStoreError: a key cannot be opened.
        StorageError: the disk is full or not writable.
    """
    return _change(coordinator, {name: generate_signing_key() for name in names})


def _change(coordinator: Coordinator, fresh: Mapping[HolderName, ec.EllipticCurvePrivateKey]) -> OwnKeys:
    """Make, stage, log, switch; a crash in between is finished when the home is opened next."""
    with coordinator.ledger.exclusive() as session:
        present: tuple[HolderName, ...] = ("operator", "server")
        keys = dict(fresh) or {name: coordinator.keys.signing(name).key for name in present}
        certificates = {name: _issue(coordinator, name, key, session.time) for name, key in keys.items()}
        stage_keys(coordinator.home, fresh, certificates, coordinator.keys.passphrase)
        receipt = _log(coordinator, session, keys, certificates, rotated=bool(fresh))
        switch_staged(coordinator.home, coordinator.ledger.state())
    coordinator.audit.record("keys-rotated" if fresh else "certificates-renewed", names=", ".join(keys), index=receipt.index)
    return OwnKeys({name: certificate.not_valid_after_utc for name, certificate in certificates.items()}, receipt)


def _uri(coordinator: Coordinator, name: HolderName) -> str:
    return operator_uri(coordinator.consortium) if name == "operator" else server_uri(coordinator.consortium)


def _issue(coordinator: Coordinator, name: HolderName, key: ec.EllipticCurvePrivateKey, at: datetime) -> x509.Certificate:
    authority = coordinator.keys.signing("root")
    hosts = server_names(coordinator.config.host) if name == "server" else ()
    return issue_leaf(coordinator.root, authority.key, key.public_key(), _PURPOSES[name], _uri(coordinator, name), at, LEAF_DAYS, hosts)


def _log(
    coordinator: Coordinator,
    session: LedgerSession,
    keys: Mapping[HolderName, ec.EllipticCurvePrivateKey],
    certificates: Mapping[HolderName, x509.Certificate],
    *,
    rotated: bool,
) -> LogReceipt:
    operator = coordinator.keys.signing("operator")  # the present one: the new one is only staged
    authorisation = _authorise(coordinator, session, keys) if rotated else b""
    csrs = {name: make_csr(key, _uri(coordinator, name)) for name, key in keys.items()}
    request = request_digest(signing_csr=csrs.get("operator", b""), transport_csr=csrs.get("server", b""), authorisation=authorisation)
    kind: EntryKind = "key-rotated" if rotated else "certificates-renewed"
    fields = {
        "schema": f"elmgrove.{kind}/v1",
        "consortium": coordinator.consortium,
        "created": format_time(session.time),
        "holder": operator_uri(coordinator.consortium),
        "certificates": tuple(
            {"purpose": _PURPOSES[name], "uri": _uri(coordinator, name), "der": b64encode(certificate.public_bytes(Encoding.DER))}
            for name, certificate in certificates.items()
        ),
        "request": request,
    }
    statement = (
        KeyRotated.model_validate(fields | {"authorisation": b64encode(authorisation)})
        if rotated
        else CertificatesRenewed.model_validate(fields)
    )
    envelope = sign_statement(statement, operator.key, operator.certificate)
    return session.append(kind, f"consortium/{coordinator.consortium}", envelope, ())


def _authorise(coordinator: Coordinator, session: LedgerSession, keys: Mapping[HolderName, ec.EllipticCurvePrivateKey]) -> bytes:
    operator = coordinator.keys.signing("operator")
    statement = NewKeys(
        schema="elmgrove.new-keys/v1",
        consortium=coordinator.consortium,
        created=format_time(session.time),
        holder=operator_uri(coordinator.consortium),
        keys=tuple(KeyRecord(purpose=_PURPOSES[name], key=key_text(key.public_key())) for name, key in keys.items()),
    )
    return sign_statement(statement, operator.key, operator.certificate)
