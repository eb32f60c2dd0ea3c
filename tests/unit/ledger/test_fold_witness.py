"""Witness keys in the fold: registered by their owner alone, under the owner's name, replaced by a later one, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import LogError
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState
from common.translog.cosignature import witness_name, witness_vkey
from common.translog.note import ALG_COSIGNATURE, encode_vkey, parse_vkey
from common.trust.keys import generate_log_key
from tests.unit.ledger.memory_log import MemoryLog

ANNA = witness_name("grove", "anna")


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.found()
    log.admit(log.anna)
    log.admit(log.ben)
    return log


def folded(log: MemoryLog) -> ConsortiumState:
    return fold(log.entries, log.fetch, log.root)


def test_a_registered_key_is_the_owners_until_the_next(log: MemoryLog) -> None:
    assert folded(log).owners["anna"].witness_key is None
    for key in (witness_vkey(ANNA, generate_log_key()), witness_vkey(ANNA, generate_log_key())):
        log.witness(log.anna, key=key)
        assert folded(log).owners["anna"].witness_key == key
    assert folded(log).owners["ben"].witness_key is None


def _same_key(log: MemoryLog) -> None:
    key = generate_log_key()
    log.witness(log.anna, key=witness_vkey(ANNA, key))
    log.witness(log.ben, key=witness_vkey(witness_name("grove", "ben"), key))


def _log_key(log: MemoryLog) -> None:
    key = Ed25519PublicKey.from_public_bytes(parse_vkey(log.vkey).public_bytes)
    log.witness(log.anna, key=encode_vkey(ANNA, key, algorithm=ALG_COSIGNATURE))


def _revoked(log: MemoryLog) -> None:
    log.revoke(log.anna)
    log.witness(log.anna)


def _as_another_kind(log: MemoryLog) -> None:
    log.revoke(log.ben)
    log.append_raw("witness-registered", "owner/ben", json.loads(log.entries.pop())["document"])


REFUSED: dict[str, tuple[Callable[[MemoryLog], object], str]] = {
    "by another owner": (lambda log: log.witness(log.anna, by=log.ben), "someone else"),
    "by the operator": (lambda log: log.witness(log.anna, by=log.operator), "someone else"),
    "another owner's name": (
        lambda log: log.witness(log.anna, key=witness_vkey(witness_name("grove", "ben"), generate_log_key())),
        "not one for this owner's",
    ),
    "a log's kind of key": (lambda log: log.witness(log.anna, key=encode_vkey(ANNA, generate_log_key().public_key())), "not one for"),
    "wrong key id": (lambda log: log.witness(log.anna, key=witness_vkey("x" + ANNA, generate_log_key())[1:]), "does not follow"),
    "another owner's key": (_same_key, "another's"),
    "the log's key": (_log_key, "another's"),
    "other subject": (lambda log: log.witness(log.anna, subject="owner/ben"), "subject should be owner/anna"),
    "other consortium": (lambda log: log.witness(log.anna, consortium="heath"), "another consortium"),
    "revoked owner": (_revoked, "was revoked"),
    "another statement": (_as_another_kind, "not a registration"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_other_registration_is_refused(log: MemoryLog, case: str) -> None:
    breaks, reason = REFUSED[case]
    breaks(log)
    with pytest.raises(LogError, match=rf"^Log entry {len(log.entries) - 1}: .*{reason}"):
        folded(log)
