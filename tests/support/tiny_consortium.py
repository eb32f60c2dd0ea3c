"""A whole tiny consortium in a folder: root, operator, owners, a random anchor, signed packages, a log, an assembled model.

Everything is made with the product's own functions and small enough for a unit test; nothing is trained. The log is written from
scratch after every entry, straight through ``common/translog``, so tests can also write logs that no coordinator would.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.formats.entries import LogEntry, encode_entry, parse_entry
from common.formats.fields import format_time, operator_uri, owner_uri
from common.formats.manifest import AnchorManifest, ExpertManifest, ModelManifest
from common.formats.statements import (
    CertificateRecord,
    ConsortiumFounded,
    ExpertWithdrawn,
    ModelAssembled,
    OwnerAdmitted,
    OwnerRevoked,
    ProxyUse,
    RouterTuned,
    Statement,
)
from common.formats.strictjson import b64encode, parse_document
from common.translog.checkpoint import Checkpoint, log_origin, sign_checkpoint
from common.translog.merkle import inclusion_proof, leaf_hash, nodes_of, root_hash
from common.translog.note import encode_vkey
from common.translog.proof import encode_receipt
from common.translog.tiles import TILE_HEIGHT, TILE_WIDTH, encode_entries, entries_path, tile_path, tiles_for
from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_log_key, generate_signing_key
from common.trust.oms import sign_resources
from common.trust.statements import sign_statement
from common.weights.assembly import anchor_source, expert_source, plan_assembly, write_assembly
from common.weights.packages import verify_model
from common.weights.tuned import write_tuned
from tests.support.tiny_manifests import anchor_manifest, expert_manifest, sha256
from tests.support.tiny_weights import TINY, TinyShape, read_safetensors, write_anchor_files, write_expert_files

BEGIN = datetime(2026, 3, 1, 8, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Party:
    """Someone who signs: the operator or an owner."""

    name: str
    uri: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    records: tuple[CertificateRecord, ...]


class TinyConsortium:
    """See the module. ``folder`` gets ``root.pem``, ``log/``, ``anchor/``, ``packages/NAME-vN/`` and whatever models are assembled.

    Time stands still but for ``tick``, which every log entry calls: one minute.
    """

    def __init__(self, folder: Path, *, name: str = "grove", shape: TinyShape = TINY, found: bool = True) -> None:
        self.folder, self.name, self.shape, self.now = folder, name, shape, BEGIN
        folder.mkdir(parents=True, exist_ok=True)
        self.root_key = generate_signing_key()
        self.root = TrustRoot.from_der(issue_root(name, self.root_key, self.now).public_bytes(Encoding.DER))
        self.root_pem = folder / "root.pem"
        self.root_pem.write_bytes(self.root.certificate.public_bytes(Encoding.PEM))
        self.operator = self.party("operator", operator_uri(name), ("signing",))
        self.log_key = generate_log_key()
        self.origin = log_origin(name)
        self.vkey = encode_vkey(self.origin, self.log_key.public_key())
        self.log = folder / "log"
        self.entries: list[bytes] = []
        self.documents: dict[str, bytes] = {}
        self.owners: dict[str, Party] = {}
        self.anchor = folder / "anchor"
        self.anchor_digest = ""
        if found:
            self.found()

    def tick(self, seconds: int = 60) -> datetime:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        return self.now

    def party(self, name: str, uri: str, purposes: tuple[str, ...], *, days: int = 730) -> Party:
        """A new key with certificates of the consortium; the first purpose's is the one it signs with."""
        key = generate_signing_key()
        leaves = [issue_leaf(self.root, self.root_key, key.public_key(), purpose, uri, self.now, days) for purpose in purposes]
        records = tuple(
            CertificateRecord(purpose=purpose, uri=uri, der=b64encode(leaf.public_bytes(Encoding.DER)))
            for purpose, leaf in zip(purposes, leaves, strict=True)
        )
        return Party(name, uri, key, leaves[0], records)

    # --- the log ---------------------------------------------------------------------------------------------------

    def append(self, kind: str, subject: str, document: bytes, *more: bytes) -> int:
        """Log a signed document (and documents it names); returns the entry's index."""
        self.tick()
        for raw in (document, *more):
            self.documents[sha256(raw)] = raw
        entry = LogEntry(schema="elmgrove.entry/v1", kind=kind, subject=subject, document=sha256(document), time=format_time(self.now))
        self.entries.append(encode_entry(entry))
        self.write_log()
        return len(self.entries) - 1

    def state(self, statement: Statement, by: Party) -> bytes:
        """A signed statement's envelope."""
        return sign_statement(statement, by.key, by.certificate)

    def write_log(self, folder: Path | None = None) -> Path:
        """Write checkpoint, tiles, entries and documents afresh."""
        folder = folder or self.log
        shutil.rmtree(folder, ignore_errors=True)
        hashes = [leaf_hash(entry) for entry in self.entries]
        node = nodes_of(hashes)
        for first in range(0, len(self.entries), TILE_WIDTH):
            bundle = self.entries[first : first + TILE_WIDTH]
            self._put(folder / entries_path(first // TILE_WIDTH, len(bundle)), encode_entries(bundle))
        for level, index, width in tiles_for(len(hashes)):
            tile = b"".join(node(level * TILE_HEIGHT, index * TILE_WIDTH + position) for position in range(width))
            self._put(folder / tile_path(level, index, width), tile)
        for digest, raw in self.documents.items():
            self._put(folder / "documents" / digest, raw)
        self._put(folder / "checkpoint", self.checkpoint())
        return folder

    def checkpoint(self, size: int | None = None) -> bytes:
        """The signed note for the first ``size`` entries."""
        hashes = [leaf_hash(entry) for entry in self.entries[:size]]
        return sign_checkpoint(Checkpoint(origin=self.origin, size=len(hashes), root=root_hash(hashes)), self.log_key)

    def receipt(self, index: int, folder: Path) -> Path:
        """What an owner keeps of the entry at ``index`` now: its receipt's three files."""
        raw = self.entries[index]
        hashes = [leaf_hash(entry) for entry in self.entries]
        proof = inclusion_proof(index, len(hashes), nodes_of(hashes))
        self._put(folder / "entry.json", raw)
        self._put(folder / "receipt.tlog-proof", encode_receipt(index, proof, self.checkpoint()))
        self._put(folder / "document.json", self.documents[parse_entry(raw).document])
        return folder

    @staticmethod
    def _put(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    # --- what happens in a consortium ------------------------------------------------------------------------------

    def found(self) -> int:
        """Entry 0."""
        statement = ConsortiumFounded(
            schema="elmgrove.founded/v1",
            consortium=self.name,
            created=format_time(self.now),
            root=b64encode(self.root.der),
            log_key=self.vkey,
            certificates=self.operator.records,
        )
        return self.append("consortium-founded", f"consortium/{self.name}", self.state(statement, self.operator))

    def admit(self, name: str, *, days: int = 730) -> Party:
        """Admit an owner with a signing and a transport certificate."""
        uri = owner_uri(self.name, name)
        owner = self.party(name, uri, ("signing", "transport"), days=days)
        statement = OwnerAdmitted(
            schema="elmgrove.owner-admitted/v1",
            consortium=self.name,
            created=format_time(self.now),
            owner=uri,
            certificates=owner.records,
        )
        self.append("owner-admitted", f"owner/{name}", self.state(statement, self.operator))
        self.owners[name] = owner
        return owner

    def revoke(self, name: str) -> int:
        """Revoke an owner."""
        statement = OwnerRevoked(
            schema="elmgrove.owner-revoked/v1",
            consortium=self.name,
            created=format_time(self.now),
            owner=self.owners[name].uri,
            reason="left the consortium",
        )
        return self.append("owner-revoked", f"owner/{name}", self.state(statement, self.operator))

    def publish_anchor(self, *, name: str = "base", seed: int = 0, shards: int = 1) -> str:
        """Make, sign and log the anchor; returns its digest."""
        write_anchor_files(self.anchor, self.shape, seed=seed, shards=shards)
        raw = anchor_manifest(self.anchor, consortium=self.name, name=name, created=self.now)
        bundle = self.sign(raw, parse_document(AnchorManifest, raw), self.operator)
        (self.anchor / "model.sig").write_bytes(bundle)
        self.append("anchor-published", f"anchor/{name}", bundle, raw, (self.anchor / "config.json").read_bytes())
        self.anchor_digest = sha256(raw)
        return self.anchor_digest

    def sign(self, raw: bytes, manifest: AnchorManifest | ExpertManifest, by: Party) -> bytes:
        """The bundle over a folder's manifest and files."""
        resources = {"manifest.json": sha256(raw)} | {entry.name: entry.sha256 for entry in manifest.files}
        return sign_resources(resources, manifest.name, by.key, by.certificate)

    def package(
        self, owner: str, expert: str, *, version: int = 1, supersedes: str | None = None, seed: int | None = None, parts: int = 1
    ) -> Path:
        """Make and sign an expert package, without logging it."""
        folder = self.folder / "packages" / f"{expert}-v{version}"
        write_expert_files(folder, self.shape, seed=hash_seed(expert, version) if seed is None else seed, parts=parts)
        raw = expert_manifest(
            folder,
            self.anchor_digest,
            name=expert,
            owner=owner,
            version=version,
            supersedes=supersedes,
            consortium=self.name,
            created=self.now,
        )
        (folder / "model.sig").write_bytes(self.sign(raw, parse_document(ExpertManifest, raw), self.owners[owner]))
        return folder

    def accept(self, folder: Path) -> int:
        """Log a package."""
        raw = (folder / "manifest.json").read_bytes()
        manifest = parse_document(ExpertManifest, raw)
        return self.append("expert-accepted", f"expert/{manifest.name}@{manifest.version}", (folder / "model.sig").read_bytes(), raw)

    def contribute(self, owner: str, expert: str, *, version: int = 1, supersedes: str | None = None, parts: int = 1) -> Path:
        """Make, sign and log a package."""
        folder = self.package(owner, expert, version=version, supersedes=supersedes, parts=parts)
        self.accept(folder)
        return folder

    def withdraw(self, owner: str, folder: Path) -> int:
        """The owner withdraws the expert whose current package lies in ``folder``."""
        raw = (folder / "manifest.json").read_bytes()
        manifest = parse_document(ExpertManifest, raw)
        statement = ExpertWithdrawn(
            schema="elmgrove.expert-withdrawn/v1",
            consortium=self.name,
            created=format_time(self.now),
            owner=self.owners[owner].uri,
            expert=manifest.name,
            manifest=sha256(raw),
            reason="changed our mind",
        )
        subject = f"expert/{manifest.name}@{manifest.version}"
        return self.append("expert-withdrawn", subject, self.state(statement, self.owners[owner]))

    def assemble(self, *packages: Path, out: str = "model", top_k: int = 2, log: bool = True) -> Path:
        """Assemble, sign and (by default) log a model of these packages; returns its folder."""
        anchor = anchor_source((self.anchor / "manifest.json").read_bytes(), self.anchor)
        experts = [expert_source((folder / "manifest.json").read_bytes(), folder) for folder in packages]
        target = self.folder / out
        plan = plan_assembly(anchor, experts, top_k, "Apache-2.0")
        raw = write_assembly(
            plan, target, sign=lambda resources: sign_resources(resources, out, self.operator.key, self.operator.certificate)
        )
        if log:
            self.log_model(raw)
        return target

    def log_model(self, raw: bytes) -> int:
        """Log the assembly of the model with this manifest."""
        manifest = parse_document(ModelManifest, raw)
        statement = ModelAssembled(
            schema="elmgrove.model-assembled/v1",
            consortium=self.name,
            created=format_time(self.now),
            manifest=sha256(raw),
            anchor=manifest.anchor,
            experts=manifest.experts,
            top_k=manifest.top_k,
            log_size=len(self.entries),
        )
        return self.append("model-assembled", f"model/{sha256(raw)[:16]}", self.state(statement, self.operator))

    def tune(self, model: Path, *experts: str, out: str = "tuned", log: bool = True, rows: dict[str, bytes] | None = None) -> Path:
        """A model with other router rows (by default every row but the public one negated), signed and (by default) logged."""
        base = verify_model(model, self.root, self.now)
        found = {name: (shape, raw) for name, (_, shape, raw) in read_safetensors(model / "model-router.safetensors").items()}
        negated = {name: _negated(raw, keep=len(raw) // shape[0]) for name, (shape, raw) in found.items()}
        raw = write_tuned(
            base,
            rows or negated,
            self.folder / out,
            sign=lambda resources: sign_resources(resources, out, self.operator.key, self.operator.certificate),
        )
        if log:
            self.log_tuned(raw, base.digest, *experts)
        return self.folder / out

    def log_tuned(self, raw: bytes, base: str, *experts: str) -> int:
        """Log that the model with this manifest was tuned from ``base``."""
        statement = RouterTuned(
            schema="elmgrove.router-tuned/v1",
            consortium=self.name,
            created=format_time(self.now),
            manifest=sha256(raw),
            base=base,
            proxies=tuple(ProxyUse(expert=expert, sha256=sha256(expert.encode())) for expert in experts),
            settings={"steps": 1},
            log_size=len(self.entries),
        )
        return self.append("router-tuned", f"model/{sha256(raw)[:16]}", self.state(statement, self.operator))


def _negated(raw: bytes, *, keep: int) -> bytes:
    """Every little-endian value after the first ``keep`` bytes with its sign turned; the tiny models are F32."""
    return raw[:keep] + bytes(byte ^ 0x80 if at % 4 == 3 else byte for at, byte in enumerate(raw[keep:]))


def hash_seed(expert: str, version: int) -> int:
    """A seed that differs between experts and versions and is the same in every process."""
    return int(sha256(f"{expert}@{version}".encode())[:8], 16)
