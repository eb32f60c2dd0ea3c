"""Witnesses at the coordinator: keys registered and bound, cosignatures published, and what an auditor makes of them over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit.cli import audit
from common.audit.logs import audit_log
from common.errors import LimitError, LogError, NotLoggedError, QuorumError, SignatureError, SignerError
from common.formats.fields import format_time, utc_now
from common.formats.statements import WitnessRegistered
from common.translog.cosignature import cosign, verify_cosignature, witness_name, witness_vkey
from common.translog.reader import FolderReader, read_log
from common.trust.keys import generate_log_key
from common.trust.statements import sign_statement
from coordinator.usecases.witness import publish_cosignature, register_witness
from coordinator.web.server import WebServer
from tests.support.coordinator_world import CONSORTIUM, Grove, Member, free_ports

TIME = datetime(2026, 11, 1, 12, tzinfo=UTC)


class Client:
    """An owner with a witness key."""

    def __init__(self, grove: Grove, name: str) -> None:
        self.grove, self.member, self.key = grove, grove.join(name), generate_log_key()
        self.name = witness_name(CONSORTIUM, name)

    def envelope(self, *, by: Member | None = None, key: Ed25519PrivateKey | None = None, owner: str | None = None) -> bytes:
        signer = by or self.member
        statement = WitnessRegistered(
            schema="elmgrove.witness-registered/v1",
            consortium=CONSORTIUM,
            created=format_time(utc_now()),
            owner=owner or self.member.uri,
            key=witness_vkey(self.name, key or self.key),
        )
        return sign_statement(statement, signer.signing_key, signer.signing_certificate)

    def register(self, envelope: bytes | None = None) -> int:
        return register_witness(self.grove.coordinator, self.grove.owner(self.member.name), envelope or self.envelope()).index

    def line(self, key: Ed25519PrivateKey | None = None) -> str:
        return cosign(self.grove.coordinator.ledger.view.checkpoint, self.name, key or self.key, TIME)

    def publish(self, line: str | None = None, size: int | None = None) -> bool:
        state = self.grove.coordinator.ledger.state()
        owner = self.grove.owner(self.member.name)
        return publish_cosignature(self.grove.coordinator, owner, state.size if size is None else size, line or self.line())


def test_a_cosignature_is_published_until_the_log_grows(grove: Grove) -> None:
    anna = Client(grove, "anna")
    envelope = anna.envelope()
    index = anna.register(envelope)
    assert anna.register(envelope) == index, "repeating an envelope gives the same entry"
    assert grove.coordinator.ledger.state().size == index + 1
    bare = (grove.home.log / "checkpoint").read_bytes()
    assert anna.publish()
    published = (grove.home.log / "checkpoint").read_bytes()
    assert published.startswith(bare)
    assert verify_cosignature(published, witness_vkey(anna.name, anna.key)).time == TIME
    assert read_log(FolderReader(grove.home.log), grove.coordinator.log_key).note == published
    grove.reopen()
    assert anna.publish(), "a restarted coordinator goes on with the cosigned checkpoint"
    ben = Client(grove, "ben")
    assert b"witness/anna" not in (grove.home.log / "checkpoint").read_bytes(), "a new checkpoint begins without cosignatures"
    ben.register()
    assert ben.publish()
    assert anna.publish()
    assert (grove.home.log / "checkpoint").read_bytes().count("\u2014".encode()) == 3


def test_a_cosignature_of_another_size_is_not_published(grove: Grove) -> None:
    anna = Client(grove, "anna")
    anna.register()
    line, size = anna.line(), grove.coordinator.ledger.state().size
    grove.join("ben")
    before = (grove.home.log / "checkpoint").read_bytes()
    assert not anna.publish(line, size)
    with pytest.raises(SignatureError, match="does not hold"):
        anna.publish(line)
    assert (grove.home.log / "checkpoint").read_bytes() == before


def test_what_is_refused_leaves_the_checkpoint_as_it_was(grove: Grove) -> None:
    anna, ben = Client(grove, "anna"), Client(grove, "ben")
    with pytest.raises(NotLoggedError):
        anna.publish()
    anna.register()
    before = (grove.home.log / "checkpoint").read_bytes()
    for line, error in ((ben.line(), SignatureError), (anna.line(ben.key), SignatureError), ("x" * 513, LimitError)):
        with pytest.raises(error):
            anna.publish(line)
    assert (grove.home.log / "checkpoint").read_bytes() == before


def test_a_key_is_registered_by_its_owner_alone(grove: Grove) -> None:
    anna, ben = Client(grove, "anna"), Client(grove, "ben")
    size = grove.coordinator.ledger.state().size
    with pytest.raises(SignerError):
        anna.register(anna.envelope(by=ben.member))
    with pytest.raises(SignerError):
        anna.register(ben.envelope())
    with pytest.raises(LogError, match="not one for this owner's"):
        anna.register(ben.envelope(by=anna.member, owner=anna.member.uri))
    with pytest.raises(SignatureError, match="not a registration"):
        anna.register(anna.member.withdrawal("moss", "1" * 64))
    assert grove.coordinator.ledger.state().size == size
    ben.register()
    with pytest.raises(LogError, match="another's"):
        anna.register(anna.envelope(key=ben.key))


def test_a_new_key_takes_the_place_of_the_old(grove: Grove) -> None:
    anna, fresh = Client(grove, "anna"), generate_log_key()
    anna.register()
    anna.register(anna.envelope(key=fresh))
    with pytest.raises(SignatureError, match="exactly one"):
        anna.publish()
    assert anna.publish(anna.line(fresh))


@pytest.fixture
def address(grove: Grove) -> Iterator[str]:
    port = free_ports()[0]
    web = WebServer(grove.coordinator, listen="127.0.0.1", port=port)
    web.start()
    yield f"http://127.0.0.1:{port}/log"
    web.stop()


def test_an_auditor_judges_the_log_over_http_by_a_policy(grove: Grove, address: str, tmp_path: Path) -> None:
    clients = [Client(grove, name) for name in ("anna", "ben", "cleo")]
    for client in clients:
        client.register()
    root = str(grove.home.root)
    run = CliRunner().invoke
    printed = run(audit, ["policy", address, "--root", root])
    assert printed.exit_code == 0
    policy = tmp_path / "owners.policy"
    policy.write_text(printed.output)
    assert "group -majority- 2 anna ben cleo\n" in printed.output

    clients[2].publish()
    few = audit_log(address, grove.coordinator.root, policy=policy)
    assert [type(fault) for fault in few.faults] == [QuorumError]
    assert "cosigned by cleo" in few.as_text()
    clients[0].publish()
    enough = run(audit, ["log", address, "--root", root, "--policy", str(policy), "--json"])
    assert enough.exit_code == 0, enough.output
    facts = json.loads(enough.output)
    assert [each["name"] for each in facts["policy"]["cosigned"]] == ["anna", "cleo"]
    assert facts["policy"]["missing"] == ["ben"]
    assert [(each["owner"], each["time"]) for each in facts["witnesses"]] == [
        ("anna", "2026-11-01T12:00:00Z"),
        ("cleo", "2026-11-01T12:00:00Z"),
    ]
    offline = audit_log(grove.home.log, grove.coordinator.root, policy=policy)
    assert offline.facts["policy"] == facts["policy"]


def test_a_moved_cosignature_is_found_without_a_policy(grove: Grove) -> None:
    anna = Client(grove, "anna")
    anna.register()
    line = anna.line()
    grove.join("ben")
    checkpoint = grove.home.log / "checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes() + line.encode())
    report = audit_log(grove.home.log, grove.coordinator.root)
    assert [type(fault) for fault in report.faults] == [SignatureError]
