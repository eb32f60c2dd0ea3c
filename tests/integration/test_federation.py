"""The whole federation through its three command lines: real processes, mutual TLS, real text, a model that learns."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from common.formats.manifest import ExpertManifest
from common.formats.proxies import parse_proxies, text_digest
from common.formats.strictjson import parse_document
from common.modeling.loading import load_model
from tests.support.domains import DOMAINS, write_domains
from tests.support.programs import ROOT, command, free_ports, run, run_json, serving, start

OWNERS = DOMAINS
ANCHOR_TOKENS = 81_920
EXPERT_STEPS = 16


@dataclass
class Federation:
    """Where everything of one finished round lies."""

    folder: Path
    home: Path

    @property
    def root(self) -> Path:
        return self.home / "certs" / "root.pem"

    @property
    def log(self) -> Path:
        return self.home / "log"

    def owner(self, name: str) -> Path:
        return self.folder / "owners" / name

    def package(self, name: str) -> Path:
        return self.owner(name) / "outbox" / f"{name}-v1"

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def data(self, name: str, part: str) -> Path:
        return self.folder / "data" / f"{name}.{part}.jsonl.gz"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("federation")
    made = Federation(folder, folder / "consortium")
    write_domains(folder / "data")
    port = free_ports()
    run("coordinator", "init", made.home, "--name", "grove", "--host", "127.0.0.1", "--port", port)
    train = ("--data", made.data("public", "train"), "--preset", "nano", "--tokens", ANCHOR_TOKENS)
    run("coordinator", "anchor", "train", *train, "--out", folder / "checkpoint")
    sample = ("--public-sample", made.data("public", "train"))
    run("coordinator", "anchor", "publish", folder / "checkpoint", "--name", "base", *sample, "--licence", "PSF-2.0", "--home", made.home)
    with serving(made.home, port):
        for name in OWNERS:
            be_owner(made, name)
        for name, chosen in {"all": (), "code": ("--include", "code"), "not-heads": ("--exclude", "heads")}.items():
            run("coordinator", "assemble", made.model(name), *chosen, "--home", made.home)
        run("owner", "withdraw", "heads", "--reason", "test", "--yes", "--home", made.owner("heads"))
    run("coordinator", "assemble", made.model("after"), "--home", made.home)
    return made


def be_owner(made: Federation, name: str) -> None:
    """What one owner types."""
    home = ("--home", made.owner(name))
    run("owner", "join", run("coordinator", "invite", name, "--home", made.home).stdout.strip(), *home)
    run("owner", "pull", *home)
    run("owner", "train", "--data", made.data(name, "train"), "--name", name, "--steps", EXPERT_STEPS, *home)
    run("owner", "review", name, *home)
    run("owner", "push", name, "--yes", *home)


@pytest.fixture(scope="module")
def tuned(federation: Federation) -> Path:
    """The model of one expert, its router tuned on what that expert's owner chose from the public sample."""
    listed = federation.folder / "code.proxies.jsonl"
    data = ("--data", federation.data("code", "train"))
    run("owner", "proxies", "code", *data, "--count", 12, "--out", listed, "--home", federation.owner("code"))
    quick = ("--steps", 4, "--batch-tokens", 1024, "--seq-len", 128)
    run(
        "coordinator", "tune-router", federation.model("code"), "--proxies", f"code={listed}", *quick,
        "--out", federation.model("tuned"), "--home", federation.home,
    )  # fmt: skip
    return federation.model("tuned")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.sig"}


def test_everyone_is_in_the_log(federation: Federation) -> None:
    kinds = [entry["kind"] for entry in run_json("coordinator", "log", "--home", federation.home)["entries"]]
    assert kinds == [
        "consortium-founded",
        "anchor-published",
        *["owner-admitted", "witness-registered", "expert-accepted"] * 2,
        *["model-assembled"] * 3,
        "expert-withdrawn",
        "model-assembled",
    ]


def test_leaving_an_expert_out_is_never_having_had_it(federation: Federation) -> None:
    alone = bytes_of(federation.model("code"))
    assert bytes_of(federation.model("not-heads")) == alone
    assert bytes_of(federation.model("after")) == alone
    assert bytes_of(federation.model("all")).keys() - alone.keys() == {"model-expert-002-heads.safetensors"}


