"""OpenSSF Model Signing v1.0, certificate method, over flat folders (its specification, sections 4 and 5; ``docs/formats.md``, 7.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from common.errors import SignatureError
from common.formats.fields import Digest, FileName
from common.formats.limits import MAX_BUNDLE_BYTES, MAX_FILES
from common.formats.manifest import SIGNATURE_NAME
from common.formats.strictjson import Document, parse_document
from common.trust.certificates import TrustRoot, VerifiedLeaf
from common.trust.envelope import sign_envelope, verify_envelope

__all__ = ["OMS_PAYLOAD_TYPE", "VerifiedResources", "sign_resources", "statement_payload", "verify_bundle"]

OMS_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
GIT_NAMES: Final = frozenset({".git", ".github", ".gitattributes", ".gitignore"})
"""What the stock tool always ignores; names no flat folder of ours can hold, so an honest stock signature may list them."""
_IGNORABLE: Final = GIT_NAMES | {SIGNATURE_NAME}
"""The stock tool also lists the signature it is writing, when that lies in the folder."""


def _refuse_true(value: bool) -> bool:
    if value:
        raise ValueError("links are not allowed")
    return value


NoLinks = Annotated[bool, AfterValidator(_refuse_true)]
"""``false`` and nothing that merely equals it: a literal would take the number 0."""


class _Resource(Document):
    name: FileName
    algorithm: Literal["sha256"]
    digest: Digest


class _Serialization(Document):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: NoLinks
    ignore_paths: Annotated[tuple[str, ...], Field(max_length=8)] = ()


class _Predicate(Document):
    resources: Annotated[tuple[_Resource, ...], Field(min_length=1, max_length=MAX_FILES)]
    serialization: _Serialization


class _SubjectDigest(Document):
    sha256: Digest


class _Subject(Document):
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    digest: _SubjectDigest


class _Statement(Document):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815 - in-toto's spelling
    predicate: _Predicate

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class VerifiedResources:
    """File names and digests that a valid signature covers; made by :func:`verify_bundle` alone. The files were not looked at."""

    resources: Mapping[str, str]
    signer: VerifiedLeaf
    digest: str
    """SHA-256 of the bundle's bytes."""


def statement_payload(resources: Mapping[str, str], name: str) -> bytes:
    """The in-toto statement over files ``name -> sha256``; ``name`` is the folder's, for people only."""
    ordered = sorted(resources.items())
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest(ordered)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": file, "algorithm": "sha256", "digest": digest} for file, digest in ordered],
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode("ascii")


def _root_digest(ordered: list[tuple[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()


def sign_resources(resources: Mapping[str, str], name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """Sign files whose digests are known; returns the bytes of ``model.sig``."""
    return sign_envelope(statement_payload(resources, name), OMS_PAYLOAD_TYPE, key, certificate)


def verify_bundle(raw: bytes, root: TrustRoot, *, at: datetime) -> VerifiedResources:
    """Verify a ``model.sig`` and return what it covers.

    (1) envelope, certificate and signature hold; (2) the payload is a strict OMS v1.0 statement, files and sha256 only; (3) nothing is
    ignored but what the stock tool always lists: git's names and the signature; (4) the resources are in strictly ascending order,
    distinct also without case, and do not list the signature itself; (5) the subject's digest is that of the resources.

    The caller compares the resources with the files, and the signer with who may sign.

    Raises:
        FormatError: the bundle or statement is malformed.
        CertificateError, SignatureError: step (1), (3), (4) or (5) failed.
    """
    verified = verify_envelope(raw, root, payload_type=OMS_PAYLOAD_TYPE, at=at)  # (1)
    statement = parse_document(_Statement, verified.payload, max_bytes=MAX_BUNDLE_BYTES)  # (2)
    predicate = statement.predicate
    if not set(predicate.serialization.ignore_paths) <= _IGNORABLE:  # (3)
        raise SignatureError("The signature leaves out files (ignore_paths).")
    names = [resource.name for resource in predicate.resources]
    if names != sorted(set(names)) or len({name.lower() for name in names}) != len(names):  # (4)
        raise SignatureError("The signature's files are not in ascending order of distinct names.")
    if SIGNATURE_NAME in names:
        raise SignatureError("The signature lists itself.")
    resources = {resource.name: resource.digest for resource in predicate.resources}
    if statement.subject[0].digest.sha256 != _root_digest(list(resources.items())):  # (5)
        raise SignatureError("The signature's subject is not the digest of its files.")
    return VerifiedResources(resources=resources, signer=verified.signer, digest=verified.digest)
