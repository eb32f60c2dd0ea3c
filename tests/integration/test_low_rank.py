"""Low-rank experts end to end: real processes, one full and one compressed expert, one model that stock transformers loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.modeling.loading import load_expert, load_model, load_pair
from tests.support.owner_world import Owner, World, running
from tests.support.programs import run
from tests.support.tiny_weights import TinyShape

SHAPE = TinyShape(hidden=32, inner=96, layers=2, vocab=64)
RANK = SHAPE.hidden // 8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="module")
def anchor(world: World) -> str:
    return world.publish(shape=SHAPE)


@pytest.fixture(scope="module")
def owner(world: World, anchor: str, tmp_path_factory: pytest.TempPathFactory) -> Owner:
    """An owner with the anchor and two full experts in the outbox; ``law`` was compressed twice, and both were pushed."""
    owner = Owner(tmp_path_factory.mktemp("owners") / "anna").join(world)
    owner.run("pull")
    for seed, name in enumerate(("medicine", "law")):
        owner.package(name, anchor, shape=SHAPE, seed=seed)
    coarse = owner.json("compress", "law", "--rank", "1")
    fine = owner.json("compress", "law", "--rank", str(RANK))
    assert (coarse["rank"], fine["rank"], fine["version"]) == (1, RANK, 1)
    assert fine["error"] < coarse["error"] < 1
    assert fine["full_bytes"] / fine["bytes"] > 4
    for name in ("medicine", "law"):
        owner.run("push", name, "--yes")
    return owner


@pytest.fixture(scope="module")
def model(world: World, owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    run("coordinator", "assemble", folder / "both", "--home", world.home.path)
    run("coordinator", "assemble", folder / "law", "--include", "law", "--top-k", 2, "--home", world.home.path)
    return folder


def test_the_owner_sees_kind_and_rank_before_anything_leaves(owner: Owner) -> None:
    assert f"low-rank, rank {RANK}" in owner.run("review", "law").stdout
    assert owner.json("review", "law")["manifest"]["kind"] == {"type": "low_rank", "rank": RANK}
    assert (owner.home / "runs" / "law-v1.full" / "manifest.json").is_file()


def test_the_operator_sees_both_kinds(world: World, owner: Owner) -> None:
    rows = json.loads(run("coordinator", "experts", "--json", "--home", world.home.path).stdout)
    assert [row["kind"] for row in rows] == [{"type": "full"}, {"type": "low_rank", "rank": RANK}]
    assert f"rank {RANK}" in run("coordinator", "experts", "--home", world.home.path).stdout


def test_the_auditor_traces_every_tensor_of_a_mixed_model(world: World, owner: Owner, model: Path) -> None:
    trust = ("--root", world.home.root, "--log", world.home.log)
    run("audit", "model", model / "both", *trust)
    run("audit", "package", owner.home / "outbox" / "law-v1", *trust)


def test_stock_transformers_gives_the_logits_of_the_low_rank_pair(owner: Owner, anchor: str, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(3, 43)[None]
    factors, rows = load_expert(owner.home / "outbox" / "law-v1")
    pair = load_pair(owner.home / "anchors" / anchor, expert=factors, rows_LH=rows)
    stock = AutoModelForCausalLM.from_pretrained(model / "law", dtype=torch.float32)
    mixed = AutoModelForCausalLM.from_pretrained(model / "both", dtype=torch.float32)
    assert type(stock).__name__ == "FlexOlmoForCausalLM"
    with torch.no_grad():
        assert float((stock(tokens).logits - pair(tokens)).abs().max()) < 1e-4
        assert float((mixed(tokens).logits - load_model(model / "both")(tokens)).abs().max()) < 1e-4
        assert float((mixed(tokens).logits - stock(tokens).logits).abs().max()) > 1e-3


def test_compressing_what_was_pushed_makes_the_next_version_and_another_name_a_new_expert(owner: Owner) -> None:
    made = owner.json("compress", "medicine", "--error", "0.5")
    assert (made["expert"], made["version"]) == ("medicine", 2)
    assert made["error"] <= 0.5
    owner.run("compress", "medicine-v1", "--rank", "2", expect=18)
    assert owner.json("compress", "medicine-v1", "--rank", "2", "--fresh")["rank"] == 2
    named = owner.json("compress", "medicine-v1", "--rank", "3", "--name", "pills")
    assert (named["expert"], named["version"]) == ("pills", 1)
    manifest = owner.json("review", "pills")["manifest"]
    assert manifest["training"]["compression"] == "svd"
    assert manifest["licence"] == "CC-BY-4.0"
    owner.run("push", "medicine", "--yes")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["law"], 10, "--rank or --error"),
        (["medicine-v1", "--rank", "33", "--fresh"], 10, "between 1 and 32"),
        (["medicine-v1", "--error", "2", "--fresh"], 10, "between 0 and 1"),
        (["nobody", "--rank", "2"], 17, "nobody"),
        (["law", "--rank", "2", "--name", "Law!"], 20, "The expert's name"),
    ],
)
def test_bad_requests_change_nothing(owner: Owner, arguments: list[str], code: int, said: str) -> None:
    before = sorted(path.name for path in (owner.home / "outbox").iterdir())
    assert said in owner.run("compress", *arguments, expect=code).stderr
    assert sorted(path.name for path in (owner.home / "outbox").iterdir()) == before
    assert not list((owner.home / "runs").glob("*.compressed"))