def test_stock_transformers_gives_our_logits(federation: Federation) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = federation.model("all")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(stock).__name__ == "FlexOlmoForCausalLM"
    tokens = AutoTokenizer.from_pretrained(folder)("The import system of the interpreter", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs, ours = stock(tokens).logits, load_model(folder)(tokens)
    assert float((theirs - ours).abs().max()) < 1e-4


def test_excluding_at_run_time_gives_the_logits_of_the_model_without(federation: Federation) -> None:
    tokens = torch.arange(5, 69)[None]
    whole, without = load_model(federation.model("all")), load_model(federation.model("code"))
    with torch.no_grad():
        masked = whole(tokens, allowed=torch.tensor([True, True, False]))
        assert float((masked - without(tokens)).abs().max()) < 1e-4
        assert float((whole(tokens) - without(tokens)).abs().max()) > 1e-3, "the expert makes a difference"


def test_generating_with_and_without_an_expert(federation: Federation) -> None:
    options = ("--prompt", "def main", "--max-new-tokens", 12, "--temperature", 0)
    masked = run("coordinator", "generate", federation.model("all"), *options, "--exclude", "heads").stdout
    assert masked == run("coordinator", "generate", federation.model("code"), *options).stdout
    run("coordinator", "generate", federation.model("all"), *options, "--exclude", "nobody", expect=17)


def test_the_experts_have_learned(federation: Federation) -> None:
    models = [f"anchor={federation.folder / 'checkpoint'}", f"all={federation.model('all')}"]
    data = [part for name in ("public", *OWNERS) for part in ("--data", f"{name}={federation.data(name, 'valid')}")]
    report = federation.folder / "report.html"
    figures = run_json("coordinator", "evaluate", *models, *data, "--max-tokens", 8000, "--report", report)
    perplexity = {(score["model"], score["domain"]): score["perplexity"] for score in figures["scores"]}
    for name in OWNERS:
        assert perplexity["all", name] < 0.9 * perplexity["anchor", name]
    assert perplexity["all", "public"] < 1.15 * perplexity["anchor", "public"]
    page = report.read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_only_expert_and_row_left_the_owner(federation: Federation) -> None:
    folder = federation.package("code")
    manifest = parse_document(ExpertManifest, (folder / "manifest.json").read_bytes())
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "model.sig", "part-0000.safetensors", "privacy.json", "router.safetensors",
    }  # fmt: skip
    assert {entry.name.split(".mlp.")[1] for entry in manifest.tensors} == {
        "gate_proj.weight", "up_proj.weight", "down_proj.weight", "gate.weight",
    }  # fmt: skip


def test_the_auditor_agrees(federation: Federation) -> None:
    root, log = ("--root", federation.root), ("--log", federation.log)
    run("audit", "log", federation.log, *root)
    run("audit", "package", federation.package("code"), *root, *log)
    for name in ("all", "after"):
        run("audit", "model", federation.model(name), *root, *log)


@pytest.mark.parametrize("victim", ["model-expert-002-heads.safetensors", "model-router.safetensors", "config.json", "manifest.json"])
def test_the_auditor_finds_one_flipped_byte(federation: Federation, tmp_path: Path, victim: str) -> None:
    copy = tmp_path / "model"
    shutil.copytree(federation.model("all"), copy)
    content = bytearray((copy / victim).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / victim).write_bytes(content)
    arguments = ("model", copy, "--root", federation.root, "--log", federation.log)
    done = subprocess.run(command("audit", *arguments), capture_output=True, text=True, check=False, cwd=ROOT)
    assert 20 <= done.returncode < 80, done.stdout + done.stderr


def test_the_auditor_needs_no_network(federation: Federation) -> None:
    """The offline claim, proved by taking the network away."""
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us make a network namespace")
    arguments = ("model", federation.model("all"), "--root", federation.root, "--log", federation.log)
    subprocess.run(["unshare", "--net", *command("audit", *arguments)], check=True, capture_output=True, cwd=ROOT)


