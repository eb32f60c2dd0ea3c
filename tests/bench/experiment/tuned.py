"""Router tuning on public proxies, as the product does it: every owner names documents of the public sample, the coordinator tunes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file

from common.files import write_atomic
from common.formats.layout import PUBLIC_SAMPLE_NAME
from common.formats.proxies import encode_proxies
from coordinator.compute.router_tuning import TuningSettings
from coordinator.compute.tuning_run import TuningTexts, run_tuning
from coordinator.usecases.tune_router import PublicSample
from owner_client.training.proxies import ProxySettings, choose_proxies
from tests.bench.experiment.artefacts import ROWS_FILE, Artefacts, assemble
from tests.bench.experiment.store import Desk, Task

__all__ = ["tuning"]

_LIST = "proxies.jsonl"


def proxies(made: Artefacts, name: str) -> Task:
    """The list of one owner."""
    settings = ProxySettings(count=made.sizes.proxies, candidates=4 * made.sizes.proxies, seed=made.seed)

    def make(desk: Desk) -> Mapping[str, Any]:
        found = choose_proxies(made.anchor_folder(), [str(made.corpus.training(name))], settings, device="cpu", progress=desk.progress)
        write_atomic(desk.out / _LIST, encode_proxies(name, made.anchor_digest(), [proxy.sha256 for proxy in found]))
        return {"documents": len(found)}

    identity = {
        "domain": name,
        "count": settings.count,
        "candidates": settings.candidates,
        "seed": settings.seed,
        "corpus": made.corpus.digest,
    }
    return Task("proxies", f"proxies of {name}, seed {made.seed}", identity, make, [made.anchor], stage="ours")


def tuning(made: Artefacts, pairs: Mapping[str, Task], *, top_k: int) -> Task:
    """The tuned rows of the mixture of all pairs; learning rate and all else by the product's defaults."""
    sizes = made.sizes
    steps = max(1, sizes.tuning_tokens // sizes.batch_tokens)
    settings = TuningSettings(steps=steps, batch_tokens=sizes.batch_tokens, seq_len=sizes.seq_len, seed=made.seed)
    lists = {name: proxies(made, name) for name in pairs}

    def make(desk: Desk) -> Mapping[str, Any]:
        folder = assemble(made.anchor_folder(), [made.store.path(pair) for pair in pairs.values()], desk.work / "assembled", top_k=top_k)
        sample = made.anchor_folder() / PUBLIC_SAMPLE_NAME
        public = PublicSample(path=sample, sha256=hashlib.sha256(sample.read_bytes()).hexdigest(), anchor=made.anchor_digest())
        texts = TuningTexts(data={}, proxies={name: made.store.path(task) / _LIST for name, task in lists.items()})
        _, tuned = run_tuning(folder, public, texts, settings, device="cpu", progress=desk.progress)
        save_file({"rows": tuned.rows.contiguous()}, desk.out / ROWS_FILE)
        return {"first_loss": tuned.first_loss, "last_loss": tuned.last_loss}

    identity = {"steps": steps, "batch_tokens": sizes.batch_tokens, "seq_len": sizes.seq_len, "top_k": top_k, "lr": settings.lr}
    cost = sizes.tuning_tokens * made.costs.rows_training(top_k)
    return Task("tuning", f"router tuning, seed {made.seed}", identity, make, [made.anchor, *pairs.values(), *lists.values()], cost, "ours")
