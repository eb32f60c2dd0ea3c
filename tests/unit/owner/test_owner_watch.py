"""Reading the log for certificates in our name, from coordinators that hide, change or withhold entries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from common.errors import ElmgroveError, LogError, ProtocolError, SignerError
from common.translog.checkpoint import Checkpoint, log_origin
from common.translog.merkle import leaf_hash, root_hash
from owner_client.config import CoordinatorAddress, Home, OwnerConfig, Pinned
from owner_client.daemon.client import Coordinator
from owner_client.daemon.session import Session
from owner_client.daemon.watch import certificates_in_log, watch_log
from tests.unit.ledger.memory_log import MemoryLog


@dataclass
class Shown:
    """What a coordinator shows of a log; ``change`` turns the true entries into those it shows."""

    log: MemoryLog
    change: Callable[[list[bytes]], list[bytes]] = list
    at_once: int = 3
    asked: list[int] = field(default_factory=list)

    def entries(self, start: int, limit: int) -> list[bytes]:
        self.asked.append(start)
        return self.change(self.log.entries)[start : start + min(limit, self.at_once)]

    def document(self, digest: str) -> bytes:
        return self.log.fetch(digest)


def _checkpoint(log: MemoryLog) -> Checkpoint:
    return Checkpoint(log_origin(log.name), len(log.entries), root_hash([leaf_hash(entry) for entry in log.entries]))


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.found()
    log.admit(log.anna)
    log.admit(log.ben)
    log.renew(log.party(log.anna.uri, "signing", key=log.anna.key))
    log.revoke(log.ben)
    return log


@pytest.fixture
def session(tmp_path: Path, log: MemoryLog) -> Session:
    (tmp_path / "log").mkdir()
    config = OwnerConfig(
        consortium=log.name,
        owner="anna",
        coordinator=CoordinatorAddress(host="localhost", port=1),
        pinned=Pinned(root_sha256=log.root.fingerprint, log_key=log.vkey),
    )
    return Session(Home(tmp_path), config, log.root)


def _watch(session: Session, shown: Shown) -> list[tuple[int, str, str]]:
    watch_log(session, cast("Coordinator", shown), _checkpoint(shown.log))
    return [(each.index, each.kind, each.purpose) for each in certificates_in_log(session.home)]


EXPECTED = [(1, "owner-admitted", "signing"), (1, "owner-admitted", "transport"), (3, "certificates-renewed", "signing")]


def test_certificates_in_our_name_are_found_and_each_entry_is_read_once(session: Session, log: MemoryLog) -> None:
    shown = Shown(log)
    assert _watch(session, shown) == EXPECTED
    assert shown.asked == [0, 3]
    log.rotate(log.anna, log.party(log.anna.uri, "transport"))
    assert _watch(session, shown) == [*EXPECTED, (5, "key-rotated", "transport")]
    assert shown.asked == [0, 3, 5]
    assert _watch(session, shown)[-1][0] == 5
    assert shown.asked == [0, 3, 5]


def _hide(entries: list[bytes]) -> list[bytes]:
    """The renewal is shown as something that does not concern us."""
    entry = json.loads(entries[3]) | {"subject": "owner/ben"}
    return [*entries[:3], json.dumps(entry, separators=(",", ":")).encode(), *entries[4:]]


LIES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], type[ElmgroveError]]] = {
    "one entry is shown as another's": (_hide, LogError),
    "two entries change places": (lambda entries: [*entries[:2], entries[3], entries[2], entries[4]], LogError),
    "one entry is left out": (lambda entries: [*entries[:3], entries[4], entries[4]], LogError),
    "the end is withheld": (lambda entries: entries[:3], ProtocolError),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_coordinator_cannot_hide_an_entry_of_the_log_it_signed(session: Session, log: MemoryLog, lie: str) -> None:
    change, error = LIES[lie]
    with pytest.raises(error):
        _watch(session, Shown(log, change))
    assert certificates_in_log(session.home) == (), "nothing is believed of an answer that does not hold"
    assert _watch(session, Shown(log)) == EXPECTED


def test_an_entry_in_our_name_that_the_operator_did_not_sign_is_refused(session: Session, log: MemoryLog) -> None:
    log.renew(log.anna, by=log.ben)
    with pytest.raises(SignerError):
        _watch(session, Shown(log))


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"schema":"elmgrove.watch/v1","size":4,"peaks":[],"certificates":[]}'])
def test_what_was_kept_may_be_lost_or_damaged(session: Session, log: MemoryLog, damage: bytes) -> None:
    _watch(session, Shown(log))
    session.home.watch.write_bytes(damage)
    assert _watch(session, Shown(log)) == EXPECTED


def test_a_shorter_log_than_was_read_is_read_anew(session: Session, log: MemoryLog) -> None:
    """That the log became shorter is the business of following it; what is kept here must not hide it."""
    _watch(session, Shown(log))
    del log.entries[3:]
    assert _watch(session, Shown(log)) == EXPECTED[:2]
