"""The operator's and server's own keys: what a change leaves valid, and that a crash leaves the old pair or the new one."""

from __future__ import annotations

import json
import stat
from datetime import timedelta

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

import coordinator.usecases.operator_keys as operator_keys
from common.errors import LogError
from common.formats.entries import parse_entry
from common.trust.keys import private_key_pem
from coordinator.cli.main import cli
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.operator_keys import ending_certificates, renew_own_certificates, rotate_own_keys
from coordinator.usecases.revoke import revoke_owner
from tests.support.coordinator_world import Grove


def _own(grove: Grove) -> dict[str, bytes]:
    home = grove.home
    paths = [folder / f"{name}.pem" for folder in (home.keys, home.certificates) for name in ("operator", "server")]
    return {str(path.relative_to(home.path)): path.read_bytes() for path in paths}


def _last_kind(grove: Grove) -> str:
    state = grove.coordinator.ledger.state()
    return parse_entry(grove.coordinator.ledger.view.entries(state.size - 1, state.size)[0]).kind


def test_renewal_keeps_both_keys(grove: Grove) -> None:
    before = _own(grove)
    renew_own_certificates(grove.coordinator)
    after = _own(grove)
    assert {name for name in before if before[name] != after[name]} == {"certs/operator.pem", "certs/server.pem"}
    assert _last_kind(grove) == "certificates-renewed"
    assert len(grove.coordinator.ledger.state().certificates) == 4
    grove.join("anna")


def test_the_new_operator_key_speaks_and_the_old_one_does_not(grove: Grove) -> None:
    anna = grove.join("anna")
    grove.push(anna, anna.package(grove.folder / "package", grove.publish()))
    old = grove.coordinator.keys.signing("operator")
    rotate_own_keys(grove.coordinator, ["operator"])
    assert _last_kind(grove) == "key-rotated"
    assert grove.coordinator.keys.signing("operator").key.public_key() != old.key.public_key()
    assert stat.S_IMODE((grove.home.keys / "operator.pem").stat().st_mode) == 0o600
    assert assemble_model(grove.coordinator, grove.folder / "model").experts[0].name == "tides"
    (grove.home.keys / "operator.pem").write_bytes(private_key_pem(old.key, None))  # as a thief of the old key would
    (grove.home.certificates / "operator.pem").write_bytes(old.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(LogError, match="not the logged one"):
        revoke_owner(grove.coordinator, "anna", reason="theft")


@pytest.mark.parametrize("logged", [False, True])
def test_a_change_that_was_cut_off_is_finished_or_dropped_as_the_log_says(
    grove: Grove, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    before = _own(grove)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(operator_keys, "switch_staged" if logged else "_log", crash)
        with pytest.raises(KeyboardInterrupt):
            rotate_own_keys(grove.coordinator, ["operator", "server"])
    assert _own(grove) == before
    grove.reopen()
    after = _own(grove)
    assert all((before[name] != after[name]) == logged for name in before)
    assert not grove.home.renewing.exists()
    grove.join("anna")
    rotate_own_keys(grove.coordinator, ["operator"])


def test_certificates_that_end_soon_are_known(grove: Grove) -> None:
    assert ending_certificates(grove.coordinator, within=timedelta(days=60)) == {}
    assert set(ending_certificates(grove.coordinator, within=timedelta(days=731))) == {"operator", "server"}


def test_the_command_lists_and_changes(grove: Grove) -> None:
    home = str(grove.home.path)
    listed = json.loads(CliRunner().invoke(cli, ["keys", "--home", home, "--json"]).output)
    assert [row["purpose"] for row in listed] == ["signing", "server"]
    for arguments in (["renew"], ["rotate", "both"]):
        done = CliRunner().invoke(cli, ["keys", *arguments, "--home", home, "--json"])
        assert done.exit_code == 0, done.output
        assert set(json.loads(done.output)["expires"]) == {"operator", "server"}
    changed = json.loads(CliRunner().invoke(cli, ["keys", "--home", home, "--json"]).output)
    assert len(changed) == 2
    assert {row["fingerprint"] for row in changed}.isdisjoint(row["fingerprint"] for row in listed)
