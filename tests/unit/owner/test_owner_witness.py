"""Our client as a witness of a real coordinator's log: it registers once, cosigns what it persisted, and is not misled by the answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import LogInconsistentError, NotFoundError, NotLoggedError, SignatureError, UnavailableError, UsageError
from common.rpc.v1 import elmgrove_pb2 as pb
from common.translog.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from common.translog.cosignature import verify_cosignature
from common.trust.keys import private_key_pem
from coordinator.service.encode import encode_receipt
from coordinator.usecases.witness import publish_cosignature, register_witness
from owner_client.config import CoordinatorAddress, Home, OwnerConfig, Pinned
from owner_client.daemon.sync import ConsistencyAnswer, SeenCheckpoint, follow_log, last_checkpoint, remember_first
from owner_client.daemon.witness import Witness
from owner_client.keys.keystore import KeyStore
from tests.support.coordinator_world import CONSORTIUM, Grove, Member


@dataclass
class Wire:
    """The coordinator's log by its use cases, with knobs for what a bad wire or a bad coordinator does."""

    grove: Grove
    owner: str
    refuse: type[Exception] | None = None
    grow_before_cosign: int = 0
    lose_answer: bool = False
    forge: bytes | None = None
    said: list[str] = field(default_factory=list)

    def consistency(self, old_size: int) -> ConsistencyAnswer:
        view = self.grove.coordinator.ledger.view
        view.refresh()
        if self.forge is not None:
            return ConsistencyAnswer(self.forge, ())
        try:
            proof, note = view.consistency(old_size)
        except UsageError:
            return ConsistencyAnswer(view.checkpoint, ())
        return ConsistencyAnswer(note, proof)

    def register_witness(self, envelope: bytes) -> pb.Receipt:
        self._say("register")
        receipt = register_witness(self.grove.coordinator, self.grove.owner(self.owner), envelope)
        if self.lose_answer:
            raise UnavailableError
        return encode_receipt(receipt)

    def cosign(self, size: int, line: str) -> bool:
        self._say("cosign")
        if self.grow_before_cosign:
            self.grove.join(f"late-{self.grow_before_cosign}")
            self.grow_before_cosign -= 1
        return publish_cosignature(self.grove.coordinator, self.grove.owner(self.owner), size, line)

    def _say(self, what: str) -> None:
        self.said.append(what)
        if self.refuse is not None:
            raise self.refuse


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    grove = Grove(tmp_path / "grove")
    yield grove
    grove.close()


@dataclass
class Anna:
    home: Home
    config: OwnerConfig
    member: Member
    opened: int = 0

    def witness(self) -> Witness:
        return Witness(self.home, self.config, KeyStore(self.home.keys).open_witness(None), self.signer)

    def signer(self):  # type: ignore[no-untyped-def]
        self.opened += 1
        return self.member.signing_key, self.member.signing_certificate

    def sync(self, wire: Wire) -> SeenCheckpoint:
        return self.witness().attest(wire, follow_log(self.home, self.config, wire))


@pytest.fixture
def anna(grove: Grove, tmp_path: Path) -> Anna:
    member = grove.join("anna")
    home = Home(tmp_path / "anna")
    home.keys.mkdir(parents=True)
    (home.keys / "signing.pem").write_bytes(private_key_pem(member.signing_key, None))
    (home.keys / "signing.pem").chmod(0o600)
    pinned = Pinned(root_sha256=grove.coordinator.root.fingerprint, log_key=member.log_key)
    config = OwnerConfig(consortium=CONSORTIUM, owner="anna", coordinator=CoordinatorAddress(host="localhost", port=1), pinned=pinned)
    remember_first(home.path, grove.coordinator.ledger.view.checkpoint)
    return Anna(home, config, member)


def published(grove: Grove) -> bytes:
    return (grove.home.log / "checkpoint").read_bytes()


def test_every_sync_leaves_our_cosignature_and_registers_once(grove: Grove, anna: Anna) -> None:
    wire = Wire(grove, "anna")
    seen = anna.sync(wire)
    assert seen.checkpoint == verify_checkpoint(published(grove), anna.config.pinned.log_key)
    assert verify_cosignature(published(grove), anna.witness().vkey)
    grove.join("ben")
    anna.sync(wire)
    assert verify_cosignature(published(grove), anna.witness().vkey)
    assert (wire.said, anna.opened) == (["register", "cosign", "cosign"], 1)
    assert grove.owner("anna").witness_key == anna.witness().vkey
    assert (anna.home.keys / "witness.pem").stat().st_mode & 0o077 == 0


def test_a_log_that_grows_meanwhile_is_followed_and_cosigned_again(grove: Grove, anna: Anna) -> None:
    wire = Wire(grove, "anna", grow_before_cosign=2)
    assert anna.sync(wire).checkpoint.size == grove.coordinator.ledger.state().size
    assert wire.said == ["register", "cosign", "cosign", "cosign"]
    assert verify_cosignature(published(grove), anna.witness().vkey)
    assert anna.sync(Wire(grove, "anna", grow_before_cosign=9)).checkpoint.size, "it is given up after a few times"


def test_a_lost_answer_is_finished_with_the_same_registration(grove: Grove, anna: Anna) -> None:
    with pytest.raises(UnavailableError):
        anna.sync(Wire(grove, "anna", lose_answer=True))
    size = grove.coordinator.ledger.state().size
    anna.sync(Wire(grove, "anna"))
    assert grove.coordinator.ledger.state().size == size
    assert anna.opened == 1
    assert not list(anna.home.receipts.glob(".*.pending"))


def test_a_lost_key_is_replaced_by_a_new_one(grove: Grove, anna: Anna) -> None:
    anna.sync(Wire(grove, "anna"))
    before = anna.witness().vkey
    (anna.home.keys / "witness.pem").unlink()
    anna.sync(Wire(grove, "anna"))
    assert anna.witness().vkey != before
    assert verify_cosignature(published(grove), anna.witness().vkey)


@pytest.mark.parametrize("error", [NotFoundError, SignatureError])
def test_a_coordinator_that_takes_no_cosignature_stops_nothing(
    grove: Grove, anna: Anna, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert anna.sync(Wire(grove, "anna", refuse=error)).checkpoint.size == 2
    assert "not cosigned" in caplog.text


def test_nothing_is_signed_for_a_log_that_contradicts_itself(grove: Grove, anna: Anna) -> None:
    wire = Wire(grove, "anna")
    anna.sync(wire)
    said = list(wire.said)
    size = grove.coordinator.ledger.state().size
    key = grove.coordinator.keys.log()
    for forged in (
        Checkpoint(f"elmgrove/{CONSORTIUM}/log", size, bytes(32)),
        Checkpoint(f"elmgrove/{CONSORTIUM}/log", size - 1, bytes(32)),
    ):
        wire.forge = sign_checkpoint(forged, key)
        with pytest.raises(LogInconsistentError):
            anna.sync(wire)
    assert wire.said == said
    last = last_checkpoint(anna.home, anna.config.pinned.log_key)
    assert last is not None
    assert last.checkpoint.size == size


def test_a_receipt_for_something_else_is_not_believed(grove: Grove, anna: Anna) -> None:
    class Lying(Wire):
        def register_witness(self, envelope: bytes) -> pb.Receipt:
            return encode_receipt(self.grove.coordinator.ledger.view.receipt(0))

    with pytest.raises(NotLoggedError, match="receipt is for consortium-founded"):
        anna.sync(Lying(grove, "anna"))
    assert not list(anna.home.receipts.glob("witness-*"))
