"""From trained files to a package: versions follow the log, the manifest is checked, and nothing half-made lies in the outbox."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import AlreadyExistsError, LayoutError, LogError, NonFiniteError, WithdrawnError
from common.formats.manifest import FullKind
from common.translog.note import encode_vkey
from common.trust.keys import generate_log_key
from owner_client.config import CoordinatorAddress, Home, OwnerConfig, Pinned
from owner_client.daemon.outbox import Terms, publish_package, require_free
from owner_client.daemon.receipts import load_receipt
from owner_client.daemon.versions import LoggedVersion, NextVersion, next_version
from tests.support.tiny_weights import write_expert_files

CONFIG = OwnerConfig(
    consortium="grove",
    owner="anna",
    coordinator=CoordinatorAddress(host="localhost", port=1),
    pinned=Pinned(root_sha256="00" * 32, log_key=encode_vkey("log", generate_log_key().public_key())),
)
TERMS = Terms("CC-BY-4.0", ("research",), datetime(2030, 1, 1, tzinfo=UTC))
LOGGED = [
    LoggedVersion("letters", 1, "11" * 32, 5),
    LoggedVersion("letters", 10, "aa" * 32, 12),
    LoggedVersion("letters", 9, "99" * 32, 11),
    LoggedVersion("poems", 3, "33" * 32, 7),
]


def test_the_next_version_follows_the_highest_logged_one() -> None:
    assert next_version("letters", LOGGED, ()) == NextVersion(11, "aa" * 32)
    assert next_version("poems", LOGGED, {"letters"}) == NextVersion(4, "33" * 32)
    assert next_version("new", LOGGED, ()) == NextVersion(1, None)


def test_a_withdrawn_name_is_not_used_again() -> None:
    with pytest.raises(WithdrawnError, match="another --name"):
        next_version("letters", LOGGED, {"letters"})


def trained(home: Home, number: int = 1) -> Path:
    folder = home.runs / "letters-v1.package"
    write_expert_files(folder, seed=number)
    return folder


def publish(home: Home, folder: Path) -> Path:
    following = NextVersion(1, None)
    review = publish_package(
        home,
        CONFIG,
        folder,
        expert="letters",
        following=following,
        anchor="ab" * 32,
        kind=FullKind(type="full"),
        training={"steps": 3},
        terms=TERMS,
    )
    return review.folder


def test_a_trained_folder_becomes_a_package(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = trained(home)
    package = publish(home, folder)
    assert package == home.outbox / "letters-v1"
    assert not folder.exists()
    assert sorted(path.name for path in package.iterdir()) == [
        "manifest.json",
        "part-0000.safetensors",
        "privacy.json",
        "router.safetensors",
    ]


def test_a_waiting_package_is_not_trained_over(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = publish(home, trained(home))
    before = (first / "manifest.json").read_bytes()
    with pytest.raises(AlreadyExistsError, match="--fresh"):
        require_free(home, "letters", 1, fresh=False)
    assert (first / "manifest.json").read_bytes() == before


def test_fresh_sets_the_old_one_aside_until_the_new_one_is_there(tmp_path: Path) -> None:
    home = Home(tmp_path)
    publish(home, trained(home))
    require_free(home, "letters", 1, fresh=True)
    aside = home.runs / "letters-v1.replaced"
    assert (aside / "manifest.json").is_file()
    assert not home.package("letters", 1).exists()
    publish(home, trained(home, 2))
    assert not aside.exists()
    assert home.package("letters", 1).is_dir()


@pytest.mark.parametrize("fault", ["surplus", "nan"])
def test_a_wrong_folder_never_reaches_the_outbox(tmp_path: Path, fault: str) -> None:
    home = Home(tmp_path)
    folder = trained(home)
    if fault == "surplus":
        (folder / "notes.txt").write_text("secret")
    else:
        path = folder / "router.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises((LayoutError, NonFiniteError)):
        publish(home, folder)
    assert not home.outbox.exists() or not list(home.outbox.iterdir())


def test_an_incomplete_receipt_is_an_error_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert load_receipt(tmp_path / "none", "expert-accepted", "expert/x@1", CONFIG.pinned.log_key) is None
    (tmp_path / "half").mkdir()
    with pytest.raises(LogError, match="incomplete"):
        load_receipt(tmp_path / "half", "expert-accepted", "expert/x@1", CONFIG.pinned.log_key)
