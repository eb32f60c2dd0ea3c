"""Renewing our certificates, and replacing our keys: the old signing key names the new ones, the log lists what is issued.

1. What will be asked is on the disk, new keys included; an unfinished renewal is asked for again, the same bytes.
2. The certificates are of our root, for our name, purposes and keys. 3. The log has the entry, under the pinned key; its statement
lists exactly these certificates and names our request. 4. The receipt is kept, and then keys and certificates are switched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import AdmissionError, ForbiddenError, FormatError, LogError, SignerError
from common.formats.entries import EntryKind, parse_entry
from common.formats.fields import format_time, parse_time, utc_now
from common.formats.statements import CertificatesRenewed, KeyRecord, KeyRotated
from common.formats.statements import NewKeys as NewKeysStatement
from common.formats.strictjson import b64encode
from common.rpc.channels import ClientIdentity
from common.rpc.v1 import elmgrove_pb2 as pb
from common.trust.certificates import make_csr
from common.trust.keys import generate_signing_key, private_key_pem
from common.trust.statements import sign_statement
from owner_client.daemon.client import Coordinator
from owner_client.daemon.enrol import operator_says, own_certificate
from owner_client.daemon.locks import exclusive
from owner_client.daemon.patience import Patience
from owner_client.daemon.pending import (
    PendingRenewal,
    discard_renewal,
    finish_renewal,
    load_renewal,
    renewal_lock,
    settle_renewal,
    stage_renewal,
)
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, store_receipt
from owner_client.daemon.session import TRANSPORT_CERTIFICATE, Session
from owner_client.keys.keystore import KeyName, KeyStore

__all__ = ["Renewal", "renew_certificates"]

_REFUSALS = (AdmissionError, ForbiddenError, FormatError, SignerError)


@dataclass(frozen=True, slots=True)
class Renewal:
    """A finished renewal: when the new certificates end, which keys are new, and the receipt."""

    expires: Mapping[KeyName, datetime]
    new_keys: tuple[KeyName, ...]
    receipt: CheckedReceipt
    resumed: bool
    """Whether it was an earlier renewal, cut off then, that was finished now."""


def renew_certificates(session: Session, passphrase: bytes | None, new_keys: Collection[KeyName], patience: Patience) -> Renewal:
    """Get certificates for our keys, or for new keys in the place of ``new_keys``, and switch to them.

    Raises:
        UsageError: another renewal is running from this home.
        KeyStoreError, CertificateError: our keys cannot be opened, or a certificate does not hold.
        UnavailableError: the coordinator stayed away too long; run the command again.
        ForbiddenError, QuotaError, SignerError: the coordinator refuses; nothing changed here.
        VerificationError: the answer does not hold; the request is kept.
    """
    home = session.home
    with exclusive(renewal_lock(home), busy="Another renewal is running from this home."):
        earlier = load_renewal(home)
        pending = earlier or _stage(session, passphrase, new_keys)  # (1)
        answer = _ask(session, pending, passphrase, patience)
        keys = {name: pending.key(name, home, passphrase) for name in pending.purposes}
        certificates = _certificates(session, answer, keys)  # (2)
        with _connect(session, pending, certificates, passphrase) as coordinator:
            receipt = patience.persist(lambda: _check(session, coordinator, pending, certificates, answer.receipt))  # (3)
        store_receipt(home.renewal_receipt(receipt.index), receipt)  # (4)
        settle_renewal(pending, certificates)
        finish_renewal(home, locked=True)
    ends = {name: certificate.not_valid_after_utc for name, certificate in certificates.items()}
    return Renewal(ends, pending.purposes if pending.authorisation else (), receipt, earlier is not None)


def _stage(session: Session, passphrase: bytes | None, new_keys: Collection[KeyName]) -> PendingRenewal:
    fresh = {name: generate_signing_key() for name in new_keys}
    store, uri = KeyStore(session.home.keys), session.config.uri
    present: tuple[KeyName, ...] = ("signing", "transport")
    keys = fresh or {name: store.open(name, passphrase) for name in present}
    csrs = {name: make_csr(key, uri) for name, key in keys.items()}
    authorisation = _authorise(session, fresh, passphrase) if fresh else b""
    return stage_renewal(session.home, csrs, fresh, authorisation, passphrase)


def _authorise(session: Session, fresh: Mapping[KeyName, ec.EllipticCurvePrivateKey], passphrase: bytes | None) -> bytes:
    key, certificate = session.signer(passphrase)
    statement = NewKeysStatement(
        schema="elmgrove.new-keys/v1",
        consortium=session.config.consortium,
        created=format_time(utc_now()),
        holder=session.config.uri,
        keys=tuple(KeyRecord(purpose=name, key=_spki(new)) for name, new in fresh.items()),
    )
    return sign_statement(statement, key, certificate)


def _spki(key: ec.EllipticCurvePrivateKey) -> str:
    return b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _ask(session: Session, pending: PendingRenewal, passphrase: bytes | None, patience: Patience) -> pb.RenewReply:
    try:
        with session.connect(passphrase) as coordinator:
            return patience.persist(
                lambda: coordinator.renew(
                    signing_csr=pending.signing_csr, transport_csr=pending.transport_csr, authorisation=pending.authorisation
                )
            )
    except _REFUSALS:
        discard_renewal(session.home)
        raise


def _certificates(
    session: Session, answer: pb.RenewReply, keys: Mapping[KeyName, ec.EllipticCurvePrivateKey]
) -> dict[KeyName, x509.Certificate]:
    answered = {"signing": answer.signing_certificate_der, "transport": answer.transport_certificate_der}
    return {name: own_certificate(answered[name], session.root, name, session.config.uri, key) for name, key in keys.items()}


def _connect(
    session: Session, pending: PendingRenewal, certificates: Mapping[KeyName, x509.Certificate], passphrase: bytes | None
) -> Coordinator:
    """A connection under the transport certificate that is in force now."""
    certificate = certificates.get("transport") or session.certificate(TRANSPORT_CERTIFICATE)
    key = pending.key("transport", session.home, passphrase)
    identity = ClientIdentity(private_key_pem(key, None), certificate.public_bytes(Encoding.PEM))
    return Coordinator(session.config.coordinator, session.root, identity)


def _check(
    session: Session,
    coordinator: Coordinator,
    pending: PendingRenewal,
    certificates: Mapping[KeyName, x509.Certificate],
    answer: pb.Receipt,
) -> CheckedReceipt:
    """Step 3: the receipt, and the logged statement."""
    config = session.config
    entry = parse_entry(answer.entry)
    document = coordinator.document(entry.document)
    kind: EntryKind = "key-rotated" if pending.authorisation else "certificates-renewed"
    receipt = check_receipt(answer.entry, answer.tlog_proof, Claim(kind, f"owner/{config.owner}", document), config.pinned.log_key)
    said = operator_says(document, session.root, config, parse_time(entry.time))
    if not isinstance(said, CertificatesRenewed | KeyRotated) or (said.holder, said.request) != (config.uri, pending.request):
        raise LogError("The logged renewal is not the one we asked for.")
    if isinstance(said, KeyRotated) and said.authorisation != b64encode(pending.authorisation):
        raise LogError("The logged rotation of keys carries another authorisation than ours.")
    ours = {(name, b64encode(certificate.public_bytes(Encoding.DER))) for name, certificate in certificates.items()}
    if {(record.purpose, record.der) for record in said.certificates} != ours:
        raise LogError("The log lists other certificates in our name than the ones we were given. Ask the operator.")
    session.follow_log(coordinator, receipt)
    return receipt
