"""``tune-router`` on a founded consortium with a trained anchor: what is written and logged, and what is refused and leaves nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common.audit.models import audit_model
from common.errors import AlreadyExistsError, DataError, ElmgroveError, FormatError, NotLoggedError, UsageError, WithdrawnError
from common.formats.proxies import encode_proxies, text_digest
from common.modeling.loading import load_model
from common.trust.certificates import TrustRoot
from coordinator.cli.main import cli
from coordinator.compute.router_tuning import mixture_rows
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.publish_anchor import publish_anchor
from coordinator.usecases.status import owner_status
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import Grove, Member
from tests.support.tiny_weights import TinyShape
from tests.unit.compute.small_models import topics, write_rows

SHAPE = TinyShape(hidden=32, inner=64, layers=2, heads=2, kv_heads=2, vocab=512)
SAMPLE = [text[:3000] for text in topics()[:20]]
QUICK = ("--steps", "3", "--batch-tokens", "256", "--seq-len", "64", "--device", "cpu")


@dataclass
class Scene:
    """A consortium with one model of the experts law and tides."""

    grove: Grove
    anna: Member
    ben: Member
    anchor: str
    model: Path
    proxies: Path

    def tune(self, model: Path, out: Path, *more: object) -> None:
        arguments = ["tune-router", model, "--out", out, "--home", self.grove.home.path, "--json", *QUICK, *more]
        cli.main([str(each) for each in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def scene(anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    grove = Grove(folder)
    published = publish_anchor(
        grove.coordinator, anchor, name="base", licence="", provenance="", sample=SAMPLE, sample_bytes=10**6, measure=None
    )
    members = [grove.join(name) for name in ("anna", "ben")]
    for member, name in zip(members, ("law", "tides"), strict=True):
        grove.push(member, member.package(folder / name, published.digest, name=name, shape=SHAPE, seed=len(name)))
    assemble_model(grove.coordinator, folder / "model", top_k=2)
    proxies = folder / "law.proxies.jsonl"
    proxies.write_bytes(encode_proxies("law", published.digest, [text_digest(text) for text in SAMPLE[5:9]]))
    yield Scene(grove, *members, published.digest, folder / "model", proxies)
    grove.close()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.sig"}


def test_a_tuned_model_is_a_logged_copy_with_other_rows(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_rows(tmp_path / "tides.jsonl.gz", topics()[30:34])
    before = bytes_of(scene.model)
    scene.tune(scene.model, tmp_path / "out", "--proxies", f"law={scene.proxies}", "--data", f"tides={text}")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    after = bytes_of(tmp_path / "out")
    assert bytes_of(scene.model) == before
    assert {name for name in after if after[name] != before[name]} == {"model-router.safetensors", "manifest.json"}
    assert found["digest"] == hashlib.sha256(after["manifest.json"]).hexdigest()
    assert [use["expert"] for use in found["proxies"]] == ["law", "tides"]
    assert found["proxies"][0]["sha256"] == hashlib.sha256(scene.proxies.read_bytes()).hexdigest()
    rows, tuned = mixture_rows(load_model(scene.model)), mixture_rows(load_model(tmp_path / "out"))
    assert torch.equal(rows[:, 0], tuned[:, 0])
    assert bool((rows[:, 1:] != tuned[:, 1:]).any(-1).all())
    root = TrustRoot.from_pem(scene.grove.home.root.read_bytes())
    report = audit_model(tmp_path / "out", root, log=scene.grove.home.log)
    assert report.faults == []
    facts = report.facts["tuned"]
    assert isinstance(facts, dict)
    assert (facts["entry"], facts["base"], facts["changed_rows"]) == (found["index"], found["base"], 4)
    assert facts["settings"]["active_experts"] == 2
    assert facts["settings"]["public_text"] == sample_digest(scene)
    uses = owner_status(scene.grove.coordinator, scene.grove.owner("anna")).models
    assert (found["digest"], ("law@1",)) in [(use.manifest, use.experts) for use in uses]


def sample_digest(scene: Scene) -> str:
    manifest = scene.grove.coordinator.ledger.state().anchors[scene.anchor].manifest
    return next(entry.sha256 for entry in manifest.files if entry.name == "public-sample.jsonl.gz")


def test_the_public_text_and_the_public_row_are_a_choice(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_rows(tmp_path / "public.jsonl.gz", topics()[34:38], field="body")
    scene.tune(scene.model, tmp_path / "out", "--data", f"public={text}", "--text-field", "body", "--tune-public")
    assert json.loads(capsys.readouterr().out)["proxies"] == []
    assert bool((mixture_rows(load_model(tmp_path / "out"))[:, 0] != 0).any(-1).all())


def listed(scene: Scene, path: Path, *, expert: str = "law", anchor: str | None = None, text: str = SAMPLE[0]) -> Path:
    path.write_bytes(encode_proxies(expert, anchor or scene.anchor, [text_digest(text)]))
    return path


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (["--proxies", "moss={good}"], UsageError, "no expert of this model; its experts are: law, tides"),
        (["--proxies", "public={good}"], UsageError, "no expert of this model"),
        (["--proxies", "law={good}", "--data", "law={good}"], UsageError, "given twice"),
        (["--proxies", "law={good}", "--proxies", "law={good}"], UsageError, "Two lists"),
        (["--proxies", "tides={good}"], UsageError, "a list for expert law, not for tides"),
        (["--proxies", "law={elsewhere}"], UsageError, "another anchor"),
        (["--proxies", "law={unknown}"], DataError, "1 of the 1 documents"),
        (["--proxies", "law={torn}"], FormatError, "torn"),
        (["--data", "law={missing}"], DataError, "missing"),
        (["--top-k", "4"], UsageError, "4 experts cannot be active"),
        (["--top-k", "1"], UsageError, "no gradient"),
        (["--seq-len", "128"], UsageError, "longer than the model's 64"),
    ],
)
def test_what_cannot_be_tuned_leaves_nothing(scene: Scene, tmp_path: Path, more: list[str], error: type[ElmgroveError], said: str) -> None:
    names = {
        "good": scene.proxies,
        "elsewhere": listed(scene, tmp_path / "elsewhere", anchor="0" * 64),
        "unknown": listed(scene, tmp_path / "unknown", text="in no sample"),
        "torn": tmp_path / "torn",
        "missing": tmp_path / "missing.jsonl",
    }
    names["torn"].write_bytes(scene.proxies.read_bytes()[:-1])
    size, files = scene.grove.coordinator.ledger.state().size, sorted(tmp_path.iterdir())
    with pytest.raises(error, match=said):
        scene.tune(scene.model, tmp_path / "out", *(text.format(**names) for text in more))
    assert sorted(tmp_path.iterdir()) == files
    assert scene.grove.coordinator.ledger.state().size == size


def test_only_an_assembled_model_of_experts_in_force_is_tuned(scene: Scene, tmp_path: Path) -> None:
    scene.tune(scene.model, tmp_path / "tuned")
    with pytest.raises(UsageError, match="tuned already"):
        scene.tune(tmp_path / "tuned", tmp_path / "again")
    with pytest.raises(AlreadyExistsError):
        scene.tune(scene.model, tmp_path / "tuned")
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "manifest.json").write_bytes((scene.model / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(NotLoggedError):
        scene.tune(forged, tmp_path / "again")
    manifest = scene.grove.coordinator.ledger.state().experts["tides"][-1].digest
    withdraw_expert(scene.grove.coordinator, scene.grove.owner("ben"), scene.ben.withdrawal("tides", manifest))
    with pytest.raises(WithdrawnError, match="tides of this model is not in force"):
        scene.tune(scene.model, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assemble_model(scene.grove.coordinator, tmp_path / "without")
    scene.tune(tmp_path / "without", tmp_path / "again")