def test_a_withdrawn_expert_cannot_be_assembled(federation: Federation, tmp_path: Path) -> None:
    done = run("coordinator", "assemble", tmp_path / "model", "--include", "heads", "--home", federation.home, expect=57)
    assert "withdrawn" in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_tuned_router_differs_in_its_rows_alone_and_is_named_as_tuned(federation: Federation, tuned: Path) -> None:
    base, other = bytes_of(federation.model("code")), bytes_of(tuned)
    assert base.keys() == other.keys()
    assert {name for name in base if base[name] != other[name]} == {"model-router.safetensors", "manifest.json"}
    assert bool((load_model(tuned).layers[0].mlp.rows[0] == 0).all())
    arguments = ("--root", federation.root, "--log", federation.log)
    assert "TUNED by the operator" in run("audit", "model", tuned, *arguments).stdout
    found = run_json("audit", "model", tuned, *arguments)["tuned"]
    listed = federation.folder / "code.proxies.jsonl"
    assert found["proxies"] == [{"expert": "code", "sha256": hashlib.sha256(listed.read_bytes()).hexdigest()}]
    assert found["base"] == hashlib.sha256(base["manifest.json"]).hexdigest()
    assert found["changed_rows"] == 4
    assert run_json("coordinator", "log", "--last", 1, "--home", federation.home)["entries"][0]["kind"] == "router-tuned"


def test_only_digests_of_public_documents_leave_as_proxies(federation: Federation, tuned: Path) -> None:
    head, digests = parse_proxies((federation.folder / "code.proxies.jsonl").read_bytes())
    assert (head.expert, len(digests)) == ("code", 12)
    with gzip.open(next(federation.owner("code").glob("anchors/*/public-sample.jsonl.gz")), "rt", encoding="utf-8") as stream:
        public = {text_digest(json.loads(line)["text"]) for line in stream}
    assert set(digests) <= public


def test_stock_transformers_loads_a_tuned_model(federation: Federation, tuned: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(5, 69)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)(tokens).logits
        assert float((theirs - load_model(tuned)(tokens)).abs().max()) < 1e-4
        assert float((theirs - load_model(federation.model("code"))(tokens)).abs().max()) > 1e-3, "tuning makes a difference"


def test_an_interrupted_evaluation_leaves_no_report(federation: Federation, tmp_path: Path) -> None:
    models = [f"m{number}={federation.model('all')}" for number in range(20)]
    data = ("--data", f"public={federation.data('public', 'valid')}", "--max-tokens", 50_000)
    process = start("coordinator", "evaluate", *models, *data, "--report", tmp_path / "report.html", "--json-out", tmp_path / "report.json")
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["evaluate", "{folder}/checkpoint", "--data", "x={folder}/nothing.jsonl"], 12, "nothing.jsonl"),
        (["evaluate", "{folder}/checkpoint", "--data", "x={data}", "--text-field", "body"], 13, "body"),
        (["evaluate", "{folder}/data", "--data", "x={data}"], 14, "config.json"),
        (["generate", "{folder}/checkpoint", "--prompt", "x", "--exclude", "code"], 10, "no experts"),
        (["anchor", "train", "--data", "{folder}/empty.jsonl", "--out", "{folder}/never"], 12, "empty"),
        (["anchor", "publish", "{folder}/models/all", "--name", "other", "--home", "{home}"], 14, "Olmo2ForCausalLM"),
        (["assemble", "{folder}/models/all", "--home", "{home}"], 18, "exists"),
        (["assemble", "{root}/never", "--home", "{home}"], 10, "Cannot write"),
        (["anchor", "train", "--data", "{data}", "--out", "{root}/never"], 10, "Cannot write"),
        (["evaluate", "{folder}/checkpoint", "--data", "x={data}", "--report", "{folder}/never/report.html"], 17, "no folder"),
        (["assemble", "{folder}/never", "--top-k", "9", "--home", "{home}"], 10, "9"),
    ],
)
def test_bad_requests_of_the_operator(federation: Federation, arguments: list[str], code: int, said: str) -> None:
    (federation.folder / "empty.jsonl").touch()
    names = {"folder": federation.folder, "home": federation.home, "data": federation.data("code", "valid"), "root": federation.root}
    done = run("coordinator", *(text.format(**names) for text in arguments), expect=code)
    assert said in done.stderr
    assert not (federation.folder / "never").exists()
