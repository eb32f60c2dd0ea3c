"""Founding a consortium: keys, certificates, an empty store, and the first entry of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import UsageError
from common.files import atomic_folder, write_atomic
from common.formats.fields import check_name, format_time, operator_uri, server_uri, utc_now
from common.formats.statements import ConsortiumFounded
from common.formats.strictjson import b64encode
from common.translog.checkpoint import log_origin
from common.translog.note import encode_vkey
from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_log_key, generate_signing_key, private_key_pem
from common.trust.statements import sign_statement
from coordinator.config import CoordinatorConfig, Home, parse_config, save_config
from coordinator.log.ledger import WritableLedger
from coordinator.log.view import LogReceipt
from coordinator.log.writer import LogWriter
from coordinator.store.audit import AuditTrail
from coordinator.store.database import Database
from coordinator.usecases.context import log_key_path

__all__ = ["LEAF_DAYS", "found_consortium", "server_names"]

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
LEAF_DAYS: Final = 730  # the operator's and the server's own certificates


def found_consortium(folder: Path, *, name: str, host: str, port: int, enrol_port: int, passphrase: bytes | None) -> LogReceipt:
    """Make the home of a new consortium; it appears whole or not at all.

    Args:
        folder: the home to be made; must not exist.
        name: the consortium's.
        host: name or address under which owners will reach this machine.
        port: TCP port for owners' calls.
        enrol_port: TCP port for enrolment.
        passphrase: encrypts the private keys; None leaves them readable by this user alone.

    Raises:
        AlreadyExistsError: the folder exists.
        FormatError: the name is not one.
        UsageError: a port or the host makes no sense.
        StorageError: the disk is full or not writable.
    """
    check_name(name, "consortium")
    config = _config(name, host, port, enrol_port)
    with atomic_folder(folder) as aside:
        home = Home(aside)
        for path in (home.keys, home.certificates, home.blobs, home.uploads, home.log, home.log / "documents"):
            path.mkdir(mode=0o755 if path in {home.certificates, home.log, home.log / "documents"} else 0o700)
        receipt = _fill(home, config, passphrase)
        Database(home.database).close()
        home.database.chmod(0o600)
        AuditTrail(home.audit).record("founded", consortium=name)
        save_config(home, config)
    return receipt


def server_names(host: str) -> tuple[str, ...]:
    """The names and addresses that a server's certificate is for, when owners reach it as ``host``."""
    return _LOOPBACK if host in _LOOPBACK else (host.strip("[]"),)


def _config(name: str, host: str, port: int, enrol_port: int) -> CoordinatorConfig:
    listen = host if host in {"127.0.0.1", "::1"} else "127.0.0.1" if host == "localhost" else "0.0.0.0"  # noqa: S104 - owners are elsewhere
    table = f'consortium = "{name}"\nhost = {host!r}\nport = {port}\nenrol_port = {enrol_port}\nlisten = "{listen}"\n'
    try:
        return parse_config(table.encode("utf-8"), "init")
    except UsageError as error:
        raise UsageError(f"The host or port makes no sense: {error}") from error


def _fill(home: Home, config: CoordinatorConfig, passphrase: bytes | None) -> LogReceipt:
    now, name = utc_now(), config.consortium
    keys = {part: generate_signing_key() for part in ("root", "operator", "server")}
    log_key = generate_log_key()
    root = TrustRoot.from_der(issue_root(name, keys["root"], now).public_bytes(Encoding.DER))
    operator = issue_leaf(root, keys["root"], keys["operator"].public_key(), "signing", operator_uri(name), now, LEAF_DAYS)
    server = issue_leaf(
        root, keys["root"], keys["server"].public_key(), "server", server_uri(name), now, LEAF_DAYS, server_names(config.host)
    )
    for part, key in keys.items():
        write_atomic(home.keys / f"{part}.pem", private_key_pem(key, passphrase), mode=0o600)
    write_atomic(home.keys / "log.pem", private_key_pem(log_key, passphrase), mode=0o600)
    for part, certificate in (("root", root.certificate), ("operator", operator), ("server", server)):
        write_atomic(home.certificates / f"{part}.pem", certificate.public_bytes(Encoding.PEM))
    vkey = encode_vkey(log_origin(name), log_key.public_key())
    write_atomic(log_key_path(home), f"{vkey}\n".encode("ascii"))
    statement = _statement(config, root, vkey, operator, server)
    envelope = sign_statement(statement, keys["operator"], operator)
    ledger = WritableLedger(LogWriter(home.log, vkey, log_key, log_origin(name)), root)
    with ledger.exclusive() as session:
        return session.append("consortium-founded", f"consortium/{name}", envelope, ())


def _statement(
    config: CoordinatorConfig, root: TrustRoot, vkey: str, operator: x509.Certificate, server: x509.Certificate
) -> ConsortiumFounded:
    def record(purpose: str, uri: str, certificate: x509.Certificate) -> dict[str, str]:
        return {"purpose": purpose, "uri": uri, "der": b64encode(certificate.public_bytes(Encoding.DER))}

    name = config.consortium
    issued = (record("signing", operator_uri(name), operator), record("server", server_uri(name), server))
    fields = {
        "schema": "elmgrove.founded/v1",
        "consortium": name,
        "created": format_time(utc_now()),
        "root": b64encode(root.der),
        "log_key": vkey,
        "certificates": issued,
    }
    return ConsortiumFounded.model_validate(fields)
