"""Evaluations as tasks: the loss of every scored token of every domain, kept so that rows can be mixed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file

from common.modeling.loading import load_model
from common.modeling.model import CausalLM
from tests.bench.experiment.artefacts import ROWS_FILE, Artefacts, assemble
from tests.bench.experiment.baselines import btm
from tests.bench.experiment.baselines.soup import Ingredients, prefix_weights, score_weighted_soup
from tests.bench.experiment.scoring import Score, ScoredText, choose_text, score_text
from tests.bench.experiment.store import Desk, Task

__all__ = ["PREFIX", "Evaluations"]

Part = Literal["tune", "valid"]
Losses = Mapping[str, NDArray[np.floating]]
LOSSES_FILE = "losses.safetensors"
PREFIX = 64
"""Tokens by which prompt routing and the weighted soup choose."""
SHORT_PREFIX = 32
"""Tokens that all models read in BTM at a bounded cost."""
SOUP_TEMPERATURES = (1.0, 4.0, 16.0, 64.0)
_SOUP_TUNING_WINDOWS = 6  # per domain: every window costs a model of its own


class Evaluations:
    """The evaluations of one seed."""

    def __init__(self, artefacts: Artefacts) -> None:
        self.artefacts = artefacts
        self.store, self.corpus, self.sizes = artefacts.store, artefacts.corpus, artefacts.sizes
        self._texts: dict[str, dict[str, ScoredText]] = {}
        self._latest: tuple[str, CausalLM] | None = None

    # --- text and results ---------------------------------------------------------------------------------------------

    def texts(self, part: Part) -> dict[str, ScoredText]:
        """What is scored, per domain."""
        if part not in self._texts:
            limit = self.sizes.eval_tokens if part == "valid" else self.sizes.tune_tokens
            tokenizer = self.artefacts.tokenizer()
            self._texts[part] = {
                name: choose_text(self.corpus.scored(name, part), tokenizer, max_tokens=limit, seq_len=self.sizes.seq_len)
                for name in self.corpus.names
            }
        return self._texts[part]

    def _identity(self, part: Part, **more: Any) -> dict[str, Any]:
        tokens = self.sizes.eval_tokens if part == "valid" else self.sizes.tune_tokens
        return {"part": part, "tokens": tokens, "seq_len": self.sizes.seq_len, "corpus": self.corpus.digest, "file": LOSSES_FILE, **more}

    def _finish(self, desk: Desk, part: Part, losses: Losses, **more: Any) -> Mapping[str, Any]:
        save_file({name: np.ascontiguousarray(values, dtype=np.float32) for name, values in losses.items()}, desk.out / LOSSES_FILE)
        scores = {name: Score.of(values, self.texts(part)[name]) for name, values in losses.items()}
        return {"scores": {name: {"nats": score.nats, "bits_per_byte": score.bits_per_byte} for name, score in scores.items()}, **more}

    def losses(self, task: Task) -> Losses:
        """Per domain, of a finished evaluation."""
        held = load_file(self.store.path(task) / LOSSES_FILE)
        return {name: held[name] for name in self.corpus.names}

    def stacked(self, tasks: Sequence[Task]) -> Losses:
        """Per domain ``[N, T]``, of several finished evaluations."""
        each = [self.losses(task) for task in tasks]
        return {name: np.stack([losses[name] for losses in each]) for name in self.corpus.names}

    def _cost(self, active: float, part: Part = "valid") -> float:
        tokens = self.sizes.eval_tokens if part == "valid" else self.sizes.tune_tokens
        return tokens * len(self.corpus.names) * self.artefacts.costs.forward(active)

    # --- models -------------------------------------------------------------------------------------------------------

    def _model(
        self,
        title: str,
        needs: Sequence[Task],
        load: Callable[[Desk], CausalLM],
        *,
        active: float = 1.0,
        part: Part = "valid",
        allowed: Sequence[bool] | None = None,
        stage: Literal["baselines", "ours"] = "baselines",
        **identity: Any,
    ) -> Task:
        def make(desk: Desk) -> Mapping[str, Any]:
            model = load(desk)
            flags = None if allowed is None else torch.tensor(allowed)
            return self._finish(
                desk,
                part,
                {
                    name: score_text(model, text, allowed=flags, label=f"Scoring {title} on {name}", progress=desk.progress)
                    for name, text in self.texts(part).items()
                },
            )

        whole = self._identity(part, allowed=None if allowed is None else list(allowed), **identity)
        label = f"scores of {title}{' for tuning' if part == 'tune' else ''}, seed {self.artefacts.seed}"
        # Several tasks read the texts by the anchor's tokenizer, so the anchor is needed by all.
        return Task("scores", label, whole, make, [self.artefacts.anchor, *needs], self._cost(active, part), stage)

    def dense(self, title: str, task: Task, *, part: Part = "valid") -> Task:
        """Of the anchor or a dense model."""
        return self._model(title, [task], lambda _: load_model(self.store.path(task)), part=part)

    def mixture(self, title: str, task: Task, *, part: Part = "valid") -> Task:
        """Of a jointly trained mixture."""
        return self._model(title, [task], lambda _: self.artefacts.mixture(task), active=self.sizes.moe_top_k, part=part)

    def uniform_soup(self, models: Sequence[Task]) -> Task:
        """Of the plain mean of all weights."""

        def load(_: Desk) -> CausalLM:
            soup = Ingredients([load_model(self.store.path(task)) for task in models])
            return soup.mix(torch.full((len(models),), 1 / len(models)))

        return self._model("uniform soup", models, load, recipe="uniform soup")

    def flexolmo(
        self, title: str, pairs: Sequence[Task], *, top_k: int, allowed: Sequence[bool] | None = None, rows: Task | None = None
    ) -> Task:
        """Of an assembled mixture, with experts left out, or with tuned rows."""
        active = min(top_k, len(pairs) + 1)
        needs = [*pairs, *([] if rows is None else [rows])]

        def load(desk: Desk) -> CausalLM:
            # Opt-outs follow each other and differ only in who may answer, so the last model is kept.
            key = " ".join([str(active), *(need.digest for need in needs)])
            if self._latest is None or self._latest[0] != key:
                packages = [self.store.path(pair) for pair in pairs]
                model = load_model(assemble(self.artefacts.anchor_folder(), packages, desk.work / "assembled", top_k=active))
                if rows is not None:
                    _set_rows(model, self.store.path(rows) / ROWS_FILE)
                self._latest = key, model
            return self._latest[1]

        return self._model(title, needs, load, active=active, allowed=allowed, stage="ours", top_k=top_k)

    # --- mixed from the losses of dense models ------------------------------------------------------------------------

    def _members(self, models: Mapping[str, Task], part: Part) -> list[Task]:
        return [self.dense(title, task, part=part) for title, task in models.items()]

    def ensemble(self, title: str, models: Mapping[str, Task], *, top_k: int, prefix: int | None = None) -> Task:
        """BTM; with a ``prefix`` the models are chosen by it and the others stop there."""
        tuning, valid = self._members(models, "tune"), self._members(models, "valid")

        def make(desk: Desk) -> Mapping[str, Any]:
            temperature = btm.best_temperature(self.stacked(tuning), self.texts("tune"), top_k=top_k)
            losses: dict[str, NDArray[np.floating]] = {}
            for name, stack in self.stacked(valid).items():
                text = self.texts("valid")[name]
                if prefix is None:
                    losses[name] = btm.ensemble(stack, text, top_k=top_k, temperature=temperature)
                else:
                    losses[name] = btm.ensemble_from_prefix(stack, text, prefix=prefix, top_k=top_k, temperature=temperature)
            return self._finish(desk, "valid", losses, temperature=temperature)

        identity = self._identity("valid", recipe="btm", top_k=top_k, prefix=prefix, temperatures=btm.TEMPERATURES)
        return Task("scores", f"scores of {title}, seed {self.artefacts.seed}", identity, make, [*tuning, *valid])

    def prompt_routing(self, models: Mapping[str, Task]) -> Task:
        """One dense model per window, chosen by the window's first tokens."""
        valid = self._members(models, "valid")

        def make(desk: Desk) -> Mapping[str, Any]:
            texts = self.texts("valid")
            losses = {name: btm.route_by_prefix(stack, texts[name], prefix=PREFIX) for name, stack in self.stacked(valid).items()}
            return self._finish(desk, "valid", losses)

        identity = self._identity("valid", recipe="prompt routing", prefix=PREFIX)
        return Task("scores", f"scores of prompt routing, seed {self.artefacts.seed}", identity, make, valid)

    def weighted_soup(self, models: Mapping[str, Task]) -> Task:
        """A soup per window, by the likelihood of its first tokens under each model; the temperature chosen on held-out text."""
        tuning, valid = self._members(models, "tune"), self._members(models, "valid")

        def make(desk: Desk) -> Mapping[str, Any]:
            soup = Ingredients([load_model(self.store.path(task)) for task in models.values()])

            def score(text: ScoredText, stack: NDArray[np.floating], temperature: float) -> NDArray[np.float32]:
                return score_weighted_soup(soup, prefix_weights(stack, text, prefix=PREFIX, temperature=temperature), text)

            stacks, texts = self.stacked(tuning), self.texts("tune")
            mean: dict[float, float] = {}
            for temperature in SOUP_TEMPERATURES:
                pieces = [_first_windows(texts[name], stacks[name], _SOUP_TUNING_WINDOWS) for name in texts]
                mean[temperature] = float(np.mean([score(*piece, temperature).mean() for piece in pieces]))
            best = min(mean, key=lambda temperature: mean[temperature])
            losses: dict[str, NDArray[np.floating]] = {}
            for done, (name, stack) in enumerate(self.stacked(valid).items()):
                desk.progress("Scoring weighted soups", done, len(self.corpus.names), "domains")
                losses[name] = score(self.texts("valid")[name], stack, best)
            return self._finish(desk, "valid", losses, temperature=best)

        identity = self._identity("valid", recipe="weighted soup", prefix=PREFIX, temperatures=SOUP_TEMPERATURES)
        needs = [*models.values(), *tuning, *valid]
        # Making a window's soup costs about as much as reading it.
        return Task("scores", f"scores of weighted soup, seed {self.artefacts.seed}", identity, make, needs, self._cost(4.0))


def _set_rows(model: CausalLM, path: Path) -> None:
    """Give a mixture other router rows, ``[L, N, H]``."""
    with torch.no_grad():
        for layer, rows in enumerate(load_torch_file(path)["rows"]):
            model.get_parameter(f"layers.{layer}.mlp.rows").copy_(rows)


def _first_windows(text: ScoredText, stack: NDArray[np.floating], count: int) -> tuple[ScoredText, NDArray[np.floating]]:
    kept = ScoredText(text.windows[:count], text.bytes)
    return kept, stack[:, : sum(kept.lengths)]
