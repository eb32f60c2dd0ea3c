"""Pull, push and withdraw against a real coordinator process, with a tiny random anchor and expert."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.translog.cosignature import witness_name
from tests.support.owner_world import CONSORTIUM, ROOT, TINY, Owner, World, environment, free_port, running
from tests.support.programs import run as run_program
from tests.support.programs import run_json
from tests.support.tiny_manifests import expert_manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module")
def anchor(world: World) -> str:
    return world.publish()


@pytest.fixture(scope="module")
def joined(world: World, anchor: str, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    owner = Owner(tmp_path_factory.mktemp("anna") / "home", "anna").join(world)
    assert owner.json("pull")["digest"] == anchor
    return owner


@pytest.fixture
def owner(joined: Owner) -> Owner:
    shutil.rmtree(joined.home / "outbox")
    (joined.home / "outbox").mkdir()
    return joined


def sent(world: World) -> list[str]:
    """What the coordinator's audit trail says happened."""
    return [json.loads(line)["event"] for line in world.home.audit.read_text().splitlines()]


def test_pull_gives_a_verified_folder_and_a_receipt(owner: Owner, anchor: str) -> None:
    folder = owner.home / "anchors" / anchor
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == anchor
    assert (owner.home / "receipts" / "anchors" / anchor / "receipt.tlog-proof").is_file()
    assert not list((owner.home / "anchors").glob("*.partial"))
    again = owner.json("pull")
    assert (again["fetched_bytes"], again["digest"]) == (0, anchor)
    status = owner.json("status")
    assert [item["digest"] for item in status["anchors"]] == [anchor]
    owner.run("pull", "--anchor", "nothing", expect=17)
    owner.run("pull", "--anchor", anchor)


def test_an_anchor_that_was_changed_on_disk_is_noticed(owner: Owner, anchor: str) -> None:
    path = owner.home / "anchors" / anchor / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    owner.run("pull", expect=64)
    owner.run("train", "--data", "x", "--name", "x", "--offline", expect=64)
    path.write_bytes(good)
    owner.run("pull")


def test_push_then_supersede_then_withdraw(owner: Owner, world: World, anchor: str) -> None:
    first = owner.package("letters", anchor)
    assert "letters" in owner.run("review", "letters").stdout
    facts = owner.json("push", "letters", "--yes")
    assert facts["sent_bytes"] == sum(path.stat().st_size for path in first.iterdir() if path.name not in {"manifest.json", "model.sig"})
    receipt = owner.home / "receipts" / "experts" / "letters-v1"
    entry = json.loads((receipt / "entry.json").read_bytes())
    assert entry["subject"] == "expert/letters@1"
    assert entry["document"] == hashlib.sha256((first / "model.sig").read_bytes()).hexdigest()
    again = owner.json("push", "letters", "--yes")
    assert (again["log_index"], again["sent_bytes"], again["accepted_before"]) == (facts["log_index"], 0, True)
    shutil.rmtree(receipt)
    owner.run("push", "letters", "--yes")
    assert (receipt / "entry.json").is_file()

    owner.package("letters", anchor, version=2, supersedes=facts["digest"])
    assert owner.json("push", "letters", "--yes")["version"] == 2
    states = {(item["name"], item["version"]): item["state"] for item in owner.json("status")["experts"]}
    assert states == {("letters", 1): "superseded", ("letters", 2): "in-force"}
    offline = {(item["name"], item["version"]): item["state"] for item in owner.json("status", "--offline")["experts"]}
    assert offline == {("letters", 1): "superseded", ("letters", 2): "pushed"}

    owner.run("withdraw", "letters", expect=10)
    gone = owner.json("withdraw", "letters", "--reason", "consent ended", "--yes")
    assert gone["version"] == 2
    assert json.loads((owner.home / "receipts" / "withdrawn" / "letters" / "entry.json").read_bytes())["kind"] == "expert-withdrawn"
    for options in ((), ("--offline",)):
        after = {item["version"]: item["state"] for item in owner.json("status", *options)["experts"]}
        assert after == {1: "superseded", 2: "withdrawn"}
    checkpoint = (world.home.log / "checkpoint").read_text()
    assert witness_name(CONSORTIUM, "anna") in checkpoint, "what was followed was not cosigned"
    owner.run("withdraw", "letters", "--yes", expect=57)
    owner.run("withdraw", "unheard-of", "--yes", expect=17)
    owner.run("train", "--data", "x", "--name", "letters", expect=57)
    owner.run("train", "--data", "x", "--name", "letters", "--offline", expect=57)


