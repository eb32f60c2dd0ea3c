"""Joining a consortium: keys made here, certificates for them from a coordinator proved by the invitation.

1. The invitation is whole, not expired, and this home is free. 2. The root at the invitation's address is the one it names; only
then is the token sent. 3. The answer holds: both certificates are of that root, for our keys, name and purposes. 4. The admission is
in the log under the log's key, the log's key is the one the operator founded the consortium with, and the logged statement names
our certificates and no others. 5. Everything is moved into the home, ``owner.toml`` last; a refusal at any step leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import (
    AlreadyExistsError,
    CertificateError,
    InvitationRefusedError,
    LogError,
    ProtocolError,
    RootFingerprintError,
    SignerError,
    StorageError,
    UnavailableError,
)
from common.files import fsync_folder, fsync_tree, storage_errors, write_atomic
from common.formats.entries import parse_entry
from common.formats.fields import operator_uri, owner_uri, parse_time, utc_now
from common.formats.invitation import Invitation
from common.formats.statements import ConsortiumFounded, OwnerAdmitted, Statement
from common.formats.strictjson import b64encode
from common.rpc.channels import ClientIdentity, EnrolmentConnection, fetch_root
from common.rpc.v1 import elmgrove_pb2 as pb
from common.translog.proof import parse_receipt
from common.trust.certificates import TrustRoot, make_csr, verify_leaf
from common.trust.keys import private_key_pem
from common.trust.statements import verify_statement
from owner_client.config import CoordinatorAddress, Home, OwnerConfig, Pinned, encode_config
from owner_client.daemon.client import Coordinator
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, store_receipt
from owner_client.daemon.session import SIGNING_CERTIFICATE, TRANSPORT_CERTIFICATE
from owner_client.daemon.sync import remember_first
from owner_client.keys.keystore import KeyStore, NewKeys, generate_keys

__all__ = ["Enrolment", "join_consortium", "operator_says", "own_certificate"]

_JOIN_SECONDS: Final = 60.0
_KEYS: Final = "keys"
_ASIDE: Final = ".joining"
_CONTENT: Final = (_KEYS, "certs", "root.pem", "receipts", "log", "anchors", "outbox", "runs")


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A finished enrolment: our settings, when the certificates end, and the receipt of the admission."""

    config: OwnerConfig
    signing_expires: datetime
    transport_expires: datetime
    receipt: CheckedReceipt


@dataclass(frozen=True, slots=True)
class _Certificates:
    signing: x509.Certificate
    transport: x509.Certificate


def join_consortium(home: Home, invitation: Invitation, passphrase: bytes | None) -> Enrolment:
    """Enrol with an invitation and set up ``home``.

    Raises:
        AlreadyExistsError: the home is taken.
        InvitationRefusedError: expired, used or unknown.
        RootFingerprintError: the machine there is not the invitation's coordinator; the token was not sent.
        UnavailableError: nothing answers there.
        VerificationError: the answer does not hold.
        StorageError: the home is not writable.
    """
    now = utc_now()
    # (1) the invitation and the home
    if parse_time(invitation.expires) <= now:
        raise InvitationRefusedError(f"The invitation expired at {invitation.expires}. Ask the operator for a new one.")
    _check_free(home)
    # (2) the root, then the token
    root = fetch_root(invitation, at=now)
    with _staged(home) as aside:
        keys = _staged_keys(aside, passphrase)
        reply = _ask_to_join(invitation, root, keys)
        # (3) the answer
        config = _config(invitation, reply, root)
        certificates = _Certificates(
            signing=own_certificate(reply.signing_certificate_der, root, "signing", config.uri, keys.signing),
            transport=own_certificate(reply.transport_certificate_der, root, "transport", config.uri, keys.transport),
        )
        # (4) the log
        receipt, founding = _check_admission(config, root, keys, certificates, reply.receipt)
        # (5) the home
        _fill(aside, home, config, root, certificates, receipt)
        store_receipt(Home(aside).founding_receipt, founding)
    return Enrolment(config, certificates.signing.not_valid_after_utc, certificates.transport.not_valid_after_utc, receipt)


