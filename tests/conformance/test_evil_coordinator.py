"""Every case below ``evil/``: a real owner's command line meets a coordinator that lies as the case's knobs say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.formats.invitation import encode_invitation
from tests.conformance.case import Case, all_cases
from tests.conformance.evil_coordinator import EvilServer, Knobs
from tests.support.coordinator_world import Grove
from tests.support.owner_world import Owner


@dataclass
class Meeting:
    """A coordinator with its knobs, and two homes of the owner anna: newly joined, and with an anchor and an accepted expert."""

    knobs: Knobs
    anchor: str
    homes: dict[str, Path]


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    folder = tmp_path_factory.mktemp("evil")
    grove, knobs = Grove(folder), Knobs()
    server = EvilServer(grove.coordinator, knobs)
    server.start()
    try:
        anchor = grove.publish()
        anna = Owner(folder / "joined")
        anna.run("join", encode_invitation(grove.invitation("anna")))
        joined = shutil.copytree(anna.home, folder / "kept")
        anna.run("pull")
        anna.package("tides", anchor)
        anna.run("push", "tides", "--yes")
        grove.join("bert")  # the log goes on, and anna has not looked
        yield Meeting(knobs, anchor, {"joined": joined, "active": anna.home})
    finally:
        server.stop(grace=0)
        grove.close()


@pytest.mark.parametrize("case", all_cases("evil"), ids=lambda case: case.name)
def test_case(case: Case, meeting: Meeting, tmp_path: Path) -> None:
    home, *arguments = case.run
    anna = Owner(shutil.copytree(meeting.homes[home], tmp_path / "home"))
    anna.set_transfer(patience_seconds=0)
    expert = case.name.replace("_", "-")[:40]
    anna.package(expert, meeting.anchor, seed=len(expert))
    before = kept(anna.home)
    meeting.knobs.turn(**case.knobs)
    done = anna.run(*(argument.replace("{package}", expert) for argument in arguments), expect=case.exit)
    for words in case.says:
        assert words in done.stdout + done.stderr
    assert (kept(anna.home) == before) == (case.must_fail or "status" in case.run), "what does not hold is not kept"


def kept(home: Path) -> list[Path]:
    """The anchors in a home, and the receipts of its experts."""
    return sorted(path for place in ("anchors/*", "receipts/experts/*") for path in home.glob(place) if path.is_dir() and not path.suffix)
