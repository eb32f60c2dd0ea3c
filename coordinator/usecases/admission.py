"""The rules an expert package meets before it enters the log; pure decisions on documents and state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from common.errors import DigestError, ForbiddenError, LimitError, SignerError, VersionError, WithdrawnError, WrongAnchorError
from common.formats.fields import parse_time
from common.formats.manifest import MANIFEST_NAME, ExpertManifest
from common.formats.strictjson import parse_document
from common.ledger.state import ConsortiumState, ExpertState, OwnerState
from common.rpc.limits import MAX_OFFER_BYTES
from common.trust.certificates import TrustRoot
from common.trust.oms import verify_bundle
from common.weights.template import check_template
from coordinator.usecases.identity import check_signer

__all__ = ["OfferedPackage", "check_rules", "read_offer"]


@dataclass(frozen=True, slots=True)
class OfferedPackage:
    """A package whose signature and manifest hold; its files may still be under way. Made by :func:`read_offer` alone."""

    manifest: ExpertManifest
    digest: str
    manifest_raw: bytes
    bundle: bytes

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.manifest.files)


def read_offer(bundle: bytes, manifest_raw: bytes, *, owner: OwnerState, root: TrustRoot, at: datetime) -> OfferedPackage:
    """Verify what an owner offers, before its first byte is sent.

    1. Bundle and manifest are of a size that one message carries.
    2. The signature holds under the root at this time.
    3. The signer is the caller, by a certificate the log lists.
    4. The signed list of files names this manifest, and the manifest's owner is the caller.
    5. The signed list is exactly the manifest and the files it lists, with the same digests.

    Raises:
        LimitError: 1 does not hold.
        FormatError: a document is malformed.
        SignatureError, CertificateError: 2 does not hold.
        SignerError: 3 does not hold.
        ForbiddenError: the manifest names another owner.
        DigestError: 4 or 5 does not hold.
    """
    if len(bundle) + len(manifest_raw) > MAX_OFFER_BYTES:  # (1)
        raise LimitError(f"Bundle and manifest together exceed {MAX_OFFER_BYTES} bytes.")
    verified = verify_bundle(bundle, root, at=at)  # (2)
    if verified.signer.uri != owner.uri:  # (3)
        raise SignerError("The package is signed by someone else than its sender.")
    check_signer(owner, verified.signer.der)
    digest = hashlib.sha256(manifest_raw).hexdigest()
    if verified.resources.get(MANIFEST_NAME) != digest:  # (4)
        raise DigestError(f"The signature is not over this {MANIFEST_NAME}.")
    manifest = parse_document(ExpertManifest, manifest_raw)
    if manifest.owner != owner.uri:
        raise ForbiddenError("The package's manifest names another owner than its sender.")
    _check_resources(verified.resources, manifest)  # (5)
    return OfferedPackage(manifest, digest, manifest_raw, bundle)


def _check_resources(resources: Mapping[str, str], manifest: ExpertManifest) -> None:
    listed = {entry.name: entry.sha256 for entry in manifest.files}
    signed = {name: digest for name, digest in resources.items() if name != MANIFEST_NAME}
    if signed != listed:
        names = sorted(name for name in {*signed, *listed} if signed.get(name) != listed.get(name))
        raise DigestError(f"Signature and manifest disagree about {names[0]}.")


def check_rules(package: OfferedPackage, *, owner: OwnerState, state: ConsortiumState, at: datetime) -> None:
    """Check a package against the consortium's state: anchor, template, name, version, validity.

    Raises:
        WrongAnchorError: the anchor is not published here.
        TemplateError, LayoutError: the tensors or files are not those an expert of that anchor has.
        ForbiddenError: the expert's name belongs to another owner.
        VersionError: the version does not follow the newest one.
        WithdrawnError: the expert was withdrawn, or the package is past its own not-after.
    """
    manifest = package.manifest
    anchor = state.anchors.get(manifest.anchor)
    if anchor is None or manifest.consortium != state.consortium:
        raise WrongAnchorError(f"No published anchor has the digest {manifest.anchor[:16]}. Pull the anchor and train against it.")
    check_template(manifest, anchor.manifest, anchor_digest=anchor.digest)
    if manifest.not_after is not None and parse_time(manifest.not_after) <= at:
        raise WithdrawnError(f"The package says it may not be used after {manifest.not_after}.")
    versions = state.experts.get(manifest.name, ())
    if versions and versions[0].owner != owner.uri:
        raise ForbiddenError(f"The name {manifest.name} is taken by an expert of another owner. Choose another.")
    _check_version(manifest, versions)


def _check_version(manifest: ExpertManifest, versions: tuple[ExpertState, ...]) -> None:
    if any(version.status == "withdrawn" for version in versions):
        raise WithdrawnError(f"Expert {manifest.name} was withdrawn; it cannot come back under that name.")
    expected = versions[-1].version + 1 if versions else 1
    supersedes = versions[-1].digest if versions else None
    if manifest.version != expected:
        raise VersionError(f"The next version of expert {manifest.name} is {expected}; the package says {manifest.version}.")
    if manifest.supersedes != supersedes:
        raise VersionError(f"Version {manifest.version} of expert {manifest.name} must name the manifest it supersedes.")