def _check_free(home: Home) -> None:
    """Find out before the token is spent whether the home can be written and holds nothing of another purpose.

    Raises:
        AlreadyExistsError: an owner lives here, or files that an owner's home would overwrite.
        StorageError: it cannot be written.
    """
    home.require_new()
    taken = [name for name in _CONTENT if (home.path / name).exists()]
    if taken and not (home.path / _ASIDE).is_dir():
        raise AlreadyExistsError(f"{home.path} holds {taken[0]!r} of something else. Name an empty or new folder with --home.")
    parent = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    if not parent.is_dir():
        raise StorageError(f"{parent} is not a folder, so {home.path} cannot be one.")
    with storage_errors(str(home.path)), tempfile.TemporaryFile(dir=parent):
        pass


def _ask_to_join(invitation: Invitation, root: TrustRoot, keys: NewKeys) -> pb.JoinReply:
    uri = owner_uri(invitation.consortium, invitation.owner)
    request = pb.JoinRequest(
        token=invitation.token, signing_csr_der=make_csr(keys.signing, uri), transport_csr_der=make_csr(keys.transport, uri)
    )
    root_pem = root.certificate.public_bytes(Encoding.PEM)
    with EnrolmentConnection(invitation.host, invitation.enrol_port, root_pem=root_pem) as connection:
        reply: pb.JoinReply = connection.call(connection.enrolment.Join, request, timeout=_JOIN_SECONDS, patience=_JOIN_SECONDS)
    return reply


def _config(invitation: Invitation, reply: pb.JoinReply, root: TrustRoot) -> OwnerConfig:
    if reply.root_der != root.der:
        raise RootFingerprintError("The coordinator answered with another root certificate than it showed first.")
    if reply.consortium != invitation.consortium or reply.owner_uri != owner_uri(invitation.consortium, invitation.owner):
        raise ProtocolError("The coordinator enrolled another owner than the invitation names.")
    try:
        pinned = Pinned(root_sha256=root.fingerprint, log_key=reply.log_key)
    except ValueError as error:
        raise ProtocolError("The coordinator sent no usable log key.") from error
    return OwnerConfig(
        consortium=invitation.consortium,
        owner=invitation.owner,
        coordinator=CoordinatorAddress(host=invitation.host, port=invitation.port),
        pinned=pinned,
    )


