"""Keys lie at rest with mode 0600, encrypted under a passphrase, and are opened only for whoever has it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from common.errors import AlreadyExistsError, KeyStoreError
from owner_client.keys.keystore import KeyStore, generate_keys
from owner_client.keys.passphrase import PASSPHRASE_VARIABLE, find_passphrase


def test_plain_keys_come_back_and_are_private(tmp_path: Path) -> None:
    keys, store = generate_keys(), KeyStore(tmp_path / "keys")
    store.create(keys, None)
    assert store.open_signing(None).public_key() == keys.signing.public_key()
    assert store.open_transport(b"ignored").public_key() == keys.transport.public_key()
    assert not store.is_encrypted()
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == {0o600}
    assert len(list(store.folder.iterdir())) == 2


def test_encrypted_keys_need_their_passphrase(tmp_path: Path) -> None:
    keys, store = generate_keys(), KeyStore(tmp_path / "keys")
    store.create(keys, b"correct horse")
    assert store.is_encrypted()
    assert store.open_signing(b"correct horse").public_key() == keys.signing.public_key()
    for wrong in (b"battery staple", None):
        with pytest.raises(KeyStoreError):
            store.open_signing(wrong)
    for path in store.folder.iterdir():
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.create(generate_keys(), None)
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    with pytest.raises(AlreadyExistsError):
        store.create(generate_keys(), None)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    store = KeyStore(tmp_path / "keys")
    store.create(generate_keys(), None)
    (store.folder / "signing.pem").chmod(mode)
    with pytest.raises(KeyStoreError, match="chmod 600"):
        store.open_signing(None)


def test_missing_and_damaged_keys_say_so(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    with pytest.raises(KeyStoreError, match="missing"):
        store.open_signing(None)
    store.create(generate_keys(), None)
    (store.folder / "signing.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(KeyStoreError):
        store.open_signing(None)


def test_the_passphrase_comes_from_the_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(b"from the file\r\nsecond line\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    assert find_passphrase(file) == b"from the file"
    assert find_passphrase(None) == b"from the environment"
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    assert find_passphrase(None) is None


def test_an_empty_or_unreadable_passphrase_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "long").write_bytes(b"x" * 5000)
    for file in (tmp_path / "empty", tmp_path / "long", tmp_path / "missing"):
        with pytest.raises(KeyStoreError):
            find_passphrase(file)
