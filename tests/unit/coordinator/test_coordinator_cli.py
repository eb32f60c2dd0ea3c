"""The operator's command line: its surface, its settings file, and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from common.errors import ConfigError, ElmgroveError, KeyStoreError, NotFoundError, UsageError
from coordinator.cli.main import ANCHOR_COMMANDS, COMMANDS, anchor_group, cli
from coordinator.cli.options import find_passphrase, named_values, parse_duration
from coordinator.config import CoordinatorConfig, Home, Quota, load_config, parse_config, save_config
from coordinator.usecases.found import found_consortium

MINIMAL = 'consortium = "grove"\nhost = "a.example"\nport = 7420\nenrol_port = 7421\nlisten = "0.0.0.0"\n'


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for group, table in ((cli, COMMANDS), (anchor_group, ANCHOR_COMMANDS)):
        for name in table:
            command = group.get_command(context, name)
            assert command is not None
            yield name, command


@pytest.mark.parametrize(("name", "command"), list(_commands()))
def test_every_command_helps_with_examples(name: str, command: click.Command) -> None:
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert "Examples:" in done.output
    assert "elmgrove-coordinator" in done.output
    if not isinstance(command, click.Group):
        assert all(isinstance(option, click.Argument) or getattr(option, "help", None) for option in command.params)
    assert command.name == name


@pytest.mark.parametrize("name", ["owners", "experts", "anchors", "log"])
def test_reading_commands_speak_json_and_need_no_key(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    found_consortium(home, name="grove", host="localhost", port=7420, enrol_port=7421, passphrase=b"secret")
    done = CliRunner().invoke(cli, [name, "--home", str(home), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) is not None
    assert CliRunner().invoke(cli, [name, "--home", str(home)]).exit_code == 0


def test_the_list_of_commands_loads_none_of_them() -> None:
    script = (
        "import sys; from coordinator.cli.main import cli; cli(['--help'], standalone_mode=False); "
        "print([name in sys.modules for name in ('grpc', 'torch', 'sqlalchemy')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[False, False, False]"


def test_init_makes_a_home_once(tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "home"), "--name", "grove"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    before = sorted(path.read_bytes() for path in (tmp_path / "home" / "keys").iterdir())
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, ElmgroveError)
    assert again.exception.exit_code == 18
    assert sorted(path.read_bytes() for path in (tmp_path / "home" / "keys").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "options", [["--name", "Not A Name"], ["--name", "grove", "--host", "spaced host"], ["--name", "g", "--enrol-port", "7420"]]
)
def test_an_init_that_makes_no_sense_leaves_nothing(tmp_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "home"), *options])
    assert isinstance(done.exception, ElmgroveError)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_home_is_explained(tmp_path: Path) -> None:
    for name in ("owners", "log"):
        done = CliRunner().invoke(cli, [name, "--home", str(tmp_path)])
        assert isinstance(done.exception, NotFoundError)
        assert "init DIR" in str(done.exception)


def test_the_home_comes_from_option_environment_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELMGROVE_HOME", raising=False)
    assert Home.resolve(None).path == tmp_path
    monkeypatch.setenv("ELMGROVE_HOME", str(tmp_path / "env"))
    assert Home.resolve(None).path == tmp_path / "env"
    assert Home.resolve("option").path == tmp_path / "option"


def test_settings_survive_being_written(tmp_path: Path) -> None:
    config = parse_config(MINIMAL.encode(), "x").model_copy(update={"quota": Quota(open_uploads=9)})
    save_config(Home(tmp_path), config)
    assert load_config(Home(tmp_path)) == config
    written = Home(tmp_path).config.read_text()
    assert all(f"{key} = " in written or f"[{key}]" in written for key in CoordinatorConfig.model_fields)
    assert "open_uploads = 9" in written


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MINIMAL + "colour = 1\n", "colour"),
        (MINIMAL + "[quota]\nopen_uploads = 0\n", "quota.open_uploads"),
        (MINIMAL + "[quota]\nopen_upload = 4\n", "quota.open_upload"),
        (MINIMAL.replace("7421", "7420"), "must differ"),
        (MINIMAL.replace("7421", '"7421"'), "enrol_port"),
        (MINIMAL.replace("7420", "70000"), "port"),
        (MINIMAL + "x = [", "TOML"),
        ("", "consortium"),
        (MINIMAL + "#" * 70_000, "too large"),
    ],
)
def test_wrong_settings_are_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_config(text.encode(), "coordinator.toml")


def test_durations() -> None:
    assert parse_duration("30m") == timedelta(minutes=30)
    assert parse_duration("12h") == timedelta(hours=12)
    assert parse_duration("7d") == timedelta(days=7)
    for wrong in ("", "7", "d7", "0d", "-1d", "1w", "1.5h", "9" * 20 + "d"):
        with pytest.raises(UsageError):
            parse_duration(wrong)


def test_named_values() -> None:
    assert named_values(("law=a.jsonl", "code=b=c"), "x") == [("law", "a.jsonl"), ("code", "b=c")]
    for wrong in ("law", "=a", "law="):
        with pytest.raises(UsageError, match="NAME=FILES"):
            named_values((wrong,), "NAME=FILES")


def test_passphrases_come_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELMGROVE_PASSPHRASE", raising=False)
    assert find_passphrase(None) is None
    monkeypatch.setenv("ELMGROVE_PASSPHRASE", "from outside")
    assert find_passphrase(None) == b"from outside"
    file = tmp_path / "secret"
    file.write_bytes(b"first line\r\nsecond\n")
    assert find_passphrase(file) == b"first line"
    file.write_bytes(b"\n")
    with pytest.raises(KeyStoreError):
        find_passphrase(file)
    with pytest.raises(KeyStoreError):
        find_passphrase(tmp_path / "missing")