def own_certificate(
    der: bytes, root: TrustRoot, purpose: Literal["signing", "transport"], uri: str, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """A certificate we were given, if it is what it must be.

    Raises:
        CertificateError: not of this root, or not for our name, purpose and key.
    """
    leaf = verify_leaf(der, root, purpose=purpose, at=utc_now())
    if leaf.uri != uri or leaf.public_key != key.public_key():
        raise CertificateError(f"The {purpose} certificate is not for our name and key.")
    return leaf.certificate


def _check_admission(
    config: OwnerConfig, root: TrustRoot, keys: NewKeys, certificates: _Certificates, answer: pb.Receipt
) -> tuple[CheckedReceipt, CheckedReceipt]:
    """Step 4: the receipt, the founding entry and the logged statement of our admission. Returns the receipts of admission and founding."""
    identity = ClientIdentity(private_key_pem(keys.transport, None), certificates.transport.public_bytes(Encoding.PEM))
    entry = parse_entry(answer.entry)
    with Coordinator(config.coordinator, root, identity) as coordinator:
        document = coordinator.document(entry.document)
        founding = _check_founding(config, root, coordinator)
    receipt = check_receipt(
        answer.entry, answer.tlog_proof, Claim("owner-admitted", f"owner/{config.owner}", document), config.pinned.log_key
    )
    admitted = operator_says(document, root, config, parse_time(entry.time))
    ours = {("signing", _b64(certificates.signing)), ("transport", _b64(certificates.transport))}
    if not isinstance(admitted, OwnerAdmitted) or admitted.owner != config.uri:
        raise LogError("The logged admission is not ours.")
    if {(record.purpose, record.der) for record in admitted.certificates} != ours or {r.uri for r in admitted.certificates} != {config.uri}:
        raise LogError(
            "The log lists other certificates in our name than the ones we were given. Do not use this consortium; ask its operator."
        )
    return receipt, founding


def _check_founding(config: OwnerConfig, root: TrustRoot, coordinator: Coordinator) -> CheckedReceipt:
    answer = coordinator.inclusion(0)
    entry = parse_entry(answer.entry)
    document = coordinator.document(entry.document)
    claim = Claim("consortium-founded", f"consortium/{config.consortium}", document)
    receipt = check_receipt(answer.entry, answer.tlog_proof, claim, config.pinned.log_key)
    founded = operator_says(document, root, config, parse_time(entry.time))
    if receipt.index != 0:
        raise LogError("The founding of the consortium is not the log's first entry.")
    if not isinstance(founded, ConsortiumFounded) or founded.log_key != config.pinned.log_key or founded.root != b64encode(root.der):
        raise LogError("The consortium was founded with another root or log key than we were given.")
    return receipt


def operator_says(document: bytes, root: TrustRoot, config: OwnerConfig, at: datetime) -> Statement:
    """The statement of an envelope that the operator signed.

    Raises:
        FormatError, SignatureError, CertificateError: the envelope does not hold.
        SignerError: someone else signed it.
    """
    verified = verify_statement(document, root, at=at)
    if verified.signer.uri != operator_uri(config.consortium):
        raise SignerError("A statement that only the operator may make is signed by someone else.")
    return verified.statement


def _b64(certificate: x509.Certificate) -> str:
    return b64encode(certificate.public_bytes(Encoding.DER))


def _staged_keys(aside: Path, passphrase: bytes | None) -> NewKeys:
    """Fresh keys, on disk before the token is sent; or those of an earlier try, whose answer may have been lost.

    The coordinator gives the same certificates again for the same token and keys, so a lost answer costs nothing.
    """
    store = KeyStore(aside / _KEYS)
    if store.folder.is_dir():
        return NewKeys(signing=store.open_signing(passphrase), transport=store.open_transport(passphrase))
    keys = generate_keys()
    store.create(keys, passphrase)
    return keys


def _fill(aside: Path, home: Home, config: OwnerConfig, root: TrustRoot, certificates: _Certificates, receipt: CheckedReceipt) -> None:
    (aside / home.certificates.name).mkdir()
    write_atomic(aside / home.certificates.name / SIGNING_CERTIFICATE, certificates.signing.public_bytes(Encoding.PEM))
    write_atomic(aside / home.certificates.name / TRANSPORT_CERTIFICATE, certificates.transport.public_bytes(Encoding.PEM))
    write_atomic(aside / home.root.name, root.certificate.public_bytes(Encoding.PEM))
    store_receipt(Home(aside).admission_receipt, receipt)
    remember_first(aside, parse_receipt(receipt.proof).checkpoint)
    for folder in (home.anchors, home.outbox, home.runs):
        (aside / folder.name).mkdir()
    write_atomic(aside / home.config.name, encode_config(config))


@contextlib.contextmanager
def _staged(home: Home) -> Iterator[Path]:
    """A folder inside the home whose content moves up when the block ends well, ``owner.toml`` last.

    A refusal removes it, and the home if it was made here. When the answer may have been lost, the keys in it stay for the next try.
    """
    aside = home.path / _ASIDE
    made = [folder for folder in (home.path, *home.path.parents) if not folder.exists()]
    with storage_errors(str(home.path)):
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside.mkdir(mode=0o700, exist_ok=True)
        _undo_killed_move(aside, home)
        _clear(aside, keep_keys=True)
        try:
            yield aside
            _move_up(aside, home)
        except (UnavailableError, KeyboardInterrupt):
            _clear(aside, keep_keys=True)
            raise
        except BaseException:
            _clear(aside, keep_keys=False)
            with contextlib.suppress(OSError):
                for folder in (aside, *made):
                    folder.rmdir()
            raise


def _undo_killed_move(aside: Path, home: Home) -> None:
    """Take back what a process that was killed while moving had moved already; ``_check_free`` made sure that nothing else is there."""
    for name in _CONTENT:
        if (home.path / name).exists():
            (home.path / name).rename(aside / name)


def _clear(aside: Path, *, keep_keys: bool) -> None:
    for path in aside.iterdir():
        if path.name == _KEYS and keep_keys:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _move_up(aside: Path, home: Home) -> None:
    fsync_tree(aside)
    moved: list[Path] = []
    try:
        for path in sorted(aside.iterdir(), key=lambda path: path.name == home.config.name):
            path.rename(home.path / path.name)
            moved.append(path)
    except BaseException:
        for path in moved:
            (home.path / path.name).rename(path)
        raise
    aside.rmdir()
    fsync_folder(home.path)