def test_an_auditor_checks_the_receipts_that_an_owner_keeps(owner: Owner, world: World, anchor: str) -> None:
    package = owner.package("ballads", anchor)
    owner.run("push", "ballads", "--yes")
    root, kept = owner.home / "root.pem", owner.home / "receipts"
    for receipt in (kept / "founding", kept / "admitted", kept / "experts" / "ballads-v1"):
        assert "It holds." in run_program("audit", "receipt", receipt, "--root", root).stdout
    options = ["--log", world.home.log, "--package", package]
    found = run_json("audit", "receipt", kept / "experts" / "ballads-v1", "--root", root, *options)
    assert (found["about"], found["expert"]["standing"]) == ("expert/ballads@1", "in force")


def test_push_asks_before_it_sends(owner: Owner, world: World, anchor: str) -> None:
    owner.package("asked", anchor)
    before = len(sent(world))
    done = owner.run("push", "asked", expect=10)
    assert "Files that would leave" in done.stdout
    assert "--yes" in done.stderr
    assert len(sent(world)) == before


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("truncated", 64),
        ("pickle", 21),
        ("nan", 53),
        ("surplus", 23),
        ("names", 52),
        ("shape", 52),
        ("dtype", 52),
        ("anchor", 51),
        ("owner", 63),
    ],
)
def test_a_bad_package_is_refused_before_anything_is_sent(owner: Owner, world: World, anchor: str, fault: str, code: int) -> None:
    shapes = {"shape": replace(TINY, inner=32), "dtype": replace(TINY, dtype="BF16"), "names": replace(TINY, layers=1)}
    folder = owner.package("bad", "12" * 32 if fault == "anchor" else anchor, shape=shapes.get(fault, TINY))
    part = folder / "part-0000.safetensors"
    raw = part.read_bytes()
    if fault == "truncated":
        part.write_bytes(raw[:-10])
    elif fault == "pickle":
        part.write_bytes(b"\x80\x04\x95" + raw)
        relist(folder, part)
    elif fault == "nan":
        part.write_bytes(raw[:-4] + b"\x00\x00\xc0\x7f")
        expert_manifest(folder, anchor, name="bad", owner="anna", consortium=CONSORTIUM)
    elif fault == "surplus":
        (folder / "extra.bin").write_bytes(b"x")
    elif fault == "owner":
        expert_manifest(folder, anchor, name="bad", owner="bert", consortium=CONSORTIUM)
    before = sent(world)
    owner.run("push", "bad", "--yes", expect=code)
    assert sent(world) == before
    assert not (folder / "model.sig").exists()


