"""``fsck`` finds what is wrong with a home, by class, and ``--rebuild`` makes the database's cache of the log again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import ElmgroveError, LogInconsistentError
from coordinator.cli.main import cli
from coordinator.usecases.context import open_coordinator
from coordinator.usecases.fsck import check_home, rebuild_database
from coordinator.usecases.operator_keys import rotate_own_keys
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import Grove


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Grove:
    """A home with an anchor, two experts (one withdrawn) and renewed keys, from which each test takes a copy."""
    grove = Grove(tmp_path_factory.mktemp("fsck"))
    anna, anchor = grove.join("anna"), grove.publish()
    grove.push(anna, anna.package(grove.folder / "one", anchor))
    grove.push(anna, anna.package(grove.folder / "two", anchor, name="moss", seed=2))
    digest = grove.coordinator.ledger.state().experts["moss"][-1].digest
    withdraw_expert(grove.coordinator, grove.owner("anna"), anna.withdrawal("moss", digest))
    rotate_own_keys(grove.coordinator, ["operator"])
    grove.close()
    return grove


@pytest.fixture
def grove(sound: Grove, tmp_path: Path) -> Grove:
    copy = object.__new__(Grove)
    copy.folder, copy.home = tmp_path, type(sound.home)(tmp_path / "home")
    shutil.copytree(sound.home.path, copy.home.path)
    return copy


def _sql(grove: Grove, statement: str) -> None:
    with sqlite3.connect(grove.home.database) as database:
        database.execute(statement)
    database.close()


def _blob(grove: Grove, expert: str) -> Path:
    database = open_coordinator(grove.home, None)
    try:
        digest = database.ledger.state().experts[expert][-1].manifest.files[0].sha256
        return database.blobs.path(digest)
    finally:
        database.close()


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(raw)


def _newest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.stat().st_mtime_ns, path.name))


def test_a_sound_home_is_sound(grove: Grove) -> None:
    for quick in (False, True):
        report = check_home(grove.home, quick=quick)
        assert report.faults == [], report.as_text()
    assert rebuild_database(grove.home) == {"databases": 0, "uploads": 0, "invitations": 0}


DAMAGE: dict[str, tuple[Callable[[Grove], object], int, bool]] = {
    "blob changed": (lambda grove: _flip(_blob(grove, "tides")), 64, False),
    "blob cut": (lambda grove: (_blob(grove, "tides").chmod(0o600), _blob(grove, "tides").write_bytes(b"x")), 64, True),
    "blob missing": (lambda grove: _blob(grove, "tides").unlink(), 17, True),
    "blob a link": (lambda grove: _link(_blob(grove, "tides")), 64, True),
    "entries changed": (lambda grove: _flip(_newest(grove.home.log / "tile" / "entries")), 65, True),
    "tile missing": (lambda grove: shutil.rmtree(grove.home.log / "tile" / "0"), 65, True),
    "document changed": (lambda grove: _flip(next((grove.home.log / "documents").iterdir())), 65, True),
    "checkpoint changed": (lambda grove: _flip(grove.home.log / "checkpoint"), 65, True),
    "another operator certificate": (lambda grove: shutil.copy(grove.home.root, grove.home.certificates / "operator.pem"), 62, True),
    "upload accepted by another entry": (lambda grove: _sql(grove, "UPDATE uploads SET entry_index = 1 WHERE expert = 'tides'"), 72, True),
    "upload never accepted": (lambda grove: _sql(grove, "UPDATE uploads SET manifest = 'x' WHERE expert = 'tides'"), 72, True),
    "invitation unused": (lambda grove: _sql(grove, "UPDATE invitations SET used_at = NULL"), 72, True),
    "larger log remembered": (lambda grove: _sql(grove, "UPDATE log_head SET size = 99"), 66, True),
    "other log remembered": (lambda grove: _sql(grove, "UPDATE log_head SET root = '" + "0" * 64 + "'"), 66, True),
    "upload accepted beyond the log": (lambda grove: _sql(grove, "UPDATE uploads SET entry_index = 99 WHERE expert = 'tides'"), 66, True),
    "database missing": (lambda grove: grove.home.database.unlink(), 72, True),
    "database damaged": (lambda grove: grove.home.database.write_bytes(b"no database" * 1000), 72, True),
}


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_has_its_exit_code(grove: Grove, damage: str) -> None:
    spoil, code, quick = DAMAGE[damage]
    spoil(grove)
    for options in (["--quick"] if quick else [], []):
        done = CliRunner().invoke(cli, ["fsck", "--home", str(grove.home.path), "--json", *options])
        assert isinstance(done.exception, ElmgroveError), done.output
        assert done.exception.exit_code == code, done.output
        assert json.loads(done.output)["exit_code"] == code


@pytest.mark.parametrize("damage", [name for name, (_, code, _) in DAMAGE.items() if code == 72])
def test_rebuild_puts_the_database_right(grove: Grove, damage: str) -> None:
    DAMAGE[damage][0](grove)
    done = CliRunner().invoke(cli, ["fsck", "--rebuild", "--home", str(grove.home.path), "--json"])
    assert done.exit_code == 0, done.output
    assert sum(json.loads(done.output)["rebuilt"].values()) >= 1
    assert check_home(grove.home).faults == []
    open_coordinator(grove.home, None).close()


def test_bytes_of_an_expert_that_left_may_be_gone(grove: Grove) -> None:
    _blob(grove, "moss").unlink()
    report = check_home(grove.home)
    assert report.faults == []
    assert report.facts["blobs_gone"] == 1


def test_an_old_copy_of_the_log_is_refused(sound: Grove, tmp_path: Path) -> None:
    """By fsck, by --rebuild and by every command that opens the home, serve among them; nothing is written to the old copy."""
    grove = Grove(tmp_path)
    old = tmp_path / "old-log"
    shutil.copytree(grove.home.log, old)
    grove.join("anna")
    grove.close()
    shutil.rmtree(grove.home.log)
    shutil.copytree(old, grove.home.log)
    home = str(grove.home.path)
    for arguments in (["fsck"], ["fsck", "--rebuild"], ["serve"], ["invite", "ben"]):
        done = CliRunner().invoke(cli, [*arguments, "--home", home])
        assert isinstance(done.exception, LogInconsistentError), done.output
    assert (grove.home.log / "checkpoint").read_bytes() == (old / "checkpoint").read_bytes()
