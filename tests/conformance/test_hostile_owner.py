"""Every case below ``owner/``: an admitted owner sends what the case's steps made of its package, past its own client's checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import ElmgroveError
from common.formats.fields import utc_now
from common.rpc.channels import Connection
from coordinator.service.server import CoordinatorServer
from coordinator.usecases.withdraw import withdraw_expert
from tests.conformance.case import Case, all_cases
from tests.conformance.world import attack
from tests.support.coordinator_world import CONSORTIUM, Grove, Member, push
from tests.support.tiny_consortium import Party
from tests.support.tiny_manifests import sha256


@dataclass
class Desk:
    """The owners' own folder: what ``world.py`` needs to know of a consortium to spoil a package in it."""

    folder: Path
    owners: dict[str, Party]
    name: str = CONSORTIUM
    now: datetime = field(default_factory=utc_now)


@dataclass
class Hall:
    """An honest coordinator that serves, with the owners anna and bert; the log holds anna's ``tides`` and her withdrawn ``storms``."""

    grove: Grove
    anchor: str
    members: dict[str, Member]

    def connect(self, name: str) -> Connection:
        return Connection("127.0.0.1", self.grove.port, root_pem=self.members[name].root_pem, identity=self.members[name].identity)


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    folder = tmp_path_factory.mktemp("hall")
    grove = Grove(folder)
    server = CoordinatorServer(grove.coordinator)
    server.start()
    try:
        anchor, anna = grove.publish(), grove.join("anna")
        grove.push(anna, anna.package(folder / "tides", anchor, name="tides"))
        storms = anna.package(folder / "storms", anchor, name="storms", seed=2)
        grove.push(anna, storms)
        withdrawal = anna.withdrawal("storms", sha256((storms / "manifest.json").read_bytes()))
        withdraw_expert(grove.coordinator, grove.owner("anna"), withdrawal)
        yield Hall(grove, anchor, {"anna": anna, "bert": grove.join("bert")})
    finally:
        server.stop(grace=0)
        grove.close()


def party(member: Member) -> Party:
    return Party(member.name, member.uri, member.signing_key, member.signing_certificate, ())


@pytest.mark.parametrize("case", all_cases("owner"), ids=lambda case: case.name)
def test_case(case: Case, hall: Hall, tmp_path: Path) -> None:
    sender, expert = case.run
    member = hall.members[sender]
    member.package(tmp_path / "package", hall.anchor, name=expert, seed=len(case.name))
    desk: Any = Desk(tmp_path, {name: party(each) for name, each in hall.members.items()})
    attack(desk, case.steps)
    before = hall.grove.coordinator.ledger.state().size
    with hall.connect(sender) as connection:
        try:
            push(connection, tmp_path / "package")
            code, said = 0, "accepted"
        except ElmgroveError as error:
            code, said = error.exit_code, str(error)
    assert code == case.exit, said
    for words in case.says:
        assert words in said
    assert hall.grove.coordinator.ledger.state().size - before == (not case.must_fail)
    if case.must_fail:
        assert hall.grove.debris() == [], "nothing of a refused package is kept"
