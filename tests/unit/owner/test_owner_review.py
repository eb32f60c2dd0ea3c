"""``review`` lists every byte that would leave, and refuses a package whose files are not what its manifest says."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import DigestError, ElmgroveError, FormatError, LayoutError, NonFiniteError, NotFoundError, SafetensorsError
from owner_client.cli.review import review
from owner_client.config import Home
from owner_client.daemon.review import find_package, outbox_packages, plain_manifest, review_package
from tests.support.tiny_manifests import expert_manifest
from tests.support.tiny_weights import write_expert_files

ANCHOR = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.outbox.mkdir(parents=True)
    return home


@pytest.fixture
def package(home: Home) -> Path:
    folder = home.package("letters", 1)
    write_expert_files(folder)
    expert_manifest(folder, ANCHOR, name="letters")
    return folder


def test_every_file_is_listed_with_its_true_size_and_digest(package: Path) -> None:
    found = review_package(package)
    listed = {file.name: (file.size, file.sha256) for file in found.files}
    real = {path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in package.iterdir()}
    assert listed == real
    assert found.package_bytes == sum(size for size, _ in real.values())
    assert not found.signed


def test_every_manifest_field_is_said_in_words(package: Path) -> None:
    found = review_package(package)
    words = " ".join(text for pair in plain_manifest(found.manifest) for text in pair)
    manifest = json.loads((package / "manifest.json").read_bytes())
    for key in set(manifest) - {"files", "tensors", "kind", "not_after", "supersedes"}:
        values = manifest[key]
        for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else [values]:
            assert str(value) in words, key
    assert "you withdraw it" in words
    assert "first version" in words


def test_the_command_shows_all_of_it_and_needs_no_key(home: Home, package: Path) -> None:
    result = CliRunner().invoke(review, ["letters", "--home", str(home.path)], catch_exceptions=False)
    assert result.exit_code == 0
    for path in package.iterdir():
        assert path.name in result.output
        assert hashlib.sha256(path.read_bytes()).hexdigest() in result.output
        assert f"{path.stat().st_size:,}" in result.output
    for text in ("model.sig", "What is not in it", "elmgrove.privacy/v1", "format", "sent nothing"):
        assert text in result.output


def test_json_agrees_with_the_folder(home: Home, package: Path) -> None:
    result = CliRunner().invoke(review, [str(package), "--json", "--home", str(home.path)], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert facts["digest"] == hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()
    assert {file["name"] for file in facts["files"]} == {path.name for path in package.iterdir()}
    assert facts["manifest"]["name"] == "letters"


def test_control_characters_do_not_reach_the_terminal(home: Home) -> None:
    folder = home.package("evil", 1)
    write_expert_files(folder)
    (folder / "privacy.json").write_text(json.dumps({"note": "\x1b[2Jgone"}))
    expert_manifest(folder, ANCHOR, name="evil")
    result = CliRunner().invoke(review, ["evil", "--home", str(home.path)], catch_exceptions=False)
    assert "\x1b" not in result.output
    assert "gone" in result.output


@pytest.mark.parametrize(
    ("file", "damage", "error"),
    [
        ("part-0000.safetensors", lambda raw: raw[:-4], DigestError),
        ("part-0000.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), DigestError),
        ("part-0000.safetensors", lambda raw: b"\x80\x04\x95" + raw[3:], DigestError),
        ("privacy.json", lambda raw: raw + b" ", DigestError),
        ("manifest.json", lambda raw: raw.replace(b'"letters"', b'"letters\\u0000"'), FormatError),
        ("manifest.json", lambda raw: raw[:100], FormatError),
    ],
)
def test_changed_bytes_are_refused(package: Path, file: str, damage: object, error: type[ElmgroveError]) -> None:
    path = package / file
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]  # the table holds functions
    with pytest.raises(error):
        review_package(package)


def test_a_pickle_with_a_matching_manifest_is_refused(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_bytes())
    pickle = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins."
    (package / "part-0000.safetensors").write_bytes(pickle)
    for entry in manifest["files"]:
        if entry["name"] == "part-0000.safetensors":
            digest = hashlib.sha256(pickle).hexdigest()
            entry.update(size=len(pickle), sha256=digest, chunks=[digest])
    (package / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SafetensorsError):
        review_package(package)


def test_a_nan_is_refused(home: Home) -> None:
    folder = home.package("broken", 1)
    write_expert_files(folder)
    path = folder / "part-0000.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4] + struct.pack("<f", float("nan")))
    expert_manifest(folder, ANCHOR, name="broken")
    with pytest.raises(NonFiniteError):
        review_package(folder)


@pytest.mark.parametrize("kind", ["surplus", "folder", "link", "missing"])
def test_a_folder_with_anything_else_is_refused(package: Path, kind: str) -> None:
    if kind == "surplus":
        (package / "notes.txt").write_text("secret")
    elif kind == "folder":
        (package / "more").mkdir()
    elif kind == "link":
        (package / "privacy.json").rename(package.parent / "privacy.json")
        (package / "privacy.json").symlink_to(package.parent / "privacy.json")
    else:
        (package / "router.safetensors").unlink()
    with pytest.raises(LayoutError):
        review_package(package)


def test_a_package_is_found_by_name_version_or_path(home: Home, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = home.package("letters", 12)
    shutil.copytree(package, second)
    (home.outbox / ".letters-v13.x.partial").mkdir()
    assert find_package(home, "letters") == second
    assert find_package(home, "letters-v1") == package
    assert find_package(home, str(package)) == package
    monkeypatch.chdir(home.outbox)
    assert find_package(home, "./letters-v1").resolve() == package
    assert outbox_packages(home) == [("letters", 1), ("letters", 12)]
    with pytest.raises(NotFoundError, match="letters-v1, letters-v12"):
        find_package(home, "poems")


def test_an_empty_outbox_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="elmgrove-owner train"):
        find_package(Home(tmp_path), "letters")