def relist(folder: Path, part: Path) -> None:
    """Make the manifest agree with a file's new bytes."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    for entry in manifest["files"]:
        if entry["name"] == part.name:
            entry.update(size=part.stat().st_size, sha256=digest, chunks=[digest])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_version_that_does_not_follow_is_refused_by_the_coordinator(owner: Owner, anchor: str) -> None:
    owner.package("gap", anchor, version=3, supersedes="34" * 32)
    assert "version" in owner.run("push", "gap", "--yes", expect=54).stderr
    assert owner.json("status")["experts"] != []


def test_what_is_signed_is_accepted_by_the_stock_tool(owner: Owner, anchor: str, world: World) -> None:
    folder = owner.package("stock", anchor)
    owner.run("push", "stock", "--yes")
    command = [sys.executable, "-m", "model_signing", "verify", "certificate", str(folder)]
    options = ["--signature", str(folder / "model.sig"), "--certificate_chain", str(world.home.root)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_another_owner_cannot_push_or_withdraw_it(owner: Owner, world: World, anchor: str, tmp_path: Path) -> None:
    owner.package("mine", anchor)
    owner.run("push", "mine", "--yes")
    other = Owner(tmp_path / "home", "bert").join(world)
    other.run("pull")
    other.package("mine", anchor)
    assert other.run("push", "mine", "--yes", expect=34).stdout == ""
    other.run("withdraw", "mine", "--yes", expect=17)
    assert other.json("status")["experts"] == [{"name": "mine", "version": 1, "state": "trained", "log_index": None}]


def test_another_owners_or_no_certificate_is_refused(owner: Owner, world: World, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    from common.formats.fields import utc_now
    from common.trust.certificates import TrustRoot, issue_leaf, issue_root
    from common.trust.keys import generate_signing_key, load_private_key

    stranger = Owner(tmp_path / "home")
    shutil.copytree(owner.home, stranger.home)
    key = load_private_key((stranger.home / "keys" / "transport.pem").read_bytes(), None)
    root_key = generate_signing_key()
    root = TrustRoot.from_pem(issue_root(CONSORTIUM, root_key, utc_now()).public_bytes(Encoding.PEM))
    forged = issue_leaf(root, root_key, key.public_key(), "transport", f"elmgrove://{CONSORTIUM}/owners/anna", utc_now(), 10)
    (stranger.home / "certs" / "transport.pem").write_bytes(forged.public_bytes(Encoding.PEM))
    stranger.set_transfer(patience_seconds=0)
    stranger.run("pull", expect=33)


def test_a_foreign_root_in_the_home_is_noticed(owner: Owner, tmp_path: Path) -> None:
    copy = Owner(tmp_path / "home")
    shutil.copytree(owner.home, copy.home)
    with running(tmp_path / "elsewhere") as elsewhere:
        (copy.home / "root.pem").write_bytes(elsewhere.home.root.read_bytes())
    copy.run("status", expect=32)


def test_without_a_coordinator_the_status_is_shown_and_the_code_says_so(owner: Owner, tmp_path: Path) -> None:
    copy = Owner(tmp_path / "home")
    shutil.copytree(owner.home, copy.home)
    config = copy.home / "owner.toml"
    lines = [f"port = {free_port()}" if line.startswith("port = ") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    copy.set_transfer(patience_seconds=1)
    done = copy.run("status", "--json", expect=41)
    assert json.loads(done.stdout)["coordinator"]["answers"] is False
    assert "does not answer" in copy.run("pull", expect=41).stderr
    copy.run("withdraw", "stock", "--yes", expect=41)


def test_a_rolled_back_log_is_refused_with_evidence(tmp_path: Path) -> None:
    """The coordinator is restored from an older copy: the owner has seen a longer log and says so."""
    with running(tmp_path / "world") as world:
        world.publish()
        owner = Owner(tmp_path / "home", "anna").join(world)
        world.stop()
        shutil.copytree(world.home.path, tmp_path / "backup")
        world.publish("second")
        world.start()
        owner.run("pull")
        world.stop()
        shutil.rmtree(world.home.path)
        shutil.copytree(tmp_path / "backup", world.home.path)
        world.start()
        done = owner.run("pull", expect=66)
        [evidence] = (owner.home / "log").glob("contradiction-*.json")
        assert str(evidence) in done.stderr
        assert json.loads(evidence.read_bytes())["schema"] == "elmgrove.log-contradiction/v1"


def test_an_anchor_that_rots_at_the_coordinator_never_reaches_its_place(tmp_path: Path) -> None:
    with running(tmp_path / "world") as world:
        digest = world.publish()
        owner = Owner(tmp_path / "home", "anna").join(world)
        sha256 = hashlib.sha256((world.folder / "checkpoint-base" / "model.safetensors").read_bytes()).hexdigest()
        [blob] = (path for path in world.home.blobs.rglob(f"*{sha256}") if path.is_file())
        good = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        owner.run("pull", expect=64)
        assert not (owner.home / "anchors" / digest).exists()
        blob.write_bytes(good)
        assert owner.json("pull")["digest"] == digest


def test_a_revoked_owner_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path / "world") as world:
        world.publish()
        owner = Owner(tmp_path / "home", "anna").join(world)
        command = [sys.executable, "-c", "from coordinator.cli.main import main; main()", "owners", "revoke", "anna"]
        options = ["--reason", "left the consortium", "--home", str(world.home.path), "--yes"]
        subprocess.run([*command, *options], check=True, env=environment(), cwd=ROOT, stdin=subprocess.DEVNULL)
        assert "revoked" in owner.run("pull", expect=68).stderr
