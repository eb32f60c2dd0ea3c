"""Transfers that are cut off: killed clients and restarted coordinators lose at most the chunks in flight."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.owner_world import BIG, Owner, World, running, wait_until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("world")) as world:
        world.publish("big", BIG)
        yield world


@pytest.fixture(scope="module")
def owner(world: World, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    owner = Owner(tmp_path_factory.mktemp("anna") / "home", "anna").join(world)
    owner.set_transfer(streams=1, patience_seconds=30)
    owner.run("pull")
    return owner


def anchor_of(owner: Owner) -> str:
    return str(owner.json("status", "--offline")["anchors"][0]["digest"])


def size_of(package: Path) -> int:
    return sum(path.stat().st_size for path in package.iterdir() if path.name not in {"manifest.json", "model.sig"})


def test_a_killed_pull_goes_on(world: World, tmp_path: Path) -> None:
    owner = Owner(tmp_path / "home", "pulls").join(world)
    owner.set_transfer(streams=1)
    process = owner.start("pull", "--quiet")

    def partial() -> list[Path]:
        return [path for path in (owner.home / "anchors").glob("*.partial/*.safetensors") if path.stat().st_size > MIB]

    wait_until(partial)
    process.send_signal(signal.SIGSTOP)
    here = sum(path.stat().st_size for path in partial())
    process.kill()
    process.communicate()
    assert not [path for path in (owner.home / "anchors").iterdir() if len(path.name) == 64], "an unverified anchor was published"
    assert owner.json("status")["anchors"] == []
    facts = owner.json("pull")
    total = sum(path.stat().st_size for path in Path(facts["folder"]).iterdir() if path.name not in {"manifest.json", "model.sig"})
    assert 0 < here <= total
    assert facts["fetched_bytes"] <= total - here + MIB


def test_wrong_bytes_in_a_partial_download_are_thrown_away(world: World, tmp_path: Path) -> None:
    owner = Owner(tmp_path / "home", "poisoned").join(world)
    owner.run("pull")
    [folder] = (path for path in (owner.home / "anchors").iterdir() if path.is_dir())
    partial = folder.with_name(folder.name + ".partial")
    folder.rename(partial)
    weights = partial / "model.safetensors"
    weights.write_bytes(b"\0" * (5 * MIB) + weights.read_bytes()[5 * MIB :])
    owner.run("pull", expect=64)
    assert not folder.exists()
    assert not weights.exists()
    assert owner.json("pull")["fetched_bytes"] > 5 * MIB


def test_a_killed_push_goes_on(world: World, owner: Owner) -> None:
    package = owner.package("killed", anchor_of(owner), shape=BIG)
    process = owner.start("push", "killed", "--yes", "--quiet")
    wait_until(lambda: world.arrived_bytes > 40 * MIB)
    process.kill()
    process.communicate()
    [line] = [expert for expert in owner.json("status")["experts"] if expert["name"] == "killed"]
    assert line["state"] == "uploading"
    facts = owner.json("push", "killed", "--yes")
    assert 0 < facts["sent_bytes"] <= size_of(package) - 40 * MIB
    assert (owner.home / "receipts" / "experts" / "killed-v1" / "entry.json").is_file()


def test_an_interrupted_push_says_so_and_goes_on(world: World, owner: Owner) -> None:
    package = owner.package("stopped", anchor_of(owner), shape=BIG)
    before = world.arrived_bytes
    process = owner.start("push", "stopped", "--yes", "--quiet")
    wait_until(lambda: world.arrived_bytes > before + 40 * MIB)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert owner.json("push", "stopped", "--yes")["sent_bytes"] <= size_of(package) - 40 * MIB


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_coordinator_that_restarts_meanwhile_costs_little(world: World, owner: Owner, kill: bool) -> None:
    name = f"through-{'crash' if kill else 'restart'}"
    package = owner.package(name, anchor_of(owner), shape=BIG)
    before = world.arrived_bytes
    process = owner.start("push", name, "--yes", "--json")
    wait_until(lambda: world.arrived_bytes > before + 40 * MIB)
    process.send_signal(signal.SIGSTOP)
    world.stop(kill=kill)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    world.start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "trying again" in err
    assert json.loads(out)["sent_bytes"] <= size_of(package) + 32 * MIB
    assert {expert["state"] for expert in owner.json("status")["experts"] if expert["name"] == name} == {"in-force"}


def test_a_coordinator_that_stays_away_ends_the_push_in_time(world: World, owner: Owner) -> None:
    owner.package("patient", anchor_of(owner), shape=BIG)
    before = world.arrived_bytes
    owner.set_transfer(patience_seconds=2)
    process = owner.start("push", "patient", "--yes", "--quiet")
    wait_until(lambda: world.arrived_bytes > before + 20 * MIB)
    process.send_signal(signal.SIGSTOP)
    world.stop()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    world.start()
    owner.set_transfer(patience_seconds=30)
    assert process.returncode == 41
    assert "run the command again" in err
    owner.run("push", "patient", "--yes")


def test_a_file_that_changes_after_the_review_is_not_accepted(world: World, owner: Owner) -> None:
    package = owner.package("changing", anchor_of(owner), shape=BIG)
    before = world.arrived_bytes
    process = owner.start("push", "changing", "--yes", "--quiet")
    wait_until(lambda: world.arrived_bytes > before + 4 * MIB)
    process.send_signal(signal.SIGSTOP)
    last = package / "part-0001.safetensors"
    with last.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"\x01" * 500)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 64, err
    assert not (owner.home / "receipts" / "experts" / "changing-v1").exists()
    assert owner.run("push", "changing", "--yes", expect=64).stdout == ""
    shutil.rmtree(package)


def test_training_anew_gives_up_the_older_upload(world: World, owner: Owner) -> None:
    package = owner.package("anew", anchor_of(owner), shape=BIG)
    before = world.arrived_bytes
    process = owner.start("push", "anew", "--yes", "--quiet")
    wait_until(lambda: world.arrived_bytes > before)
    process.send_signal(signal.SIGSTOP)
    assert "Another push" in owner.run("push", "anew", "--yes", expect=10).stderr
    process.kill()
    process.communicate()
    shutil.rmtree(package)
    owner.package("anew", anchor_of(owner), shape=BIG, seed=77)
    owner.run("push", "anew", "--yes")
    assert world.arrived_bytes == before
    assert [expert["state"] for expert in owner.json("status")["experts"] if expert["name"] == "anew"] == ["in-force"]


def test_memory_stays_bounded(world: World, owner: Owner) -> None:
    """Four streams of a package of 96 MiB: the process holds little more than one that sends nothing."""
    owner.package("lean", anchor_of(owner), shape=BIG)
    owner.set_transfer(streams=4)
    process = owner.start("push", "lean", "--yes", "--quiet")
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = max(peak, int(line.split()[1]))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, err = process.communicate(timeout=120)
    watcher.join()
    assert process.returncode == 0, err
    assert peak < 125 * 1024, f"peak of {peak} KiB"
