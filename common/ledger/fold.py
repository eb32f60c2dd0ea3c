"""The fold: log entries and the documents they name become the consortium's state, or the log is invalid at an index, with the reason.

Rules, in the order they are checked for each entry:

 1. The entry is in its one encoding, and its time is not before the previous entry's.
 2. Entry 0, and only entry 0, founds the consortium; its root is the auditor's root, its log key bears the log's name, and it lists
    leaves of the operator and the server alone, the signing one among them.
 3. The document has the digest the entry names, and was not logged before.
 4. The document's signature and certificate hold at the entry's time.
 5. The signer may say it: the operator founds, admits, revokes, publishes, assembles and tunes; an admitted, unrevoked owner, with a
    signing certificate that the log lists, offers and withdraws its own experts.
 6. The entry's subject is the one that follows from the document.
 7. *Owner admitted*: once per name; every certificate is a leaf of the root for that owner and that purpose. *Owner revoked*: once.
 8. *Anchor published*: a manifest of this consortium, new by digest.
 9. *Expert accepted*: for a published anchor; the name is free or this owner's; version 1, or the next version superseding the logged
    one; not after a withdrawal; not expired already.
10. *Expert withdrawn*: by its owner, naming the newest version's manifest, once.
11. *Model assembled*: from a published anchor and experts in force at this very entry, in slot order.
12. *Router tuned*: a new model out of an assembled one, whose experts are all in force at this very entry; every list of proxies is
    for one of its experts, in slot order. So a router that was tuned with an expert's proxies cannot be logged after that expert has
    left: the model is assembled without it and tuned again.
13. *Witness registered*: by its owner, a cosignature key under that owner's name, which is no other owner's nor the log's.

Nothing here reads a file: ``documents`` is the caller's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from common.errors import FormatError, LogError, NotFoundError, VerificationError
from common.formats.entries import LogEntry, parse_entry
from common.formats.fields import operator_uri, owner_name, parse_time, server_uri, subject_expert
from common.formats.manifest import MANIFEST_NAME, AnchorManifest, ExpertManifest, ExpertSlot
from common.formats.statements import (
    CertificateRecord,
    ConsortiumFounded,
    ExpertWithdrawn,
    ModelAssembled,
    OwnerAdmitted,
    OwnerRevoked,
    RouterTuned,
    Statement,
    WitnessRegistered,
)
from common.formats.strictjson import b64decode_canonical, b64encode, parse_document
from common.ledger.growing import GrowingMap
from common.ledger.state import AnchorState, ConsortiumState, ExpertState, ExpertStatus, ModelState, OwnerState, TunedState
from common.translog.checkpoint import log_origin
from common.translog.cosignature import witness_name
from common.translog.note import ALG_COSIGNATURE, ALG_ED25519, parse_vkey
from common.trust.certificates import TrustRoot, VerifiedLeaf, verify_leaf
from common.trust.oms import VerifiedResources, verify_bundle
from common.trust.statements import VerifiedStatement, verify_statement

__all__ = ["Documents", "fold"]

Documents = Callable[[str], bytes]
"""From a SHA-256 to the bytes of a logged document or of a manifest it names."""


class _BrokenRuleError(Exception):
    """An entry breaks a rule; becomes a :class:`LogError` with the index."""


def fold(entries: Iterable[bytes], documents: Documents, root: TrustRoot, *, state: ConsortiumState | None = None) -> ConsortiumState:
    """Apply ``entries`` to ``state`` (by default to nothing) and return the state after them.

    Args:
        entries: the leaves' bytes, in log order, continuing where ``state`` ends.
        documents: finds the signed documents and manifests.
        root: the consortium's root certificate, from a source the caller trusts.
        state: the fold of all earlier entries.

    Raises:
        LogError: an entry breaks a rule of this module; the message begins with its index.
    """
    folding = _Folding(documents, root, state)
    for entry in entries:
        folding.apply(entry)
    return folding.result()


@dataclass(frozen=True, slots=True)
class _Signed:
    """An entry together with its verified document."""

    entry: LogEntry
    time: datetime
    signer: VerifiedLeaf
    statement: Statement | None
    resources: VerifiedResources | None


class _Folding:
    """The state under construction; one method per kind of entry."""

    def __init__(self, documents: Documents, root: TrustRoot, state: ConsortiumState | None) -> None:
        self._documents = documents
        self._root = root
        self._before = state
        self._size = state.size if state else 0
        self._time = state.time if state else None
        self._founded = _Founding(state.consortium, state.log_key, state.certificates) if state else None
        self._owners = GrowingMap(state.owners if state else None)
        self._anchors = GrowingMap(state.anchors if state else None)
        self._experts = GrowingMap(state.experts if state else None)
        self._models = state.models if state else ()
        self._tuned = state.tuned if state else ()
        self._seen = GrowingMap(state.documents if state else None)

    def result(self) -> ConsortiumState:
        """The state, frozen.

        Raises:
            LogError: there is no entry at all.
        """
        if self._before is not None and self._size == self._before.size:
            return self._before
        if self._founded is None or self._time is None:
            raise LogError("The log has no entries; no consortium was founded.")
        return ConsortiumState(
            consortium=self._founded.consortium,
            log_key=self._founded.log_key,
            size=self._size,
            time=self._time,
            certificates=self._founded.certificates,
            owners=self._owners.frozen(),
            anchors=self._anchors.frozen(),
            experts=self._experts.frozen(),
            models=self._models,
            tuned=self._tuned,
            documents=self._seen.frozen(),
        )

    def apply(self, raw: bytes) -> None:
        """Apply one entry."""
        try:
            self._apply(raw)
        except (_BrokenRuleError, FormatError, VerificationError, NotFoundError) as error:
            raise LogError(f"Log entry {self._size}: {error}") from error

    def _apply(self, raw: bytes) -> None:
        entry = parse_entry(raw)  # rule 1
        time = parse_time(entry.time)
        _require(self._time is None or time >= self._time, "its time is before the previous entry's")
        _require((entry.kind == "consortium-founded") == (self._size == 0), "a consortium is founded by entry 0 and by no other")  # rule 2
        _require(entry.document not in self._seen, "its document was logged before")  # rule 3
        signed = self._verify(entry, time)  # rules 3 and 4
        _HANDLERS[entry.kind](self, signed)
        self._seen[entry.document] = self._size
        self._size += 1
        self._time = time

    def _fetch(self, digest: str) -> bytes:
        raw = self._documents(digest)
        _require(hashlib.sha256(raw).hexdigest() == digest, f"the document {digest[:16]} does not have its digest")
        return raw

    def _verify(self, entry: LogEntry, time: datetime) -> _Signed:
        raw = self._fetch(entry.document)
        if entry.kind in {"anchor-published", "expert-accepted"}:
            bundle = verify_bundle(raw, self._root, at=time)
            return _Signed(entry, time, bundle.signer, None, bundle)
        verified: VerifiedStatement = verify_statement(raw, self._root, at=time)
        if self._founded is not None:
            _require(verified.statement.consortium == self._founded.consortium, "its statement is about another consortium")
        return _Signed(entry, time, verified.signer, verified.statement, None)

    # --- who may say it (rule 5) ---------------------------------------------------------------------------------------

    def _check_operator(self, signed: _Signed, consortium: str) -> None:
        _require(signed.signer.uri == operator_uri(consortium), "only the operator may say this")
        if self._founded is not None:
            listed = {record.der for record in self._founded.certificates if record.purpose == "signing"}
            _require(b64encode(signed.signer.der) in listed, "the operator's certificate is not the logged one")

    def _check_owner(self, signed: _Signed, uri: str) -> OwnerState:
        _require(signed.signer.uri == uri, "it was signed by someone else than the owner it names")
        owner = self._owners.get(owner_name(uri, self._consortium))
        if owner is None:
            raise _BrokenRuleError("its owner was never admitted")
        _require(owner.revoked_index is None, "its owner was revoked")
        listed = {record.der for record in owner.certificates if record.purpose == "signing"}
        _require(b64encode(signed.signer.der) in listed, "its signing certificate is not one that the log lists for this owner")
        return owner

    @property
    def _consortium(self) -> str:
        if self._founded is None:
            raise _BrokenRuleError("no consortium was founded")
        return self._founded.consortium

    # --- one method per kind -------------------------------------------------------------------------------------------

    def _found(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, ConsortiumFounded):
            raise _BrokenRuleError("its document is not a founding")
        _require(b64decode_canonical(statement.root) == self._root.der, "it founds a consortium under another root certificate")
        self._check_operator(signed, statement.consortium)
        _subject(signed, f"consortium/{statement.consortium}")
        log_key = parse_vkey(statement.log_key)
        right_key = log_key.name == log_origin(statement.consortium) and log_key.algorithm == ALG_ED25519
        _require(right_key, "its log key is not one for this consortium's checkpoints")
        issued = {("signing", operator_uri(statement.consortium)), ("server", server_uri(statement.consortium))}
        for record in statement.certificates:
            _require((record.purpose, record.uri) in issued, "a certificate is not the operator's or the server's")
            self._check_certificate(record, signed.time)
        listed = {record.der for record in statement.certificates if record.purpose == "signing"}
        _require(b64encode(signed.signer.der) in listed, "the founding does not list the certificate it is signed with")
        self._founded = _Founding(statement.consortium, statement.log_key, statement.certificates)

    def _check_certificate(self, record: CertificateRecord, time: datetime) -> None:
        leaf = verify_leaf(b64decode_canonical(record.der), self._root, record.purpose, time)
        _require(leaf.uri == record.uri, "a listed certificate is for another identity")

    def _admit(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, OwnerAdmitted):
            raise _BrokenRuleError("its document is not an admission")
        self._check_operator(signed, self._consortium)
        name = owner_name(statement.owner, self._consortium)
        _subject(signed, f"owner/{name}")
        _require(name not in self._owners, "its owner was admitted before")  # rule 7
        for record in statement.certificates:
            _require(record.uri == statement.owner and record.purpose != "server", "a certificate is not the owner's")
            self._check_certificate(record, signed.time)
        self._owners[name] = OwnerState(name, statement.owner, statement.certificates, self._size)

    def _revoke(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, OwnerRevoked):
            raise _BrokenRuleError("its document is not a revocation")
        self._check_operator(signed, self._consortium)
        name = owner_name(statement.owner, self._consortium)
        _subject(signed, f"owner/{name}")
        owner = self._owners.get(name)
        if owner is None or owner.revoked_index is not None:
            raise _BrokenRuleError("its owner was never admitted, or is revoked already")
        self._owners[name] = dataclasses.replace(owner, revoked_index=self._size)
        for expert, versions in self._experts.items():
            if versions[-1].owner == owner.uri and versions[-1].status == "in-force":
                self._end(expert, "revoked")

    def _end(self, name: str, status: ExpertStatus) -> None:
        *earlier, newest = self._experts[name]
        self._experts[name] = (*earlier, dataclasses.replace(newest, status=status, ended_index=self._size))

    def _publish(self, signed: _Signed) -> None:
        digest, raw = self._manifest(signed)
        manifest = parse_document(AnchorManifest, raw)
        self._check_operator(signed, self._consortium)
        _subject(signed, f"anchor/{manifest.name}")
        _require(manifest.consortium == self._consortium, "its manifest is of another consortium")  # rule 8
        _require(digest not in self._anchors, "this anchor was published before")
        self._anchors[digest] = AnchorState(digest, manifest.name, manifest, signed.entry.document, self._size, signed.time)

    def _manifest(self, signed: _Signed) -> tuple[str, bytes]:
        digest = signed.resources.resources.get(MANIFEST_NAME) if signed.resources else None
        if digest is None:
            raise _BrokenRuleError("its signature does not cover a manifest")
        return digest, self._fetch(digest)

    def _accept(self, signed: _Signed) -> None:
        digest, raw = self._manifest(signed)
        manifest = parse_document(ExpertManifest, raw)
        owner = self._check_owner(signed, manifest.owner)
        _subject(signed, subject_expert(manifest.name, manifest.version))
        _require(manifest.consortium == self._consortium, "its manifest is of another consortium")
        _require(manifest.anchor in self._anchors, "it is for an anchor that was never published")  # rule 9
        _require(manifest.not_after is None or parse_time(manifest.not_after) > signed.time, "it had expired already")
        versions = self._experts.get(manifest.name, ())
        self._check_follows(manifest, versions, owner)
        if versions and versions[-1].status == "in-force":
            self._end(manifest.name, "superseded")
        first = versions[0].first_index if versions else self._size
        accepted = ExpertState(
            manifest.name, manifest.version, owner.uri, digest, manifest, signed.entry.document, self._size, signed.time, first
        )
        self._experts[manifest.name] = (*self._experts.get(manifest.name, ()), accepted)

    @staticmethod
    def _check_follows(manifest: ExpertManifest, versions: tuple[ExpertState, ...], owner: OwnerState) -> None:
        if not versions:
            _require(manifest.version == 1, "the first version of an expert must be version 1")
            return
        newest = versions[-1]
        _require(newest.owner == owner.uri, "its name belongs to another owner")
        _require(newest.status != "withdrawn", "the expert was withdrawn")
        follows = manifest.version == newest.version + 1 and manifest.supersedes == newest.digest
        _require(follows, f"it does not follow version {newest.version}")

    def _withdraw(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, ExpertWithdrawn):
            raise _BrokenRuleError("its document is not a withdrawal")
        owner = self._check_owner(signed, statement.owner)
        versions = self._experts.get(statement.expert)
        if not versions or versions[-1].owner != owner.uri:  # rule 10
            raise _BrokenRuleError("it withdraws an expert that is not its signer's")
        newest = versions[-1]
        _subject(signed, subject_expert(newest.name, newest.version))
        _require(newest.digest == statement.manifest, "it does not name the newest version")
        _require(newest.status == "in-force", "the expert is not in force")
        self._end(statement.expert, "withdrawn")

    def _assemble(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, ModelAssembled):
            raise _BrokenRuleError("its document is not an assembly")
        self._check_operator(signed, self._consortium)
        _subject(signed, f"model/{statement.manifest[:16]}")
        _require(statement.log_size == self._size, "it was decided on at another size of the log")  # rule 11
        _require(statement.anchor in self._anchors, "it is made from an anchor that was never published")
        _require(1 <= statement.top_k <= len(statement.experts) + 1, "its top-k exceeds its experts")
        self._check_slots(statement, signed.time)
        self._models += (ModelState(statement.manifest, statement, self._size, signed.time),)

    def _check_slots(self, statement: ModelAssembled, time: datetime) -> None:
        order: list[int] = []
        for position, slot in enumerate(statement.experts, start=1):
            newest = self._check_in_force(slot, time)
            _require(newest.manifest.anchor == statement.anchor, f"expert {slot.name} is for another anchor")
            _require(slot.slot == position, "its slots are not numbered in order")
            order.append(newest.first_index)
        _require(order == sorted(set(order)), "its experts are not in the order of their first versions")

    def _check_in_force(self, slot: ExpertSlot, time: datetime) -> ExpertState:
        versions = self._experts.get(slot.name)
        newest = versions[-1] if versions else None
        if newest is None or (newest.digest, newest.version, newest.owner) != (slot.manifest, slot.version, slot.owner):
            raise _BrokenRuleError(f"expert {slot.name} is not the logged one")
        _require(newest.in_force_at(time), f"expert {slot.name} is not in force")
        return newest

    def _tune(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, RouterTuned):
            raise _BrokenRuleError("its document is not a tuning")
        self._check_operator(signed, self._consortium)
        _subject(signed, f"model/{statement.manifest[:16]}")
        _require(statement.log_size == self._size, "it was decided on at another size of the log")  # rule 12
        base = next((model for model in self._models if model.digest == statement.base), None)
        if base is None:
            raise _BrokenRuleError("it tunes a model whose assembly was never logged")
        known = {model.digest for model in self._models} | {tuned.digest for tuned in self._tuned}
        _require(statement.manifest not in known, "its model was logged before")
        for slot in base.statement.experts:
            self._check_in_force(slot, signed.time)
        slots = {slot.name: slot.slot for slot in base.statement.experts}
        order = [slots.get(proxies.expert, 0) for proxies in statement.proxies]
        _require(0 not in order, "a list of proxies is for an expert that the model does not hold")
        _require(order == sorted(set(order)), "its lists of proxies are not one per expert in the order of their slots")
        self._tuned += (TunedState(statement.manifest, base, statement, self._size, signed.time),)

    def _witness(self, signed: _Signed) -> None:
        statement = signed.statement
        if not isinstance(statement, WitnessRegistered):
            raise _BrokenRuleError("its document is not a registration of a witness")
        owner = self._check_owner(signed, statement.owner)
        _subject(signed, f"owner/{owner.name}")
        key = parse_vkey(statement.key)  # rule 13
        right_key = key.algorithm == ALG_COSIGNATURE and key.name == witness_name(self._consortium, owner.name)
        _require(right_key, "its key is not one for this owner's cosignatures")
        taken = [each.witness_key for each in self._owners.values() if each.witness_key and each.name != owner.name]
        taken += [self._founded.log_key] if self._founded else []
        _require(all(parse_vkey(other).public_bytes != key.public_bytes for other in taken), "its key is another's")
        self._owners[owner.name] = dataclasses.replace(owner, witness_key=statement.key)


@dataclass(frozen=True, slots=True)
class _Founding:
    consortium: str
    log_key: str
    certificates: tuple[CertificateRecord, ...]


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise _BrokenRuleError(f"{broken}.")


def _subject(signed: _Signed, expected: str) -> None:
    _require(signed.entry.subject == expected, f"its subject should be {expected}")


_HANDLERS: dict[str, Callable[[_Folding, _Signed], None]] = {
    "consortium-founded": _Folding._found,
    "owner-admitted": _Folding._admit,
    "owner-revoked": _Folding._revoke,
    "anchor-published": _Folding._publish,
    "expert-accepted": _Folding._accept,
    "expert-withdrawn": _Folding._withdraw,
    "model-assembled": _Folding._assemble,
    "router-tuned": _Folding._tune,
    "witness-registered": _Folding._witness,
}
