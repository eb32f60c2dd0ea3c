"""The ledger's fold over a real log in memory: what a whole history gives, and every rule broken once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import common.ledger.fold as fold_module
from common.errors import LogError
from common.formats.fields import format_time, owner_uri
from common.formats.statements import KeyRecord, OwnerRevoked
from common.formats.strictjson import b64encode
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState, keys_in_force
from common.trust.certificates import Purpose
from common.trust.statements import sign_statement
from tests.unit.ledger.memory_log import MemoryLog, Party, record


@dataclass
class History:
    """The log of ``world`` after: founded, anna and ben admitted, anchor, moss@1, fern@1, moss@2, a model, oak@1 withdrawn."""

    log: MemoryLog
    anchor: str
    moss1: str
    fern: str
    moss2: str
    oak: str


@pytest.fixture(scope="module")
def world() -> History:
    log = MemoryLog()
    log.found()
    log.admit(log.anna)
    log.admit(log.ben)
    anchor = log.publish()
    moss1 = log.accept(log.anna, "moss", anchor)
    fern = log.accept(log.ben, "fern", anchor)
    moss2 = log.accept(log.anna, "moss", anchor, version=2, supersedes=moss1)
    log.assemble(anchor, log.slot(1, log.anna, "moss", moss2, 2), log.slot(2, log.ben, "fern", fern))
    oak = log.accept(log.anna, "oak", anchor)
    log.withdraw(log.anna, "oak", oak)
    return History(log, anchor, moss1, fern, moss2, oak)


@pytest.fixture(scope="module")
def state(world: History) -> ConsortiumState:
    return fold(world.log.entries, world.log.fetch, world.log.root)


def test_state_of_a_whole_history(world: History, state: ConsortiumState) -> None:
    log = world.log
    assert (state.consortium, state.log_key, state.size, state.time) == ("grove", log.vkey, 10, log.now)
    assert {name: owner.admitted_index for name, owner in state.owners.items()} == {"anna": 1, "ben": 2}
    assert state.owners["anna"].certificates == log.anna.records
    assert state.latest_anchor() == state.anchors[world.anchor]
    assert [(each.version, each.status, each.ended_index, each.first_index) for each in state.experts["moss"]] == [
        (1, "superseded", 6, 4),
        (2, "in-force", None, 4),
    ]
    assert [(each.status, each.ended_index) for each in state.experts["oak"]] == [("withdrawn", 9)]
    assert [each.digest for each in state.experts_in_force()] == [world.moss2, world.fern]
    assert [each.digest for each in state.experts_in_force(anchor="f" * 64)] == []
    assert [(model.digest, model.index) for model in state.models] == [("e" * 64, 7)]
    assert state.current_expert("elm") is None
    assert len(state.documents) == 10


def test_revocation_ends_the_experts_in_force_and_nothing_else(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    after = fold([log.revoke(log.anna)], log.fetch, log.root, state=state)
    assert after.owners["anna"].revoked_index == 10
    assert [each.status for each in after.experts["moss"]] == ["superseded", "revoked"]
    assert [each.status for each in after.experts["oak"]] == ["withdrawn"]
    assert [each.name for each in after.experts_in_force()] == ["fern"]
    assert state.owners["anna"].revoked_index is None, "the earlier state was changed"
    assert state.experts["moss"][-1].status == "in-force", "the earlier state was changed"


def test_expiry_follows_from_the_time_asked_about(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    limit = log.now + timedelta(hours=1)
    log.accept(log.ben, "ash", world.anchor, not_after=format_time(limit))
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    assert [each.name for each in after.experts_in_force(at=limit)] == ["moss", "fern", "ash"]
    assert [each.name for each in after.experts_in_force(at=limit + timedelta(seconds=1))] == ["moss", "fern"]


def test_continuing_a_fold_equals_folding_at_once(world: History, state: ConsortiumState) -> None:
    log = world.log
    for cut in range(1, len(log.entries) + 1):
        begun = fold(log.entries[:cut], log.fetch, log.root)
        assert begun.size == cut
        assert fold(log.entries[cut:], log.fetch, log.root, state=begun) == state
    assert fold([], log.fetch, log.root, state=state) is state


def _again(log: MemoryLog, party: Party, *purposes: Purpose) -> Party:
    """The same party with further certificates for the same key."""
    return log.party(party.uri, *(purposes or tuple(each.purpose for each in party.records)), key=party.key)


def test_a_renewal_adds_certificates_and_the_earlier_ones_stay(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    renewed = _again(log, log.anna)
    log.renew(renewed)
    log.accept(renewed, "elm", world.anchor)
    log.accept(log.anna, "ash", world.anchor)
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    anna = after.owners["anna"]
    assert anna.certificates == (*log.anna.records, *renewed.records)
    assert [(each.index, each.request) for each in anna.issued] == [(1, None), (10, "7" * 64)]
    assert anna.issued[1].certificates == renewed.records
    assert {each.name for each in after.experts_in_force()} == {"moss", "fern", "elm", "ash"}
    assert state.owners["anna"].certificates == log.anna.records, "the earlier state was changed"


def test_after_a_rotation_the_old_key_says_nothing_more_and_what_it_said_stays(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    new = log.party(log.anna.uri, "signing", "transport")
    log.rotate(log.anna, new)
    log.accept(new, "moss", world.anchor, version=3, supersedes=world.moss2)
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    assert after.owners["anna"].certificates == new.records
    assert [each.certificates for each in after.owners["anna"].issued] == [log.anna.records, new.records]
    assert [each.status for each in after.experts["moss"]] == ["superseded", "superseded", "in-force"]
    assert after.models == state.models
    log.accept(log.anna, "elm", world.anchor)
    with pytest.raises(LogError, match=r"^Log entry 12: its signing certificate is not one that the log lists"):
        fold(log.entries[12:], log.fetch, log.root, state=after)


def test_a_rotation_of_the_transport_key_leaves_the_signing_key(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    new = log.party(log.anna.uri, "transport")
    log.rotate(log.anna, new)
    log.accept(log.anna, "elm", world.anchor)
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    assert after.owners["anna"].certificates == (log.anna.records[0], *new.records)


def test_the_operator_rotates_its_own_key(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    new = log.party(log.operator.uri, "signing")
    log.rotate(log.operator, new)
    log.revoke(log.ben, by=new)
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    assert after.certificates == new.records
    log.revoke(log.anna)
    with pytest.raises(LogError, match=r"^Log entry 12: the operator's certificate is not the logged one"):
        fold(log.entries[12:], log.fetch, log.root, state=after)


def test_operator_and_server_certificates_are_renewed(world: History) -> None:
    log = MemoryLog()
    server = log.party("elmgrove://grove/server", "server")
    log.found(certificates=log.operator.records + server.records)
    operator, further = _again(log, log.operator), _again(log, server)
    log.renew(operator, certificates=operator.records + further.records)
    log.admit(log.anna, by=operator)
    after = fold(log.entries, log.fetch, log.root)
    assert after.certificates == log.operator.records + server.records + operator.records + further.records


def test_no_entries_are_no_consortium(world: History) -> None:
    with pytest.raises(LogError, match="no consortium was founded"):
        fold([], world.log.fetch, world.log.root)


# --- one entry too many, each breaking one rule --------------------------------------------------------------------------------

Break = Callable[[MemoryLog, History], object]


def _not_canonical(log: MemoryLog, world: History) -> None:
    log.entries.append(json.dumps(json.loads(log.revoke(log.anna)), indent=1).encode())
    del log.entries[-2]


def _earlier(log: MemoryLog, world: History) -> None:
    log.now -= timedelta(minutes=2)
    log.revoke(log.anna)


def _missing_document(log: MemoryLog, world: History) -> None:
    log.append_raw("owner-revoked", "owner/anna", "a" * 64)


def _changed_document(log: MemoryLog, world: History) -> None:
    log.revoke(log.anna)
    digest = json.loads(log.entries[-1])["document"]
    log.documents[digest] = log.documents[digest].replace(b'"keyid":""', b'"keyid":null')


def _logged_before(log: MemoryLog, world: History) -> None:
    log.append_raw("owner-admitted", "owner/ben", json.loads(log.entries[2])["document"])


def _expired_certificate(log: MemoryLog, world: History) -> None:
    log.now += timedelta(days=731)
    log.revoke(log.anna)


def _foreign_root(log: MemoryLog, world: History) -> None:
    log.revoke(log.anna, by=MemoryLog().operator)


def _broken_signature(log: MemoryLog, world: History) -> None:
    statement = OwnerRevoked(
        schema="elmgrove.owner-revoked/v1", consortium="grove", created=format_time(log.now), owner=log.anna.uri, reason="first"
    )
    bundle = json.loads(sign_statement(statement, log.operator.key, log.operator.certificate))
    other = json.loads(sign_statement(statement.model_copy(update={"reason": "other"}), log.operator.key, log.operator.certificate))
    bundle["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"]
    log.append("owner-revoked", "owner/anna", json.dumps(bundle, separators=(",", ":")).encode())


def _transport_certificate_signs(log: MemoryLog, world: History) -> None:
    log.revoke(log.anna, by=log.party(log.operator.uri, "transport"))


def _unlisted_owner_certificate(log: MemoryLog, world: History) -> None:
    log.accept(log.anna, "elm", world.anchor, by=log.party(log.anna.uri, "signing"))


def _after_revocation(log: MemoryLog, world: History) -> None:
    log.revoke(log.anna)
    log.accept(log.anna, "elm", world.anchor)


def _revoked_twice(log: MemoryLog, world: History) -> None:
    log.revoke(log.anna)
    log.revoke(log.anna, reason="again")


def _foreign_leaf_admitted(log: MemoryLog, world: History) -> None:
    carl = MemoryLog().party(owner_uri("grove", "carl"), "signing")
    log.admit(carl)


def _purpose_mislabelled(log: MemoryLog, world: History) -> None:
    carl = log.party(owner_uri("grove", "carl"), "transport")
    log.admit(carl, certificates=(carl.records[0].model_copy(update={"purpose": "signing"}),))


def _record_relabelled(log: MemoryLog, world: History) -> None:
    carl = log.party(owner_uri("grove", "carl"), "signing")
    stranger = log.party(owner_uri("grove", "dora"), "signing")
    log.admit(carl, certificates=(record("signing", carl.uri, stranger.certificate),))


def _published_twice(log: MemoryLog, world: History) -> None:
    raw = log.documents[world.anchor]
    log.append("anchor-published", "anchor/base", log.bundle(raw, log.operator, {"manifest.json": world.anchor, "x": "3" * 64}))


def _no_manifest(log: MemoryLog, world: History) -> None:
    log.append("anchor-published", "anchor/base", log.bundle(b"", log.operator, {"x": "3" * 64}))


def _missing_manifest(log: MemoryLog, world: History) -> None:
    log.append("anchor-published", "anchor/base", log.bundle(b"", log.operator, {"manifest.json": "3" * 64}))


def _statement_as_manifest(log: MemoryLog, world: History) -> None:
    log.append("anchor-published", "anchor/base", log.documents[json.loads(log.revoke(log.anna))["document"]])
    del log.entries[-2]


def _bundle_as_statement(log: MemoryLog, world: History) -> None:
    log.accept(log.ben, "elm", world.anchor)
    digest = json.loads(log.entries.pop())["document"]
    log.append_raw("owner-revoked", "owner/ben", digest)


def _under(kind: str, subject: str, append: Break) -> Break:
    """Log a good document under another kind than its own."""

    def broken(log: MemoryLog, world: History) -> None:
        append(log, world)
        log.append_raw(kind, subject, json.loads(log.entries.pop())["document"])

    return broken


def _anchor_as_expert(log: MemoryLog, world: History) -> None:
    log.publish(licence="other")
    digest = json.loads(log.entries.pop())["document"]
    log.append_raw("expert-accepted", "expert/base@1", digest)


def _withdrawn_then_new_version(log: MemoryLog, world: History) -> None:
    log.accept(log.anna, "oak", world.anchor, version=2, supersedes=world.oak)


def _withdrawn_twice(log: MemoryLog, world: History) -> None:
    log.withdraw(log.anna, "oak", world.oak, reason="again")


def _slots(log: MemoryLog, world: History, *, turn: bool = False) -> tuple[object, ...]:
    moss, fern = (log.anna, "moss", world.moss2, 2), (log.ben, "fern", world.fern, 1)
    order = (fern, moss) if turn else (moss, fern)
    return tuple(log.slot(number, *each) for number, each in enumerate(order, start=1))


def _expired_slot(log: MemoryLog, world: History) -> None:
    log.accept(log.ben, "ash", world.anchor, not_after=format_time(log.now + timedelta(minutes=2)))
    digest = next(iter(set(log.documents) - set(world.log.documents) - {json.loads(log.entries[-1])["document"]}))
    log.now += timedelta(minutes=2)
    log.assemble(world.anchor, log.slot(1, log.ben, "ash", digest))


def _slot_of_other_anchor(log: MemoryLog, world: History) -> None:
    other = log.publish(licence="other", name="other", subject="anchor/other")
    log.assemble(other, *_slots(log, world))


BASE = "e" * 64
"""Digest of the one model of the history."""


def _tuned_twice(log: MemoryLog, _world: History) -> None:
    log.tune(BASE)
    log.tune(BASE, "moss")


def _tuned_after_withdrawal(log: MemoryLog, world: History) -> None:
    log.withdraw(log.ben, "fern", world.fern)
    log.tune(BASE, "moss")


def _tuned_after_supersession(log: MemoryLog, world: History) -> None:
    log.accept(log.anna, "moss", world.anchor, version=3, supersedes=world.moss2)
    log.tune(BASE)


def _tuned_from_a_tuned_one(log: MemoryLog, _world: History) -> None:
    log.tune(BASE)
    log.tune("f" * 64, manifest="d" * 64, subject=f"model/{'d' * 16}")


def _two_signing_keys(log: MemoryLog, _world: History) -> None:
    uri = owner_uri("grove", "carl")
    log.admit(log.party(uri, "signing"), certificates=log.party(uri, "signing").records + log.party(uri, "signing").records)


def _rotated(log: MemoryLog, **change: Any) -> Party:
    new = log.party(log.anna.uri, "signing", "transport")
    log.rotate(log.anna, new, **change)
    return new


def _old_certificate_after_rotation(log: MemoryLog, world: History) -> None:
    _rotated(log)
    log.withdraw(log.anna, "moss", world.moss2, 2)


def _renewed_after_revocation(log: MemoryLog, _world: History) -> None:
    log.revoke(log.anna)
    log.renew(_again(log, log.anna))


def _rotated_after_revocation(log: MemoryLog, _world: History) -> None:
    log.revoke(log.anna)
    _rotated(log)


def _stranger_rotates(log: MemoryLog, _world: History) -> None:
    uri = owner_uri("grove", "carl")
    log.rotate(log.party(uri, "signing"), log.party(uri, "signing"))


def _server_of(log: MemoryLog) -> Party:
    server = log.party("elmgrove://grove/server", "server")
    return Party(log.operator.uri, server.key, server.certificate, server.records)


def _rotated_by_itself(log: MemoryLog, _world: History) -> None:
    new = log.party(log.anna.uri, "signing")
    log.rotate(new, new)


def _rotated_by_replaced_key(log: MemoryLog, _world: History) -> None:
    _rotated(log)
    log.rotate(log.anna, log.party(log.anna.uri, "signing"))


def _authorised_for_another(log: MemoryLog, _world: History) -> None:
    _rotated(log, authorisation=b64encode(log.authorise(log.ben, log.party(log.ben.uri, "signing"))))


def _authorised_twice(log: MemoryLog, _world: History) -> None:
    """The transport key goes from the first to the second and is to go back to the first, by a word the owner said long ago."""
    first, second = log.party(log.anna.uri, "transport"), log.party(log.anna.uri, "transport")
    said = b64encode(log.authorise(log.anna, first))
    log.rotate(log.anna, first, authorisation=said)
    log.rotate(log.anna, second)
    log.rotate(log.anna, first, authorisation=said)


def _withdrawal_authorises(log: MemoryLog, world: History) -> None:
    log.withdraw(log.anna, "moss", world.moss2, 2)
    said = log.documents[json.loads(log.entries.pop())["document"]]
    _rotated(log, authorisation=b64encode(said))


def _other_keys_certified(log: MemoryLog, _world: History) -> None:
    named, other = log.party(log.anna.uri, "signing"), log.party(log.anna.uri, "signing")
    log.rotate(log.anna, named, certificates=other.records)


def _one_key_not_certified(log: MemoryLog, _world: History) -> None:
    new = log.party(log.anna.uri, "signing", "transport")
    log.rotate(log.anna, new, certificates=new.records[:1])


def _two_keys_authorised(log: MemoryLog, _world: History) -> None:
    new, other = log.party(log.anna.uri, "signing"), log.party(log.anna.uri, "signing")
    keys = tuple(KeyRecord(purpose="signing", key=keys_in_force(each.records)["signing"]) for each in (new, other))
    log.rotate(log.anna, new, authorisation=b64encode(log.authorise(log.anna, new, keys=keys)))


BROKEN: list[tuple[str, Break, str]] = [
    ("1 not canonical", _not_canonical, "canonical encoding"),
    ("1 no JSON", lambda log, _: log.entries.append(b"\x00"), "malformed"),
    ("1 time goes back", _earlier, "time is before"),
    ("2 second founding", lambda log, _: log.found(), "founded by entry 0"),
    ("3 document missing", _missing_document, "no document"),
    ("3 document changed", _changed_document, "does not have its digest"),
    ("3 logged before", _logged_before, "logged before"),
    ("4 certificate expired", _expired_certificate, "had expired"),
    ("4 foreign root", _foreign_root, "not issued by this consortium"),
    ("4 signature broken", _broken_signature, "signature does not hold"),
    ("4 transport certificate", _transport_certificate_signs, "not issued for signing"),
    ("4 statement where a bundle belongs", _statement_as_manifest, "The envelope holds"),
    ("4 bundle where a statement belongs", _bundle_as_statement, "The envelope holds"),
    ("4 other consortium", lambda log, _: log.revoke(log.anna, consortium="heath"), "another consortium than its signer"),
    ("5 owner admits", lambda log, _: log.admit(log.anna, by=log.anna), "only the operator"),
    ("5 owner revokes", lambda log, _: log.revoke(log.ben, by=log.anna), "only the operator"),
    ("5 owner publishes", lambda log, _: log.publish(by=log.anna, licence="x"), "only the operator"),
    ("5 owner assembles", lambda log, w: log.assemble(w.anchor, by=log.anna), "only the operator"),
    (
        "5 operator's unlogged certificate",
        lambda log, _: log.revoke(log.anna, by=log.party(log.operator.uri, "signing")),
        "not the logged one",
    ),
    ("5 operator offers", lambda log, w: log.accept(log.anna, "elm", w.anchor, by=log.operator), "signed by someone else"),
    ("5 other owner offers", lambda log, w: log.accept(log.anna, "elm", w.anchor, by=log.ben), "signed by someone else"),
    ("5 never admitted", lambda log, w: log.accept(log.party(owner_uri("grove", "carl"), "signing"), "elm", w.anchor), "never admitted"),
    ("5 after revocation", _after_revocation, "its owner was revoked"),
    ("5 unlisted certificate", _unlisted_owner_certificate, "not one that the log lists"),
    (
        "5 owner of another consortium",
        lambda log, w: log.accept(log.party("elmgrove://heath/owners/anna", "signing"), "elm", w.anchor),
        "not an owner of this consortium",
    ),
    ("5 operator as owner", lambda log, w: log.accept(log.operator, "elm", w.anchor), "not an owner of this consortium"),
    ("6 subject of a revocation", lambda log, _: log.revoke(log.anna, subject="owner/ben"), "subject should be owner/anna"),
    (
        "6 subject of an admission",
        lambda log, _: log.admit(log.party(owner_uri("grove", "carl"), "signing"), subject="owner/dora"),
        "subject should be owner/carl",
    ),
    ("6 subject of an anchor", lambda log, _: log.publish(licence="x", subject="anchor/other"), "subject should be anchor/base"),
    (
        "6 subject of an expert",
        lambda log, w: log.accept(log.anna, "elm", w.anchor, subject="expert/elm@2"),
        "subject should be expert/elm@1",
    ),
    ("6 subject of a withdrawal", lambda log, w: log.withdraw(log.ben, "fern", w.fern, 2), "subject should be expert/fern@1"),
    ("6 subject of a model", lambda log, w: log.assemble(w.anchor, *_slots(log, w), subject="model/other"), "subject should be model/e"),
    ("7 admitted twice", lambda log, _: log.admit(log.ben, created="2026-01-01T00:00:00Z"), "admitted before"),
    ("7 foreign leaf", _foreign_leaf_admitted, "not issued by this consortium"),
    ("7 purpose mislabelled", _purpose_mislabelled, "not issued for signing"),
    (
        "7 certificate of another owner",
        lambda log, _: log.admit(log.party(owner_uri("grove", "carl"), "signing"), certificates=log.ben.records),
        "not the owner's",
    ),
    ("7 record relabelled", _record_relabelled, "for another identity"),
    ("7 server certificate", lambda log, _: log.admit(log.party(owner_uri("grove", "carl"), "server")), "not the owner's"),
    ("7 operator admitted", lambda log, _: log.admit(log.operator), "not an owner of this consortium"),
    ("7 revocation as admission", _under("owner-admitted", "owner/ben", lambda log, _: log.revoke(log.ben)), "not an admission"),
    (
        "7 admission as revocation",
        _under("owner-revoked", "owner/carl", lambda log, _: log.admit(log.party(owner_uri("grove", "carl"), "signing"))),
        "not a revocation",
    ),
    ("7 revoked twice", _revoked_twice, "revoked already"),
    ("7 stranger revoked", lambda log, _: log.revoke(log.party(owner_uri("grove", "carl"), "signing")), "never admitted"),
    ("8 published twice", _published_twice, "published before"),
    ("8 other consortium", lambda log, _: log.publish(consortium="heath"), "of another consortium"),
    ("8 no manifest", _no_manifest, "does not cover a manifest"),
    ("8 manifest missing", _missing_manifest, "no document"),
    ("9 unknown anchor", lambda log, _: log.accept(log.anna, "elm", "b" * 64), "never published"),
    (
        "9 name of another owner",
        lambda log, w: log.accept(log.ben, "moss", w.anchor, version=3, supersedes=w.moss2),
        "belongs to another owner",
    ),
    ("9 begins with version 2", lambda log, w: log.accept(log.ben, "elm", w.anchor, version=2, supersedes=w.fern), "must be version 1"),
    ("9 same version again", lambda log, w: log.accept(log.anna, "moss", w.anchor, version=2, supersedes=w.moss1), "does not follow"),
    ("9 version skipped", lambda log, w: log.accept(log.anna, "moss", w.anchor, version=4, supersedes=w.moss2), "does not follow"),
    ("9 supersedes an older one", lambda log, w: log.accept(log.anna, "moss", w.anchor, version=3, supersedes=w.moss1), "does not follow"),
    ("9 replay of version 1", lambda log, w: log.accept(log.anna, "moss", w.anchor, licence="x"), "does not follow"),
    ("9 after withdrawal", _withdrawn_then_new_version, "was withdrawn"),
    ("9 expired already", lambda log, w: log.accept(log.anna, "elm", w.anchor, not_after="2026-01-01T00:00:00Z"), "expired already"),
    ("9 other consortium", lambda log, w: log.accept(log.anna, "elm", w.anchor, consortium="heath"), "of another consortium"),
    ("9 anchor as expert", _anchor_as_expert, "ExpertManifest"),
    ("10 revocation as withdrawal", _under("expert-withdrawn", "owner/ben", lambda log, _: log.revoke(log.ben)), "not a withdrawal"),
    (
        "11 withdrawal as assembly",
        _under("model-assembled", "model/e", lambda log, w: log.withdraw(log.ben, "fern", w.fern)),
        "not an assembly",
    ),
    ("10 by another owner", lambda log, w: log.withdraw(log.ben, "moss", w.moss2, 2), "not its signer's"),
    ("10 for another owner", lambda log, w: log.withdraw(log.anna, "moss", w.moss2, 2, by=log.ben), "signed by someone else"),
    ("10 by the operator", lambda log, w: log.withdraw(log.anna, "moss", w.moss2, 2, by=log.operator), "signed by someone else"),
    ("10 unknown expert", lambda log, w: log.withdraw(log.anna, "elm", w.moss2), "not its signer's"),
    ("10 older version", lambda log, w: log.withdraw(log.anna, "moss", w.moss1, 2), "does not name the newest"),
    ("10 twice", _withdrawn_twice, "not in force"),
    ("11 other log size", lambda log, w: log.assemble(w.anchor, *_slots(log, w), log_size=9), "another size of the log"),
    ("11 unknown anchor", lambda log, w: log.assemble("b" * 64, *_slots(log, w)), "never published"),
    ("11 top-k", lambda log, w: log.assemble(w.anchor, *_slots(log, w), top_k=4), "top-k exceeds"),
    ("11 superseded slot", lambda log, w: log.assemble(w.anchor, log.slot(1, log.anna, "moss", w.moss1)), "not the logged one"),
    ("11 withdrawn slot", lambda log, w: log.assemble(w.anchor, log.slot(1, log.anna, "oak", w.oak)), "is not in force"),
    ("11 expired slot", _expired_slot, "is not in force"),
    ("11 unknown slot", lambda log, w: log.assemble(w.anchor, log.slot(1, log.anna, "elm", w.oak)), "not the logged one"),
    ("11 slot of another owner", lambda log, w: log.assemble(w.anchor, log.slot(1, log.ben, "moss", w.moss2, 2)), "not the logged one"),
    ("11 slot numbers", lambda log, w: log.assemble(w.anchor, log.slot(2, log.ben, "fern", w.fern)), "not numbered in order"),
    ("11 slot order", lambda log, w: log.assemble(w.anchor, *_slots(log, w, turn=True)), "order of their first versions"),
    (
        "11 one expert twice",
        lambda log, w: log.assemble(w.anchor, *(log.slot(n, log.ben, "fern", w.fern) for n in (1, 2))),
        "order of their first versions",
    ),
    ("11 slot of another anchor", _slot_of_other_anchor, "for another anchor"),
    ("5 owner tunes", lambda log, _: log.tune(BASE, by=log.anna), "only the operator"),
    ("6 subject of a tuning", lambda log, _: log.tune(BASE, subject="model/other"), "subject should be model/f"),
    ("12 withdrawal as tuning", _under("router-tuned", "model/f", lambda log, w: log.withdraw(log.ben, "fern", w.fern)), "not a tuning"),
    ("12 other log size", lambda log, _: log.tune(BASE, log_size=9), "another size of the log"),
    ("12 unknown model", lambda log, _: log.tune("b" * 64), "assembly was never logged"),
    ("12 from a tuned model", _tuned_from_a_tuned_one, "assembly was never logged"),
    ("12 the same model", lambda log, _: log.tune(BASE, manifest=BASE, subject=f"model/{BASE[:16]}"), "was logged before"),
    ("12 twice", _tuned_twice, "was logged before"),
    ("12 after a withdrawal", _tuned_after_withdrawal, "expert fern is not in force"),
    ("12 after a new version", _tuned_after_supersession, "expert moss is not the logged one"),
    ("12 proxies of a stranger", lambda log, _: log.tune(BASE, "moss", "oak"), "an expert that the model does not hold"),
    ("12 proxies out of order", lambda log, _: log.tune(BASE, "fern", "moss"), "one per expert in the order of their slots"),
    ("12 proxies twice", lambda log, _: log.tune(BASE, "fern", "fern"), "one per expert in the order of their slots"),
    ("7 two keys for one purpose", _two_signing_keys, "signing certificate is for another key"),
    ("5 owner renews", lambda log, _: log.renew(_again(log, log.anna), by=log.anna), "only the operator"),
    ("5 owner rotates", lambda log, _: log.rotate(log.anna, log.party(log.anna.uri, "signing"), by=log.anna), "only the operator"),
    ("5 old certificate of the owner", _old_certificate_after_rotation, "not one that the log lists"),
    ("6 subject of a renewal", lambda log, _: log.renew(_again(log, log.anna), subject="owner/ben"), "subject should be owner/anna"),
    (
        "6 subject of a rotation",
        lambda log, _: log.rotate(log.operator, log.party(log.operator.uri, "signing"), subject="owner/anna"),
        "subject should be consortium/grove",
    ),
    ("13 rotation as renewal", _under("certificates-renewed", "owner/anna", lambda log, _: _rotated(log)), "not a renewal"),
    (
        "13 key the owner never named",
        lambda log, _: log.renew(log.party(log.anna.uri, "signing")),
        "signing certificate is for another key",
    ),
    ("13 operator's new key", lambda log, _: log.renew(log.party(log.operator.uri, "signing")), "signing certificate is for another key"),
    ("13 stranger", lambda log, _: log.renew(log.party(owner_uri("grove", "carl"), "signing")), "never admitted, or is revoked"),
    ("13 after revocation", _renewed_after_revocation, "never admitted, or is revoked"),
    ("13 certificate of another", lambda log, _: log.renew(log.anna, certificates=log.ben.records), "not the owner's"),
    ("13 owner's server", lambda log, _: log.renew(log.party(log.anna.uri, "server", key=log.anna.key)), "not the owner's"),
    (
        "13 owner's certificate as the operator's",
        lambda log, _: log.renew(log.operator, certificates=log.anna.records),
        "not the operator's",
    ),
    (
        "13 the server as holder",
        lambda log, _: log.renew(log.party("elmgrove://grove/server", "server")),
        "not an owner of this consortium",
    ),
    ("13 purpose it has no key for", lambda log, _: log.renew(_server_of(log)), "has no server key"),
    ("13 foreign leaf", lambda log, _: log.renew(MemoryLog().party(log.anna.uri, "signing")), "not issued by this consortium"),
    ("14 renewal as rotation", _under("key-rotated", "owner/anna", lambda log, _: log.renew(_again(log, log.anna))), "not a rotation"),
    (
        "14 authorised by another owner",
        lambda log, _: log.rotate(log.ben, log.party(log.anna.uri, "signing")),
        "not signed with",
    ),
    (
        "14 authorised by the operator",
        lambda log, _: log.rotate(log.operator, log.party(log.anna.uri, "signing")),
        "not signed with the signing key",
    ),
    ("14 authorised by the new key", _rotated_by_itself, "not signed with the signing key"),
    ("14 authorised by a replaced key", _rotated_by_replaced_key, "not signed with the signing key"),
    ("14 authorisation for another holder", _authorised_for_another, "by another holder"),
    ("14 authorisation used twice", _authorised_twice, "was used before"),
    ("14 no authorisation", lambda log, _: _rotated(log, authorisation="AAAA"), "malformed"),
    ("14 withdrawal as authorisation", _withdrawal_authorises, "does not name new keys"),
    ("14 other keys than authorised", _other_keys_certified, "signing certificate is for another key"),
    ("14 one key not certified", _one_key_not_certified, "not for the keys it names"),
    ("14 same key again", lambda log, _: log.rotate(log.anna, _again(log, log.anna)), "the one its holder has already"),
    ("14 two keys for one purpose", _two_keys_authorised, "two keys for one purpose"),
    ("14 purpose it has no key for", lambda log, _: log.rotate(log.operator, _server_of(log)), "has no server key to replace"),
    ("14 after revocation", _rotated_after_revocation, "never admitted, or is revoked"),
    ("14 stranger", _stranger_rotates, "never admitted, or is revoked"),
]


def test_every_rule_is_broken_once() -> None:
    written = set(re.findall(r"^ *(\d+)\. ", fold_module.__doc__ or "", re.MULTILINE))
    assert written == {str(number) for number in range(1, len(written) + 1)}
    assert written == {name.split()[0] for name, *_ in BROKEN} | {"15"}, "rule 15 is broken in test_fold_witness.py"


def test_a_tuned_router_is_a_fact_beside_its_model(world: History, state: ConsortiumState) -> None:
    log = world.log.fork()
    log.tune(BASE, "moss", "fern")
    after = fold(log.entries[10:], log.fetch, log.root, state=state)
    [tuned] = after.tuned
    assert (tuned.digest, tuned.index, tuned.tuned_at) == ("f" * 64, 10, log.now)
    assert (tuned.base,) == after.models == state.models
    assert [use.expert for use in tuned.statement.proxies] == ["moss", "fern"]
    assert state.tuned == ()


@pytest.mark.parametrize(("broken", "reason"), [pytest.param(each, reason, id=name) for name, each, reason in BROKEN])
def test_broken_rule_is_refused_at_its_index(world: History, state: ConsortiumState, broken: Break, reason: str) -> None:
    log = world.log.fork()
    broken(log, world)
    with pytest.raises(LogError, match=rf"^Log entry {len(log.entries) - 1}: .*{reason}"):
        fold(log.entries[10:], log.fetch, log.root, state=state)


STATEMENT_KINDS = {
    "consortium-founded": "consortium/grove",
    "owner-admitted": "owner/ben",
    "owner-revoked": "owner/ben",
    "certificates-renewed": "owner/ben",
    "key-rotated": "owner/ben",
    "expert-withdrawn": "expert/moss@2",
    "model-assembled": "model/e",
    "router-tuned": "model/f",
}


@pytest.mark.parametrize("kind", STATEMENT_KINDS)
def test_a_statement_cannot_be_logged_as_another_kind(world: History, state: ConsortiumState, kind: str) -> None:
    log = world.log.fork()
    log.revoke(log.ben)
    if kind == "owner-revoked":
        log.entries.pop()
        log.admit(log.ben, created="2026-01-01T00:00:00Z")
    document = json.loads(log.entries.pop())["document"]
    log.append_raw(kind, STATEMENT_KINDS[kind], document)
    begun, entries = (None, log.entries[10:]) if kind == "consortium-founded" else (state, log.entries[10:])
    with pytest.raises(LogError, match="its document is not a"):
        fold(entries, log.fetch, log.root, state=begun)


def _admission_as_founding(log: MemoryLog) -> None:
    log.admit(log.anna)
    log.append_raw("consortium-founded", "consortium/grove", json.loads(log.entries.pop())["document"])


FOUNDING: list[tuple[str, Callable[[MemoryLog], object], str]] = [
    ("begins otherwise", lambda log: log.admit(log.anna), "founded by entry 0"),
    ("admission as founding", _admission_as_founding, "not a founding"),
    ("other root", lambda log: log.found(root="AAAA"), "another root certificate"),
    ("signed by an owner", lambda log: log.found(by=log.anna), "only the operator"),
    ("own certificate not listed", lambda log: log.found(by=log.party(log.operator.uri, "signing")), "does not list the certificate"),
    ("foreign certificate listed", lambda log: log.found(certificates=MemoryLog().operator.records), "not issued by this consortium"),
    ("subject", lambda log: log.found(subject="consortium/heath"), "subject should be consortium/grove"),
    ("log key's id", lambda log: log.found(log_key=log.vkey.replace("+", "x+", 1)), "does not follow from its name"),
    ("log key of another log", lambda log: log.found(log_key=MemoryLog("heath").vkey), "not one for this consortium's checkpoints"),
    (
        "owner's certificate listed",
        lambda log: log.found(certificates=log.operator.records + log.anna.records),
        "not the operator's or the",
    ),
]


@pytest.mark.parametrize(("begin", "reason"), [pytest.param(each, reason, id=name) for name, each, reason in FOUNDING])
def test_founding_is_refused(begin: Callable[[MemoryLog], object], reason: str) -> None:
    log = MemoryLog()
    begin(log)
    with pytest.raises(LogError, match=rf"^Log entry 0: .*{reason}"):
        fold(log.entries, log.fetch, log.root)


def test_founding_may_list_the_server() -> None:
    log = MemoryLog()
    log.found(certificates=log.operator.records + log.party("elmgrove://grove/server", "server").records)
    assert [each.purpose for each in fold(log.entries, log.fetch, log.root).certificates] == ["signing", "server"]


def test_auditor_with_another_root_refuses_the_whole_log(world: History) -> None:
    with pytest.raises(LogError, match=r"Log entry 0: .*not issued by this consortium"):
        fold(world.log.entries, world.log.fetch, MemoryLog().root)
