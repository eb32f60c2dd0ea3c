"""Statements: JSON payloads signed in a DSSE envelope by whoever may say them (``docs/formats.md``, section 7)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from common.errors import FormatError
from common.formats.fields import Digest, IdentityUri, Name, Text, Timestamp
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import ExpertSlot, SummaryKey, SummaryValue
from common.formats.strictjson import Document, first_fault, loads_strict

__all__ = [
    "STATEMENT_PAYLOAD_TYPE",
    "CertificateRecord",
    "CertificatesRenewed",
    "ConsortiumFounded",
    "ExpertWithdrawn",
    "KeyRecord",
    "KeyRotated",
    "ModelAssembled",
    "NewKeys",
    "OwnerAdmitted",
    "OwnerRevoked",
    "ProxyUse",
    "RouterTuned",
    "Statement",
    "WitnessRegistered",
    "parse_statement",
    "request_digest",
]

STATEMENT_PAYLOAD_TYPE = "application/vnd.elmgrove.statement+json"

Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=16_384)]
VerifierKey = Annotated[str, StringConstraints(pattern=r"^[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2}$", max_length=512)]


class CertificateRecord(Document):
    """A certificate the consortium issued, so that everyone can see for whom and for what."""

    purpose: Literal["signing", "transport", "server"]
    uri: IdentityUri
    der: Base64


class KeyRecord(Document):
    """A public key (SubjectPublicKeyInfo, DER) that its holder wants certified for one purpose."""

    purpose: Literal["signing", "transport", "server"]
    key: Base64


class _Statement(Document):
    consortium: Name
    created: Timestamp


class ConsortiumFounded(_Statement):
    """The first entry of every log: the root, the operator's and server's certificates, and the log's own key. Signed by the operator."""

    schema_: Literal["elmgrove.founded/v1"] = Field(alias="schema")
    root: Base64
    log_key: VerifierKey
    certificates: Annotated[tuple[CertificateRecord, ...], Field(min_length=1, max_length=16)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class OwnerAdmitted(_Statement):
    """An owner joined, with these certificates. Signed by the operator."""

    schema_: Literal["elmgrove.owner-admitted/v1"] = Field(alias="schema")
    owner: IdentityUri
    certificates: Annotated[tuple[CertificateRecord, ...], Field(min_length=1, max_length=16)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class OwnerRevoked(_Statement):
    """An owner and all its certificates are revoked from this entry on. Signed by the operator."""

    schema_: Literal["elmgrove.owner-revoked/v1"] = Field(alias="schema")
    owner: IdentityUri
    reason: Text

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class CertificatesRenewed(_Statement):
    """New certificates for the keys that their holder has: an owner, or the operator together with the server. Signed by the operator.

    ``request`` is the SHA-256 of what the holder asked with, so that asking again gives the same certificates.
    """

    schema_: Literal["elmgrove.certificates-renewed/v1"] = Field(alias="schema")
    holder: IdentityUri
    certificates: Annotated[tuple[CertificateRecord, ...], Field(min_length=1, max_length=16)]
    request: Digest

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class NewKeys(_Statement):
    """The holder's word that these are its keys from now on. Signed by the holder with the signing key it has until then."""

    schema_: Literal["elmgrove.new-keys/v1"] = Field(alias="schema")
    holder: IdentityUri
    keys: Annotated[tuple[KeyRecord, ...], Field(min_length=1, max_length=2)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class KeyRotated(_Statement):
    """New certificates for new keys, with the holder's authorisation. Signed by the operator.

    ``authorisation`` is the envelope of a :class:`NewKeys` statement; ``request`` is as in :class:`CertificatesRenewed`.
    """

    schema_: Literal["elmgrove.key-rotated/v1"] = Field(alias="schema")
    holder: IdentityUri
    certificates: Annotated[tuple[CertificateRecord, ...], Field(min_length=1, max_length=16)]
    request: Digest
    authorisation: Base64

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class ExpertWithdrawn(_Statement):
    """The owner takes one expert, all its versions, out of every later assembly. Signed by the owner alone."""

    schema_: Literal["elmgrove.expert-withdrawn/v1"] = Field(alias="schema")
    owner: IdentityUri
    expert: Name
    manifest: Digest
    reason: Text

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class ModelAssembled(_Statement):
    """A model was assembled from these experts, all in force at this size of the log. Signed by the operator."""

    schema_: Literal["elmgrove.model-assembled/v1"] = Field(alias="schema")
    manifest: Digest
    anchor: Digest
    experts: Annotated[tuple[ExpertSlot, ...], Field(max_length=4096)]
    top_k: Annotated[int, Field(ge=1, le=4097)]
    log_size: Annotated[int, Field(ge=1, le=2**53 - 1)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class ProxyUse(Document):
    """Which list of proxy documents stood for one expert: the SHA-256 of the list's file, or of the documents when they came as text."""

    expert: Name
    sha256: Digest


class RouterTuned(_Statement):
    """An assembled model's router rows were trained on public text, and nothing else was. Signed by the operator.

    ``base`` is the manifest of the assembled model, which stays the exact opt-out; ``manifest`` is the tuned model's.
    """

    schema_: Literal["elmgrove.router-tuned/v1"] = Field(alias="schema")
    manifest: Digest
    base: Digest
    proxies: Annotated[tuple[ProxyUse, ...], Field(max_length=4096)]
    settings: Annotated[dict[SummaryKey, SummaryValue], Field(max_length=64)]
    log_size: Annotated[int, Field(ge=1, le=2**53 - 1)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class WitnessRegistered(_Statement):
    """The key with which an owner's client cosigns checkpoints of the log, in the place of an earlier one. Signed by the owner alone."""

    schema_: Literal["elmgrove.witness-registered/v1"] = Field(alias="schema")
    owner: IdentityUri
    key: VerifierKey

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


Statement = (
    ConsortiumFounded
    | OwnerAdmitted
    | OwnerRevoked
    | CertificatesRenewed
    | NewKeys
    | KeyRotated
    | ExpertWithdrawn
    | ModelAssembled
    | RouterTuned
    | WitnessRegistered
)

_ADAPTER: TypeAdapter[Statement] = TypeAdapter(Annotated[Statement, Field(discriminator="schema_")])


def request_digest(*, signing_csr: bytes, transport_csr: bytes, authorisation: bytes) -> str:
    """The ``request`` of a renewal or rotation: SHA-256 over the SHA-256 digests of its three parts, in this order; a part may be empty."""
    parts = (hashlib.sha256(part).digest() for part in (signing_csr, transport_csr, authorisation))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def parse_statement(raw: bytes) -> Statement:
    """Parse the payload of a statement envelope.

    Raises:
        FormatError: not strict JSON, an unknown schema, or a field is missing, unknown or wrong.
        LimitError: too large or too deep.
    """
    loads_strict(raw, max_bytes=MAX_DOCUMENT_BYTES)
    try:
        return _ADAPTER.validate_json(raw)
    except ValidationError as error:
        raise FormatError(f"Statement: {first_fault(error)}.") from error
