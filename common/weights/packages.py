"""Signed folders (anchor, expert package, assembled model): the recipes that turn bytes and a root certificate into verified values.

The caller chooses the root and the time; nothing here knows a default for either. What is returned was verified, what was
not verified is never returned.

    Documents (``verify_*_documents``: bundle and manifest bytes, no files)
      1. the bundle's signature and its certificate hold under the root at the given time, for signing
      2. the manifest's SHA-256 is the one the bundle gives for ``manifest.json``
      3. the manifest is a valid document of the expected kind
      4. the signer is the one who may sign it: the owner it names, or the operator of its consortium
      5. the bundle's files are exactly ``manifest.json`` and the manifest's file table, with the same digests
    Folders (``verify_package``, ``verify_anchor``, ``verify_model``)
      6. the folder holds exactly those files and ``model.sig``: flat, regular, no links
      7. every file's bytes and every tensor's name, dtype and shape are those of the manifest, and nothing is left over; with
         ``tensors``, every tensor's digest is recomputed as well
      8. the files are those its kind must have (parts, router and privacy report; an Olmo2 checkpoint and its router)

Without ``tensors`` the bytes are the signer's all the same: the digests of files bind them. What is then taken from the signer is that
the tensor table says of those bytes what is true. Whoever goes on to rely on the table, as admission does for every later model,
asks for ``tensors`` (``docs/formats.md``, section 4.1).

Left to the caller: revocation and withdrawal (``common/ledger``), whether the expert fits its anchor (``check_template``), and
whether its values are finite (``check_finite``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar

from common.errors import DigestError, SignerError
from common.formats.fields import operator_uri, owner_name
from common.formats.limits import MAX_BUNDLE_BYTES
from common.formats.manifest import (
    MANIFEST_NAME,
    RESERVED_NAMES,
    SIGNATURE_NAME,
    AnchorManifest,
    ExpertManifest,
    Manifest,
    ModelManifest,
)
from common.formats.strictjson import parse_document
from common.progress import ProgressSink, silent
from common.trust.certificates import TrustRoot, VerifiedLeaf
from common.trust.oms import verify_bundle
from common.weights.contents import check_contents, check_finite, content_faults
from common.weights.digests import read_small
from common.weights.index import check_members, list_folder
from common.weights.manifests import build_anchor_manifest, build_expert_manifest, check_anchor_files, check_expert_files
from common.weights.sources import in_folder, read_manifest
from common.weights.template import check_template

__all__ = [
    "InspectedPackage",
    "Signed",
    "SignedAnchor",
    "SignedExpert",
    "SignedModel",
    "Verified",
    "VerifiedAnchor",
    "VerifiedModel",
    "VerifiedPackage",
    "build_anchor_manifest",
    "build_expert_manifest",
    "check_contents",
    "check_finite",
    "check_folder_members",
    "check_template",
    "content_faults",
    "inspect_package",
    "read_bundle",
    "verify_anchor",
    "verify_anchor_documents",
    "verify_expert_documents",
    "verify_model",
    "verify_model_documents",
    "verify_package",
]

ManifestT = TypeVar("ManifestT", bound=Manifest)
ManifestT_co = TypeVar("ManifestT_co", bound=Manifest, covariant=True)


@dataclass(frozen=True, slots=True)
class Signed(Generic[ManifestT_co]):
    """A manifest whose signature was verified (steps 1 to 5); its files were not looked at.

    ``digest`` is the SHA-256 of ``manifest_bytes``, ``document`` that of ``bundle``; ``resources`` maps every signed file name to
    its SHA-256.
    """

    manifest: ManifestT_co
    manifest_bytes: bytes
    digest: str
    bundle: bytes
    document: str
    resources: Mapping[str, str]
    signer: VerifiedLeaf


@dataclass(frozen=True, slots=True)
class Verified(Signed[ManifestT_co]):
    """A folder whose signature and every byte were verified (steps 1 to 8)."""

    folder: Path


@dataclass(frozen=True, slots=True)
class InspectedPackage:
    """A package whose bytes agree with its manifest; nobody has signed it yet, or nobody has looked at the signature."""

    folder: Path
    manifest: ExpertManifest
    manifest_bytes: bytes
    digest: str
    resources: Mapping[str, str]


SignedExpert = Signed[ExpertManifest]
SignedAnchor = Signed[AnchorManifest]
SignedModel = Signed[ModelManifest]
VerifiedPackage = Verified[ExpertManifest]
VerifiedAnchor = Verified[AnchorManifest]
VerifiedModel = Verified[ModelManifest]


def _verify_documents(
    kind: type[ManifestT], bundle: bytes, manifest: bytes, root: TrustRoot, at: datetime, may_sign: Callable[[ManifestT], str]
) -> Signed[ManifestT]:
    # 1. Signature and certificate.
    verified = verify_bundle(bundle, root, at=at)
    # 2. These are the manifest's bytes.
    digest = hashlib.sha256(manifest).hexdigest()
    if verified.resources.get(MANIFEST_NAME) != digest:
        raise DigestError(f"{MANIFEST_NAME} differs from the one {verified.signer.uri} signed.")
    # 3. Only now are they parsed.
    parsed = parse_document(kind, manifest)
    # 4. Who may say this.
    if verified.signer.uri != may_sign(parsed):
        raise SignerError(f"The manifest must be signed by {may_sign(parsed)}, but {verified.signer.uri} signed it.")
    # 5. Bundle and manifest speak of the same files.
    listed = {MANIFEST_NAME: digest} | {entry.name: entry.sha256 for entry in parsed.files}
    differing = sorted(listed.items() ^ dict(verified.resources).items())
    if differing:
        raise DigestError(f"The signature and the manifest disagree about {differing[0][0]}.")
    return Signed(
        manifest=parsed,
        manifest_bytes=manifest,
        digest=digest,
        bundle=bundle,
        document=verified.digest,
        resources=dict(verified.resources),
        signer=verified.signer,
    )


def verify_expert_documents(bundle: bytes, manifest: bytes, root: TrustRoot, *, at: datetime, owner: str | None = None) -> SignedExpert:
    """Steps 1 to 5 for an expert package.

    Args:
        bundle: the bytes of ``model.sig``.
        manifest: the bytes of ``manifest.json``.
        root: the consortium's root certificate.
        at: the time at which the certificate must be valid.
        owner: URI of the owner it must be from; by default whoever the manifest names.

    Raises:
        SignatureError, CertificateError: step 1.
        DigestError: steps 2 and 5.
        FormatError, LimitError: a document is malformed.
        SignerError: step 4.
    """
    signed = _verify_documents(ExpertManifest, bundle, manifest, root, at, lambda parsed: parsed.owner)
    owner_name(signed.manifest.owner, signed.manifest.consortium)
    if owner is not None and signed.manifest.owner != owner:
        raise SignerError(f"The package is from {signed.manifest.owner}, not from {owner}.")
    return signed


def verify_anchor_documents(bundle: bytes, manifest: bytes, root: TrustRoot, *, at: datetime) -> SignedAnchor:
    """Steps 1 to 5 for an anchor; arguments and errors as :func:`verify_expert_documents`."""
    return _verify_documents(AnchorManifest, bundle, manifest, root, at, lambda parsed: operator_uri(parsed.consortium))


def verify_model_documents(bundle: bytes, manifest: bytes, root: TrustRoot, *, at: datetime) -> SignedModel:
    """Steps 1 to 5 for an assembled model; arguments and errors as :func:`verify_expert_documents`."""
    return _verify_documents(ModelManifest, bundle, manifest, root, at, lambda parsed: operator_uri(parsed.consortium))


def read_bundle(folder: Path) -> bytes:
    """The bytes of a folder's ``model.sig``.

    Raises:
        NotFoundError, LayoutError, LimitError: it is missing, not a regular file, or too large.
    """
    return read_small(folder / SIGNATURE_NAME, MAX_BUNDLE_BYTES)


def check_folder_members(folder: Path, manifest: Manifest, *, signed: bool = True) -> None:
    """Step 6: the folder holds the manifest's files, the manifest, ``model.sig`` (if ``signed``), and nothing else.

    Raises:
        LayoutError: a file is missing, surplus, or not a regular file.
    """
    expected = {entry.name for entry in manifest.files} | RESERVED_NAMES
    found = set(list_folder(folder))
    if not signed:
        found.add(SIGNATURE_NAME)
    check_members(found, expected, folder.name)


def _verify_bytes(signed: Signed[ManifestT], folder: Path, progress: ProgressSink, *, tensors: bool = False) -> Verified[ManifestT]:
    check_folder_members(folder, signed.manifest)
    check_contents(signed.manifest, in_folder(folder), signed.signer.uri, tensors=tensors, progress=progress)
    return Verified(
        manifest=signed.manifest,
        manifest_bytes=signed.manifest_bytes,
        digest=signed.digest,
        bundle=signed.bundle,
        document=signed.document,
        resources=signed.resources,
        signer=signed.signer,
        folder=folder,
    )


def verify_package(
    folder: Path,
    root: TrustRoot,
    *,
    at: datetime,
    owner: str | None = None,
    tensors: bool = False,
    progress: ProgressSink = silent,
) -> VerifiedPackage:
    """All eight steps for an expert package.

    Args:
        folder: the package.
        root: the consortium's root certificate.
        at: the time at which the certificate must be valid.
        owner: URI of the owner it must be from; by default whoever the manifest names.
        tensors: also recompute every tensor's digest; twice the time.
        progress: told of the bytes hashed.

    Raises:
        NotFoundError: there is no such folder, manifest or signature.
        LayoutError: steps 6 and 8.
        DigestError, SafetensorsError: step 7; the tensor or file is named.
        SignatureError, CertificateError, SignerError, FormatError, LimitError, DigestError: as :func:`verify_expert_documents`.
    """
    list_folder(folder)
    signed = verify_expert_documents(read_bundle(folder), read_manifest(folder), root, at=at, owner=owner)
    verified = _verify_bytes(signed, folder, progress, tensors=tensors)
    check_expert_files(verified.manifest, in_folder(folder))
    return verified


def verify_anchor(folder: Path, root: TrustRoot, at: datetime, *, progress: ProgressSink = silent) -> VerifiedAnchor:
    """All eight steps for an anchor.

    Raises:
        ArchitectureError: step 8: the tensors are not those the configuration describes.
        NotFoundError, LayoutError, DigestError, SafetensorsError, SignatureError, CertificateError, SignerError, FormatError,
            LimitError: as :func:`verify_package`.
    """
    list_folder(folder)
    signed = verify_anchor_documents(read_bundle(folder), read_manifest(folder), root, at=at)
    verified = _verify_bytes(signed, folder, progress)
    check_anchor_files(verified.manifest, in_folder(folder))
    return verified


def verify_model(folder: Path, root: TrustRoot, at: datetime, *, progress: ProgressSink = silent) -> VerifiedModel:
    """Steps 1 to 7 for an assembled model; what it is made of is traced by ``common/audit``.

    Raises:
        NotFoundError, LayoutError, DigestError, SafetensorsError, SignatureError, CertificateError, SignerError, FormatError,
            LimitError: as :func:`verify_package`.
    """
    list_folder(folder)
    signed = verify_model_documents(read_bundle(folder), read_manifest(folder), root, at=at)
    return _verify_bytes(signed, folder, progress)


def inspect_package(folder: Path, *, progress: ProgressSink = silent) -> InspectedPackage:
    """Steps 3, 6, 7 and 8 for a package that is about to be signed: what its owner would put their name to.

    A ``model.sig`` that lies there already is allowed and not looked at.

    Raises:
        NotFoundError: there is no such folder or manifest.
        LayoutError, DigestError, SafetensorsError, FormatError, LimitError: folder, files and manifest do not agree.
    """
    list_folder(folder)
    raw = read_manifest(folder)
    manifest = parse_document(ExpertManifest, raw)
    check_folder_members(folder, manifest, signed=False)
    check_contents(manifest, in_folder(folder), "the manifest's author", tensors=False, progress=progress)
    check_expert_files(manifest, in_folder(folder))
    digest = hashlib.sha256(raw).hexdigest()
    return InspectedPackage(
        folder=folder,
        manifest=manifest,
        manifest_bytes=raw,
        digest=digest,
        resources={MANIFEST_NAME: digest} | {entry.name: entry.sha256 for entry in manifest.files},
    )
