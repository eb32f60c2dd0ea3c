"""``owner.toml`` survives a round trip, and whatever is wrong with it is a ``ConfigError`` that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import AlreadyExistsError, ConfigError, NotFoundError
from owner_client.config import (
    HOME_VARIABLE,
    CoordinatorAddress,
    Home,
    OwnerConfig,
    Pinned,
    TransferSettings,
    encode_config,
    load_config,
    parse_config,
    save_config,
)

CONFIG = OwnerConfig(
    consortium="demo",
    owner="alice",
    coordinator=CoordinatorAddress(host="[::1]", port=7440),
    pinned=Pinned(root_sha256="ab" * 32, log_key="elmgrove/demo/log+0123abcd+AZ/9="),
    transfer=TransferSettings(streams=2, patience_seconds=7),
)


def test_round_trip_keeps_every_value(tmp_path: Path) -> None:
    home = Home(tmp_path)
    save_config(home, CONFIG)
    assert load_config(home) == CONFIG
    assert load_config(home).uri == "elmgrove://demo/owners/alice"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("streams", "steams", "transfer.steams: is not a known key"),
        ("streams = 2", "streams = 99", "transfer.streams"),
        ("port = 7440", 'port = "7440"', "coordinator.port"),
        ('owner = "alice"', 'owner = "Alice!"', "owner"),
        ('owner = "alice"', "", "owner"),
        ("ab" * 32, "ab", "pinned.root_sha256"),
        ("[pinned]", "[pinned", "not valid TOML"),
    ],
)
def test_a_wrong_key_is_named(old: str, new: str, named: str) -> None:
    text = encode_config(CONFIG).decode()
    assert old in text
    with pytest.raises(ConfigError, match="owner.toml.*" + named.replace(".", r"\.")):
        parse_config(text.replace(old, new).encode(), "owner.toml")


def test_transfer_may_be_left_out() -> None:
    text = encode_config(CONFIG).decode().split("[transfer]")[0]
    assert parse_config(text.encode(), "owner.toml").transfer == TransferSettings()


@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_foreign_bytes_give_only_config_errors(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(raw, "owner.toml")


def test_deep_and_huge_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="too large"):
        parse_config(b"#" * 100_000, "owner.toml")
    with pytest.raises(ConfigError):
        parse_config(b"a = " + b"[" * 30_000, "owner.toml")


def test_a_home_nobody_joined_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="elmgrove-owner join"):
        load_config(Home(tmp_path / "nowhere"))


def test_a_taken_home_is_not_joined_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.require_new()
    save_config(home, CONFIG)
    with pytest.raises(AlreadyExistsError, match="alice"):
        home.require_new()


def test_home_comes_from_option_then_environment_then_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "env"))
    assert Home.resolve(str(tmp_path / "option")).path == tmp_path / "option"
    assert Home.resolve(None).path == tmp_path / "env"
    monkeypatch.delenv(HOME_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.resolve(None).path == tmp_path / ".elmgrove" / "owner"
