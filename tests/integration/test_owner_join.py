"""Joining against a real coordinator process: what a good invitation gives, and what every bad one leaves behind: nothing."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.formats.invitation import decode_invitation, encode_invitation
from tests.support.owner_world import CONSORTIUM, Owner, World, free_port, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("world")) as world:
        yield world


def test_a_good_invitation_makes_a_home(tmp_path: Path, world: World) -> None:
    owner = Owner(tmp_path / "home", "anna")
    facts = owner.json("join", world.invite("anna"))
    assert facts["identity"] == f"elmgrove://{CONSORTIUM}/owners/anna"
    assert not facts["keys_encrypted"]
    assert stat.S_IMODE(owner.home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (owner.home / "keys").iterdir()} == {0o600}
    assert {path.name for path in owner.home.iterdir()} == {
        "owner.toml",
        "keys",
        "certs",
        "root.pem",
        "receipts",
        "log",
        "anchors",
        "outbox",
        "runs",
    }
    assert (owner.home / "root.pem").read_bytes() == world.home.root.read_bytes()
    entry = json.loads((owner.home / "receipts" / "admitted" / "entry.json").read_bytes())
    assert (entry["kind"], entry["subject"]) == ("owner-admitted", "owner/anna")
    status = owner.json("status")
    assert status["coordinator"]["answers"]
    assert status["warnings"] == []
    assert status["log"]["size"] > facts["log_index"]


def test_a_second_join_into_the_same_home_is_refused(tmp_path: Path, world: World) -> None:
    owner = Owner(tmp_path / "home", "twice").join(world)
    before = (owner.home / "keys" / "signing.pem").read_bytes()
    owner.run("join", world.invite("other"), expect=18)
    assert (owner.home / "keys" / "signing.pem").read_bytes() == before


def test_keys_under_a_passphrase(tmp_path: Path, world: World) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    owner = Owner(tmp_path / "home", "locked")
    owner.run("join", world.invite("locked"), "--passphrase-file", str(secret))
    for path in (owner.home / "keys").iterdir():
        assert b"ENCRYPTED" in path.read_bytes()
    owner.run("status", expect=35)
    assert Owner(owner.home, variables={"ELMGROVE_PASSPHRASE": "correct horse"}).json("status")["owner"] == "locked"
    assert Owner(owner.home, variables={"ELMGROVE_PASSPHRASE": "wrong"}).run("status", expect=35).stdout == ""
    assert owner.json("status", "--offline")["owner"] == "locked"


def test_a_used_invitation_is_refused(tmp_path: Path, world: World) -> None:
    invitation = world.invite("once")
    Owner(tmp_path / "first").run("join", invitation)
    second = Owner(tmp_path / "second")
    assert "already used" in second.run("join", invitation, expect=31).stderr
    assert not second.home.exists()


def test_an_expired_invitation_is_refused_before_anything_is_sent(tmp_path: Path, world: World) -> None:
    old = decode_invitation(world.invite("late")).model_copy(update={"expires": "2020-01-01T00:00:00Z"})
    owner = Owner(tmp_path / "home")
    owner.run("join", encode_invitation(old), expect=31)
    assert not owner.home.exists()


def test_another_root_is_noticed_before_the_token_is_sent(tmp_path: Path, world: World) -> None:
    invitation = world.invite("pinned")
    forged = decode_invitation(invitation).model_copy(update={"root_sha256": "00" * 32})
    owner = Owner(tmp_path / "deep" / "home")
    owner.run("join", encode_invitation(forged), expect=32)
    assert not (tmp_path / "deep").exists()
    owner.run("join", invitation)


def test_a_made_up_token_is_refused(tmp_path: Path, world: World) -> None:
    forged = decode_invitation(world.invite("guess")).model_copy(update={"token": "A" * 43})
    owner = Owner(tmp_path / "home")
    owner.run("join", encode_invitation(forged), expect=31)
    assert not owner.home.exists()


def test_no_coordinator_there(tmp_path: Path, world: World) -> None:
    nowhere = decode_invitation(world.invite("alone")).model_copy(update={"enrol_port": free_port()})
    owner = Owner(tmp_path / "home")
    assert "answer" in owner.run("join", encode_invitation(nowhere), expect=41).stderr
    assert not owner.home.exists()


def test_a_lost_answer_costs_nothing(tmp_path: Path, world: World) -> None:
    """The main port cannot be reached after the token was spent: the same command finishes when it can."""
    invitation = world.invite("unlucky")
    wrong_port = decode_invitation(invitation).model_copy(update={"port": free_port()})
    owner = Owner(tmp_path / "home", "unlucky")
    owner.run("join", encode_invitation(wrong_port), expect=41)
    assert [path.name for path in owner.home.iterdir()] == [".joining"]
    owner.run("join", invitation)
    assert not (owner.home / ".joining").exists()
    assert owner.json("status")["owner"] == "unlucky"


def test_a_home_with_other_things_in_it_is_left_alone(tmp_path: Path, world: World) -> None:
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "mine").write_text("precious")
    invitation = world.invite("careful")
    Owner(home).run("join", invitation, expect=18)
    assert (home / "keys" / "mine").read_text() == "precious"
    Owner(tmp_path / "new").run("join", invitation)


@pytest.mark.skipif("__import__('os').geteuid() == 0", reason="root may write everywhere")
def test_an_unwritable_place_is_noticed_before_the_token_is_spent(tmp_path: Path, world: World) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    invitation = world.invite("nowhere")
    Owner(tmp_path / "locked" / "home").run("join", invitation, expect=16)
    Owner(tmp_path / "home").run("join", invitation)
