"""A consortium whose log is two Python lists: real keys, certificates, statements and bundles, and manifests of files that do not exist."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import NotFoundError
from common.formats.entries import LogEntry, encode_entry
from common.formats.fields import format_time, operator_uri, owner_uri
from common.formats.manifest import AnchorManifest, Architecture, ExpertManifest, ExpertSlot, FileEntry, FullKind, TensorEntry
from common.formats.statements import (
    CertificateRecord,
    ConsortiumFounded,
    ExpertWithdrawn,
    ModelAssembled,
    OwnerAdmitted,
    OwnerRevoked,
    ProxyUse,
    RouterTuned,
    WitnessRegistered,
)
from common.formats.strictjson import b64encode, canonical_bytes
from common.translog.checkpoint import log_origin
from common.translog.cosignature import witness_name, witness_vkey
from common.translog.note import encode_vkey
from common.trust.certificates import Purpose, TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_log_key, generate_signing_key
from common.trust.oms import sign_resources
from common.trust.statements import sign_statement

BEGIN = datetime(2026, 3, 1, 8, 0, 0, tzinfo=UTC)
WEIGHTS = FileEntry(name="part-0000.safetensors", size=3, sha256="1" * 64, chunks=("1" * 64,))
TENSOR = TensorEntry(name="w", dtype="F32", shape=(1,), sha256="2" * 64, file="part-0000.safetensors")
SHAPE = Architecture(
    model_type="olmo2", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=16, dtype="F32",
)  # fmt: skip


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True)
class Party:
    uri: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    records: tuple[CertificateRecord, ...]


class MemoryLog:
    """Every method appends one entry; ``by``, ``subject`` and document fields can be given to break a rule. One minute passes per entry."""

    def __init__(self, name: str = "grove") -> None:
        self.name, self.now = name, BEGIN
        self.entries: list[bytes] = []
        self.documents: dict[str, bytes] = {}
        self.root_key = generate_signing_key()
        self.root = TrustRoot.from_der(issue_root(name, self.root_key, BEGIN).public_bytes(Encoding.DER))
        self.operator = self.party(operator_uri(name), "signing")
        self.vkey = encode_vkey(log_origin(name), generate_log_key().public_key())
        self.anna = self.party(owner_uri(name, "anna"), "signing", "transport")
        self.ben = self.party(owner_uri(name, "ben"), "signing", "transport")

    def fork(self) -> MemoryLog:
        """The same log, to be continued elsewhere."""
        other = copy.copy(self)
        other.entries, other.documents = list(self.entries), dict(self.documents)
        return other

    def fetch(self, digest: str) -> bytes:
        try:
            return self.documents[digest]
        except KeyError as error:
            raise NotFoundError(f"no document {digest[:16]}") from error

    def party(self, uri: str, *purposes: Purpose) -> Party:
        key = generate_signing_key()
        leaves = [issue_leaf(self.root, self.root_key, key.public_key(), purpose, uri, self.now) for purpose in purposes]
        return Party(uri, key, leaves[0], tuple(map(record, purposes, [uri] * len(leaves), leaves)))

    def keep(self, raw: bytes) -> str:
        self.documents[sha256(raw)] = raw
        return sha256(raw)

    def append(self, kind: str, subject: str, document: bytes) -> bytes:
        self.now += timedelta(minutes=1)
        return self.append_raw(kind, subject, self.keep(document))

    def append_raw(self, kind: str, subject: str, digest: str) -> bytes:
        entry = LogEntry(schema="elmgrove.entry/v1", kind=kind, subject=subject, document=digest, time=format_time(self.now))
        self.entries.append(encode_entry(entry))
        return self.entries[-1]

    def state(self, kind: str, subject: str, model: type, by: Party, fields: dict[str, Any], change: dict[str, Any]) -> bytes:
        common = {"consortium": self.name, "created": format_time(self.now)}
        statement = model(**(common | fields | change))
        return self.append(kind, subject, sign_statement(statement, by.key, by.certificate))

    def found(self, *, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        fields = {
            "schema": "elmgrove.founded/v1", "root": b64encode(self.root.der), "log_key": self.vkey, "certificates": self.operator.records,
        }  # fmt: skip
        subject = subject or f"consortium/{self.name}"
        return self.state("consortium-founded", subject, ConsortiumFounded, by or self.operator, fields, change)

    def admit(self, owner: Party, *, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        fields = {"schema": "elmgrove.owner-admitted/v1", "owner": owner.uri, "certificates": owner.records}
        subject = subject or f"owner/{owner.uri.rsplit('/', 1)[1]}"
        return self.state("owner-admitted", subject, OwnerAdmitted, by or self.operator, fields, change)

    def revoke(self, owner: Party, *, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        fields = {"schema": "elmgrove.owner-revoked/v1", "owner": owner.uri, "reason": "left"}
        subject = subject or f"owner/{owner.uri.rsplit('/', 1)[1]}"
        return self.state("owner-revoked", subject, OwnerRevoked, by or self.operator, fields, change)

    def bundle(self, raw: bytes, by: Party, names: dict[str, str] | None = None) -> bytes:
        listed = {"manifest.json": self.keep(raw), WEIGHTS.name: WEIGHTS.sha256} if names is None else names
        return sign_resources(listed, "folder", by.key, by.certificate)

    def publish(self, *, by: Party | None = None, subject: str | None = None, **change: Any) -> str:
        fields = {
            "schema": "elmgrove.anchor/v1", "consortium": self.name, "files": (WEIGHTS,), "tensors": (TENSOR,), "name": "base",
            "architecture": SHAPE, "licence": "", "provenance": "", "created": format_time(self.now),
        }  # fmt: skip
        raw = canonical_bytes(AnchorManifest(**(fields | change)))
        self.append("anchor-published", subject or "anchor/base", self.bundle(raw, by or self.operator))
        return sha256(raw)

    def accept(self, owner: Party, name: str, anchor: str, *, by: Party | None = None, subject: str | None = None, **change: Any) -> str:
        fields = {
            "schema": "elmgrove.expert/v1", "consortium": self.name, "files": (WEIGHTS,), "tensors": (TENSOR,), "owner": owner.uri,
            "name": name, "version": 1, "anchor": anchor, "kind": FullKind(type="full"), "training": {}, "licence": "",
            "permitted_uses": (), "not_after": None, "supersedes": None, "created": format_time(self.now),
        }  # fmt: skip
        raw = canonical_bytes(ExpertManifest(**(fields | change)))
        version = change.get("version", 1)
        self.append("expert-accepted", subject or f"expert/{name}@{version}", self.bundle(raw, by or owner))
        return sha256(raw)

    def withdraw(
        self, owner: Party, name: str, digest: str, version: int = 1, *, by: Party | None = None, subject: str | None = None, **change: Any
    ) -> bytes:
        fields = {"schema": "elmgrove.expert-withdrawn/v1", "owner": owner.uri, "expert": name, "manifest": digest, "reason": ""}
        subject = subject or f"expert/{name}@{version}"
        return self.state("expert-withdrawn", subject, ExpertWithdrawn, by or owner, fields, change)

    def slot(self, slot: int, owner: Party, name: str, digest: str, version: int = 1) -> ExpertSlot:
        return ExpertSlot(slot=slot, name=name, version=version, owner=owner.uri, manifest=digest)

    def assemble(self, anchor: str, *slots: ExpertSlot, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        fields = {
            "schema": "elmgrove.model-assembled/v1", "manifest": "e" * 64, "anchor": anchor, "experts": slots, "top_k": 2,
            "log_size": len(self.entries),
        }  # fmt: skip
        return self.state("model-assembled", subject or f"model/{'e' * 16}", ModelAssembled, by or self.operator, fields, change)

    def tune(self, base: str, *experts: str, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        fields = {
            "schema": "elmgrove.router-tuned/v1", "manifest": "f" * 64, "base": base, "settings": {"steps": 3},
            "proxies": tuple(ProxyUse(expert=expert, sha256="a" * 64) for expert in experts), "log_size": len(self.entries),
        }  # fmt: skip
        return self.state("router-tuned", subject or f"model/{'f' * 16}", RouterTuned, by or self.operator, fields, change)

    def witness(self, owner: Party, *, by: Party | None = None, subject: str | None = None, **change: Any) -> bytes:
        name = owner.uri.rsplit("/", 1)[1]
        key = witness_vkey(witness_name(self.name, name), generate_log_key())
        fields = {"schema": "elmgrove.witness-registered/v1", "owner": owner.uri, "key": key}
        return self.state("witness-registered", subject or f"owner/{name}", WitnessRegistered, by or owner, fields, change)


def record(purpose: Purpose, uri: str, leaf: x509.Certificate) -> CertificateRecord:
    return CertificateRecord(purpose=purpose, uri=uri, der=b64encode(leaf.public_bytes(Encoding.DER)))
