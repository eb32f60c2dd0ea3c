"""Everything that would leave with a package, gathered from its bytes so that a person can decide.

Nothing here trusts what the training wrote down: sizes and digests are taken from the files as they lie in the folder, and the
manifest's tables must agree with them before anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from common.errors import FormatError, NotFoundError
from common.formats.layout import PRIVACY_NAME, ROUTER_NAME
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, ExpertManifest, LowRankKind
from common.formats.strictjson import loads_strict
from common.progress import ProgressSink, silent
from common.weights.contents import check_finite
from common.weights.index import read_header
from common.weights.packages import InspectedPackage, inspect_package
from common.weights.sources import in_folder
from owner_client.config import Home

__all__ = ["NOT_INCLUDED", "Review", "ReviewedFile", "find_package", "outbox_packages", "plain_manifest", "review_package"]

_MAX_PRIVACY_BYTES: Final = 1024 * 1024  # bytes; a report has a few hundred
_SIGNATURE_BASE: Final = 1400  # bytes; certificate, signature and frame of a bundle without its file list
_SIGNATURE_PER_FILE: Final = 175  # bytes; one file in the signed list, base64 included

NOT_INCLUDED: Final = (
    "No text, token or document of your data, and no name, path or number of its files unless the training summary above says one.",
    "No optimizer state, gradient, training checkpoint or metrics file: these stay under runs/.",
    "No private key: the signature is made here, and only the signature leaves.",
    "The weights were learnt from your text and can hold traces of it. What was measured about that stands in the privacy report.",
)
"""What a reader must know beyond the list of files."""


@dataclass(frozen=True, slots=True)
class ReviewedFile:
    """One file that would leave: its size in bytes, SHA-256, what it is, and the free-text notes in its header."""

    name: str
    size: int
    sha256: str
    purpose: str
    notes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Review:
    """All that would leave with one package. ``signature_bytes`` is exact once signed, an estimate before."""

    folder: Path
    package: InspectedPackage
    files: tuple[ReviewedFile, ...]
    privacy: Mapping[str, Any]
    signed: bool
    signature_bytes: int

    @property
    def manifest(self) -> ExpertManifest:
        """The package's manifest."""
        return self.package.manifest

    @property
    def package_bytes(self) -> int:
        """Bytes of every file but the signature."""
        return sum(file.size for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The review for a script."""
        return {
            "folder": str(self.folder),
            "digest": self.package.digest,
            "files": [
                {"name": file.name, "size": file.size, "sha256": file.sha256, "purpose": file.purpose, "notes": dict(file.notes)}
                for file in self.files
            ],
            "manifest": self.manifest.model_dump(mode="json", exclude={"files": True, "tensors": True, "kind": {"materialised"}}),
            "parameters": _parameters(self.manifest),
            "privacy": dict(self.privacy),
            "signature": {"name": SIGNATURE_NAME, "signed": self.signed, "size": self.signature_bytes, "exact": self.signed},
            "total_bytes": self.package_bytes + self.signature_bytes,
            "not_included": list(NOT_INCLUDED),
        }


def find_package(home: Home, name_or_path: str) -> Path:
    """The package folder meant by a path or by the name of an expert in the outbox (its highest version; ``NAME-vN`` for another).

    Raises:
        NotFoundError: there is none; the message lists the packages there are.
    """
    if "/" not in name_or_path and name_or_path not in {".", ".."}:
        versions = [version for name, version in outbox_packages(home) if name == name_or_path]
        exact = home.outbox / name_or_path
        if exact.is_dir():
            return exact
        if versions:
            return home.package(name_or_path, max(versions))
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    known = [f"{name}-v{version}" for name, version in outbox_packages(home)]
    listing = f"The outbox holds {', '.join(known)}." if known else "The outbox is empty; 'elmgrove-owner train' fills it."
    raise NotFoundError(f"There is no package {name_or_path!r}: give the path of a folder or the name of an expert. {listing}")


def outbox_packages(home: Home) -> list[tuple[str, int]]:
    """``(expert, version)`` of every package in the outbox, in order."""
    names = [path.name for path in home.outbox.iterdir() if path.is_dir()] if home.outbox.is_dir() else []
    parts = [name.rpartition("-v") for name in names if not name.startswith(".")]
    return sorted((stem, int(number)) for stem, _, number in parts if stem and number.isdecimal())


def review_package(folder: Path, *, progress: ProgressSink = silent) -> Review:
    """Read a package folder whole and list what would leave.

    Raises:
        LayoutError: a file is missing or does not belong, or is a link or folder.
        FormatError: the manifest, a weights file or the privacy report is malformed.
        DigestError: a file or tensor is not what the manifest says.
        NonFiniteError: a tensor holds NaN or infinity.
    """
    package = inspect_package(folder, progress=progress)
    check_finite(package.manifest, in_folder(folder), progress=progress)
    signature = folder / SIGNATURE_NAME
    signed = signature.is_file()
    files = [ReviewedFile(MANIFEST_NAME, len(package.manifest_bytes), package.digest, "what the package says about itself", {})]
    files += [ReviewedFile(e.name, e.size, e.sha256, _purpose(e.name), _notes(folder / e.name)) for e in package.manifest.files]
    estimate = _SIGNATURE_BASE + _SIGNATURE_PER_FILE * len(files)
    return Review(
        folder=folder,
        package=package,
        files=tuple(files),
        privacy=_privacy(folder),
        signed=signed,
        signature_bytes=signature.stat().st_size if signed else estimate,
    )


def _purpose(name: str) -> str:
    if name == ROUTER_NAME:
        return "one router row per layer"
    return "the privacy report" if name == PRIVACY_NAME else "the expert's weights"


def _notes(path: Path) -> Mapping[str, str]:
    return read_header(path).metadata if path.suffix == ".safetensors" else {}


def _privacy(folder: Path) -> Mapping[str, Any]:
    path = folder / PRIVACY_NAME
    if not path.is_file():
        return {}
    with path.open("rb") as stream:
        value = loads_strict(stream.read(_MAX_PRIVACY_BYTES + 1), max_bytes=_MAX_PRIVACY_BYTES)
    if not isinstance(value, dict):
        raise FormatError(f"{PRIVACY_NAME} is not a JSON object.")
    return value


def _parameters(manifest: ExpertManifest) -> int:
    return sum(prod(tensor.shape) for tensor in manifest.tensors)


def plain_manifest(manifest: ExpertManifest) -> list[tuple[str, str]]:
    """Every field of the manifest but the two tables, as ``(name, plain words)`` in the order a person asks for them."""
    kind = f"low-rank, rank {manifest.kind.rank}" if isinstance(manifest.kind, LowRankKind) else "full: every feed-forward weight"
    lines = [
        ("Consortium", manifest.consortium),
        ("Owner", manifest.owner),
        ("Expert", f"{manifest.name}, version {manifest.version}"),
        ("Replaces", f"the version with manifest {manifest.supersedes}" if manifest.supersedes else "nothing: it is the first version"),
        ("Trained from anchor", manifest.anchor),
        ("Kind", kind),
        ("Content", f"{len(manifest.tensors)} tensors, {_parameters(manifest):,} numbers, in {len(manifest.files)} files"),
        ("Licence", manifest.licence or "none stated"),
        ("Permitted uses", "; ".join(manifest.permitted_uses) or "none stated"),
        ("Valid until", manifest.not_after or "you withdraw it"),
        ("Created", manifest.created),
        ("Format", manifest.schema_),
    ]
    summary = [(f"Training: {key}", str(value)) for key, value in manifest.training.items()]
    return lines + (summary or [("Training", "nothing is disclosed")])
