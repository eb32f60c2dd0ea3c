"""``elmgrove-owner train`` from the command line: a real tiny anchor, an interruption, a package, the next version, and bad data."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.usecases.context import open_coordinator
from coordinator.usecases.publish_anchor import publish_anchor
from tests.support.owner_world import ROOT, Owner, World, environment, running, wait_until

pytest.importorskip("torch")

WORDS = [
    "the",
    "a",
    "of",
    "river",
    "tree",
    "stone",
    "light",
    "house",
    "walks",
    "sees",
    "green",
    "old",
    "new",
    "stands",
    "under",
    "over",
    "with",
    "small",
    "large",
    "moon",
]
QUICK = ("--router", "random", "--batch-tokens", "256", "--seq-len", "64", "--device", "cpu", "--dtype", "float32")


def write_text(path: Path, words: list[str]) -> Path:
    rng = random.Random(len(words))
    lines = [json.dumps({"text": " ".join(rng.choice(words) for _ in range(40))}) for _ in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    text = write_text(folder / "public.jsonl", WORDS)
    with running(folder) as world:
        options = ["--preset", "nano", "--vocab-size", "320", "--steps", "2", "--device", "cpu", "--quiet"]
        command = [sys.executable, "-c", "from coordinator.cli.main import main; main()", "anchor", "train", "--data", str(text)]
        subprocess.run([*command, *options, "--out", str(folder / "checkpoint")], check=True, env=environment(), cwd=ROOT)
        with contextlib.closing(open_coordinator(world.home, None)) as coordinator:
            sample = [json.loads(line)["text"] for line in text.read_text().splitlines()]
            publish_anchor(
                coordinator,
                folder / "checkpoint",
                name="base",
                licence="Apache-2.0",
                provenance="words",
                sample=sample,
                sample_bytes=2**20,
                measure=None,
            )
        yield world


@pytest.fixture
def owner(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Owner:
    name = "o" + request.node.name.removeprefix("test_").replace("_", "-")[:30].rstrip("-")
    return Owner(tmp_path / "home", name).join(world)


def test_without_an_anchor_it_says_to_pull(owner: Owner, tmp_path: Path) -> None:
    assert "elmgrove-owner pull" in owner.run("train", "--data", str(tmp_path), "--name", "x", expect=17).stderr


def test_train_resume_push_and_next_version(owner: Owner, tmp_path: Path) -> None:
    owner.run("pull")
    data = write_text(tmp_path / "private.jsonl", [*WORDS[:8], "patient", "dose"])
    command = ["train", "--data", str(data), "--name", "notes", *QUICK, "--steps", "60", "--checkpoint-every", "5"]
    process = owner.start(*command, "--quiet")
    wait_until(lambda: list((owner.home / "runs" / "notes-v1" / "checkpoints").glob("[!.]*")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list((owner.home / "outbox").iterdir()) == []

    licence = ["--licence", "CC-BY-4.0", "--permitted-use", "research", "--permitted-use", "teaching", "--not-after", "2099-12-31"]
    facts = owner.json(*command, *licence)
    assert (facts["version"], facts["training"]["steps"]) == (1, 60)
    assert facts["perplexity"]["private"]["pair"] < facts["perplexity"]["private"]["anchor"]
    assert [path.name for path in (owner.home / "runs").iterdir()] == ["notes-v1"]
    said = owner.json("review", "notes")["manifest"]
    assert (said["licence"], said["permitted_uses"], said["not_after"]) == ("CC-BY-4.0", ["research", "teaching"], "2099-12-31T23:59:59Z")
    assert "perplexity" not in json.dumps(said)
    owner.run(*command, expect=18)

    first = owner.json("push", "notes", "--yes")["digest"]
    for receipts in (True, False):
        if not receipts:  # the home lost its receipt; the coordinator still knows
            shutil.rmtree(owner.home / "receipts" / "experts" / "notes-v1")
        options = ["--offline"] if receipts else ["--fresh"]
        again = owner.json("train", "--data", str(data), "--name", "notes", *QUICK, "--steps", "2", *options)
        assert again["version"] == 2
        assert owner.json("review", "notes")["manifest"]["supersedes"] == first
    assert owner.json("push", "notes", "--yes")["version"] == 2


def test_the_package_of_two_processes_is_accepted_like_any_other(owner: Owner, tmp_path: Path) -> None:
    owner.run("pull")
    data = write_text(tmp_path / "private.jsonl", [*WORDS[:8], "patient", "dose"])
    options = [*QUICK, "--steps", "4", "--micro-tokens", "64", "--eval-every", "2", "--patience", "5"]
    facts = owner.json("train", "--data", str(data), "--name", "shared", *options, "--nproc", "2")
    assert facts["training"]["early_stopping"] == "after 5 measurements"
    assert facts["cost"]["steps"] == 4
    alone = owner.json("train", "--data", str(data), "--name", "alone", *options)
    for text, row in facts["perplexity"].items():
        assert row["pair"] == pytest.approx(alone["perplexity"][text]["pair"], rel=1e-4)
    assert owner.json("push", "shared", "--yes")["version"] == 1
    assert [item["state"] for item in owner.json("status")["experts"] if item["name"] == "shared"] == ["in-force"]


def test_torchrun_starts_the_processes_just_as_well(owner: Owner, tmp_path: Path) -> None:
    owner.run("pull")
    data = write_text(tmp_path / "private.jsonl", WORDS)
    own = [sys.executable, "-c", "from owner_client.cli.main import main; main()", "train", "--data", str(data), "--name", "torch"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*launcher, *own, *QUICK, "--steps", "2", "--json", "--home", str(owner.home)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cost"]["steps"] == 2, "one process reports, once"
    assert [path.name for path in (owner.home / "outbox").iterdir()] == ["torch-v1"]
    assert owner.json("review", "torch")["manifest"]["name"] == "torch"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--data", "missing.jsonl"], 12),
        (["--data", "DATA", "--nproc", "3"], 10),
        (["--data", "DATA", "--patience", "2"], 10),
        (["--data", "DATA", "--text-field", "body"], 13),
        (["--data", "EMPTY"], 12),
        (["--data", "DATA", "--steps", "3", "--epochs", "2"], 10),
        (["--data", "DATA", "--not-after", "2020-01-01"], 10),
        (["--data", "DATA", "--not-after", "soon"], 20),
        (["--data", "DATA", "--name", "Not A Name"], 20),
        (["--data", "DATA", "--anchor", "other"], 17),
    ],
)
def test_bad_requests_end_with_their_code_and_leave_the_outbox_empty(
    pulled: Owner, tmp_path: Path, arguments: list[str], code: int
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    named = {"DATA": str(write_text(tmp_path / "data.jsonl", WORDS)), "EMPTY": str(tmp_path / "empty.jsonl")}
    given = [named.get(argument, argument) for argument in arguments]
    name = [] if "--name" in given else ["--name", "bad"]
    pulled.run("train", *given, *name, *QUICK, expect=code)
    assert list((pulled.home / "outbox").iterdir()) == []


@pytest.fixture(scope="module")
def pulled(world: World, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    owner = Owner(tmp_path_factory.mktemp("pulled") / "home", "pulled").join(world)
    owner.run("pull")
    return owner
