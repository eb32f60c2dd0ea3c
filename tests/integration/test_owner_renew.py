"""Renewal and rotation over mutual TLS between real processes: what the new key may do, the old one may not, and nobody does unnoticed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

import owner_client.daemon.renew as renew_module
from common.errors import UnavailableError
from common.formats.fields import format_time
from common.formats.statements import CertificatesRenewed
from common.trust.statements import sign_statement
from coordinator.usecases.context import open_coordinator
from coordinator.usecases.issue import issue_records
from owner_client.config import Home
from owner_client.daemon.patience import Patience
from owner_client.daemon.renew import renew_certificates
from owner_client.daemon.session import open_session
from tests.support.owner_world import Owner, World, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("renew")) as world:
        yield world


@pytest.fixture(scope="module")
def anchor(world: World) -> str:
    return world.publish()


def _files(home: Path) -> dict[str, bytes]:
    paths = [Path(folder) / f"{name}.pem" for folder in ("keys", "certs") for name in ("signing", "transport")]
    return {str(path): (home / path).read_bytes() for path in paths}


def _copy(owner: Owner, folder: Path) -> Owner:
    shutil.copytree(owner.home, folder)
    return Owner(folder, owner.name)


def test_a_renewal_keeps_the_keys_and_changes_the_certificates(tmp_path: Path, world: World) -> None:
    owner = Owner(tmp_path / "home", "rena").join(world)
    before = _files(owner.home)
    facts = owner.json("renew")
    after = _files(owner.home)
    assert facts["new_keys"] == []
    assert {name for name in before if before[name] != after[name]} == {"certs/signing.pem", "certs/transport.pem"}
    status = owner.json("status")
    assert [each["kind"] for each in status["certificates_in_log"]] == ["owner-admitted"] * 2 + ["certificates-renewed"] * 2
    assert status["unknown_certificates"] == []
    assert not (owner.home / ".renewing").exists()


def test_a_new_key_signs_the_next_version_and_the_old_one_is_refused(tmp_path: Path, world: World, anchor: str) -> None:
    owner = Owner(tmp_path / "home", "nora").join(world)
    owner.run("pull")
    owner.package("tides", anchor)
    pushed = owner.json("push", "tides", "--yes")
    thief = _copy(owner, tmp_path / "thief")
    before = _files(owner.home)
    facts = owner.json("renew", "--new-keys", "signing")
    assert facts["new_keys"] == ["signing"]
    after = _files(owner.home)
    assert {name for name in before if before[name] != after[name]} == {"certs/signing.pem", "keys/signing.pem"}
    thief.package("moss", anchor)
    assert "not one that the log lists" in thief.run("push", "moss", "--yes", expect=62).stderr
    thief.run("withdraw", "tides", "--yes", expect=62)
    owner.package("tides", anchor, version=2, supersedes=pushed["digest"])
    owner.json("push", "tides-v2", "--yes")
    assert [(each["version"], each["state"]) for each in owner.json("status")["experts"]] == [(1, "superseded"), (2, "in-force")]
    owner.run("renew", "--new-keys", "transport")
    thief.run("status", expect=33)
    owner.run("withdraw", "tides", "--yes")


def test_a_certificate_issued_behind_the_owners_back_is_noticed(tmp_path: Path, world: World) -> None:
    owner = Owner(tmp_path / "home", "hugo").join(world)
    assert owner.json("status")["unknown_certificates"] == []
    with contextlib.closing(open_coordinator(world.home, None)) as coordinator, coordinator.ledger.exclusive() as session:
        operator = coordinator.keys.signing("operator")
        uri = f"elmgrove://{coordinator.consortium}/owners/hugo"
        key = x509.load_pem_x509_certificate((owner.home / "certs" / "signing.pem").read_bytes()).public_key()
        records = issue_records(coordinator, uri, {"signing": key}, session.time)  # type: ignore[dict-item]
        statement = CertificatesRenewed(
            schema="elmgrove.certificates-renewed/v1",
            consortium=coordinator.consortium,
            created=format_time(session.time),
            holder=uri,
            certificates=records,
            request="0" * 64,
        )
        envelope = sign_statement(statement, operator.key, operator.certificate)
        receipt = session.append("certificates-renewed", "owner/hugo", envelope, ())
    for options in ((), ("--offline",)):
        done = owner.run("status", "--json", *options, expect=71)
        [unknown] = json.loads(done.stdout)["unknown_certificates"]
        assert (unknown["index"], unknown["purpose"]) == (receipt.index, "signing")
    assert f"serial {unknown['serial']}" in owner.run("status", expect=71).stdout
    owner.run("renew", "--new-keys", "signing")
    assert owner.json("status")["unknown_certificates"] == [], "the unknown certificate ended with its key"


def test_a_thief_who_replaces_the_signing_key_is_noticed(tmp_path: Path, world: World) -> None:
    owner = Owner(tmp_path / "home", "tina").join(world)
    _copy(owner, tmp_path / "thief").run("renew", "--new-keys", "signing")
    assert "key-rotated" in owner.run("status", expect=71).stdout


@pytest.mark.parametrize("names", [(), ("signing", "transport")])
def test_a_lost_answer_is_asked_for_again(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    owner = Owner(tmp_path / "home", f"lost{len(names)}").join(world)
    before = _files(owner.home)

    def lost(*_: object) -> None:
        raise UnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(renew_module, "_check", lost)
        with pytest.raises(UnavailableError):
            renew_certificates(open_session(Home(owner.home)), None, names, Patience(0))  # type: ignore[arg-type]
    assert _files(owner.home) == before
    facts = owner.json("renew")
    assert facts["resumed"]
    assert sorted(facts["new_keys"]) == sorted(names)
    status = owner.json("status")
    assert len(status["certificates_in_log"]) == 4, "the second request gave no further certificates"
    logged = {each["fingerprint"] for each in status["certificates_in_log"][2:]}
    held = {_fingerprint(owner.home / "certs" / f"{name}.pem") for name in ("signing", "transport")}
    assert logged == held


def _fingerprint(path: Path) -> str:
    return x509.load_pem_x509_certificate(path.read_bytes()).fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("crash_at", [0, 2, 4])
def test_a_switch_that_is_cut_off_is_finished_by_the_next_command(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    owner = Owner(tmp_path / "home", f"crash{crash_at}").join(world)
    before = _files(owner.home)
    moves = 0
    replace, rename = Path.replace, Path.rename

    def count(move: object) -> object:
        def counted(path: Path, target: Path) -> Path:
            nonlocal moves
            if (owner.home / ".renewing" / "ready").exists():
                moves += 1
                if moves > crash_at:
                    raise KeyboardInterrupt
            return move(path, target)  # type: ignore[operator]

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", count(replace))
        patch.setattr(Path, "rename", count(rename))
        with pytest.raises(KeyboardInterrupt):
            renew_certificates(open_session(Home(owner.home)), None, ("signing", "transport"), Patience(0))
    status = owner.json("status")
    assert status["unknown_certificates"] == []
    assert not (owner.home / ".renewing").exists()
    after = _files(owner.home)
    assert all(before[name] != after[name] for name in before)
