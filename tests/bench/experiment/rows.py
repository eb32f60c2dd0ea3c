"""The rows of the table for one seed: what each is, what it costs, and the evaluation that measures it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from coordinator.usecases.assemble import DEFAULT_TOP_K
from tests.bench.experiment.artefacts import Artefacts
from tests.bench.experiment.evaluation import PREFIX, SHORT_PREFIX, Evaluations
from tests.bench.experiment.store import Task
from tests.bench.experiment.tuned import tuning

__all__ = ["GROUPS", "Row", "all_rows"]

Group = Literal["reference", "single", "baseline", "ours", "opt-out", "ablation"]
GROUPS: tuple[Group, ...] = ("reference", "single", "baseline", "ours", "opt-out", "ablation")

PAPER_RECIPE: Mapping[str, Any] = {"router": "hidden-mean", "public_share": 0.0}
_TOP_KS = (1, 2, 3, 5, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row. ``training`` is in units of what all expert pairs cost, ``inference`` in those of the dense anchor, per token."""

    name: str
    group: Group
    task: Task
    training: float
    inference: float
    note: str = ""


def all_rows(artefacts: Artefacts) -> list[Row]:
    """All rows of a seed."""
    rows = _Rows(artefacts)
    return [*rows.references(), *rows.singles(), *rows.baselines(), *rows.ours(), *rows.opt_outs(), *rows.ablations()]


class _Rows:
    def __init__(self, artefacts: Artefacts) -> None:
        self._made = artefacts
        self._scores = Evaluations(artefacts)
        self._domains = artefacts.domains
        self._costs, self._budget, self._sizes = artefacts.costs, artefacts.budget, artefacts.sizes
        self._top_k = min(DEFAULT_TOP_K, len(self._domains) + 1)
        self._members = {"anchor": artefacts.anchor} | {f"dense {name}": artefacts.dense(name) for name in self._domains}

    def _dense(self, active: float = 1.0) -> float:
        return self._costs.forward(active) / self._costs.forward()

    def references(self) -> Iterator[Row]:
        """The anchor, and what training on everything gives."""
        made, scores = self._made, self._scores
        yield Row(name="anchor", group="reference", task=scores.dense("anchor", made.anchor), training=0.0, inference=1.0)
        task = made.dense_all()
        training = self._budget.dense_all_tokens * self._costs.full_training() / self._budget.total
        yield Row(
            name="dense on everything", group="reference", task=scores.dense("dense on everything", task), training=training, inference=1.0
        )
        for factor in (1.0, 2.0):
            task, name = made.unrestricted(factor), f"unrestricted MoE, {factor:g}x"
            inference = self._dense(self._sizes.moe_top_k)
            yield Row(name=name, group="reference", task=scores.mixture(name, task), training=factor, inference=inference)

    def singles(self) -> Iterator[Row]:
        """Each domain's own dense model and own pair, on all domains."""
        share = 1 / len(self._domains)
        for name in self._domains:
            task = self._scores.dense(f"dense {name}", self._made.dense(name))
            yield Row(name=f"dense {name}", group="single", task=task, training=share, inference=1.0)
        for name, pair in self._pairs({}).items():
            task = self._scores.flexolmo(f"pair {name}", [pair], top_k=2)
            yield Row(name=f"pair {name}", group="single", task=task, training=share, inference=self._dense(2))
        yield from self._ffns()

    def _ffns(self) -> Iterator[Row]:
        share = self._costs.ffn_training() * self._sizes.pair_tokens / self._budget.total
        for name in self._domains:
            task = self._scores.dense(f"FFNs of {name}", self._made.ffns(name))
            yield Row(
                name=f"only FFNs {name}", group="single", task=task, training=share, inference=1.0, note="without the anchor beside it"
            )

    def baselines(self) -> Iterator[Row]:
        """Ways to merge dense models."""
        scores, members, count = self._scores, self._members, len(self._members)
        yield self._baseline("uniform soup", scores.uniform_soup(list(members.values())), 1.0)
        yield self._baseline("weighted soup", scores.weighted_soup(members), 1.0 + count * self._share(PREFIX), "weights from the prompt")
        yield self._baseline("prompt routing", scores.prompt_routing(members), self._prefix_cost(PREFIX, 1), "all models read the prompt")
        yield self._baseline("BTM, top-2", scores.ensemble("BTM, top-2", members, top_k=2), count, "all models run")
        yield self._baseline("BTM, full", scores.ensemble("BTM, full", members, top_k=count), count, "all models run")
        bounded = self._bounded()
        name = f"BTM at the mixture's cost, top-{bounded}"
        task = scores.ensemble(name, members, top_k=bounded, prefix=SHORT_PREFIX)
        yield self._baseline(name, task, self._prefix_cost(SHORT_PREFIX, bounded), f"all models read {SHORT_PREFIX} tokens")
        top_k, tokens = self._sizes.moe_top_k, self._sizes.tuning_tokens
        for rows_only, name in ((True, "BTX, router on public text"), (False, "BTX, all weights on all text")):
            per_token = self._costs.rows_training(top_k) if rows_only else self._costs.full_training(top_k)
            yield Row(
                name=name,
                group="baseline",
                task=scores.mixture(name, self._made.btx(rows_only=rows_only)),
                training=1 + tokens * per_token / self._budget.total,
                inference=self._dense(top_k),
            )

    def _baseline(self, name: str, task: Task, inference: float, note: str = "") -> Row:
        return Row(name=name, group="baseline", task=task, training=1.0, inference=inference, note=note)

    def _share(self, prefix: int) -> float:
        return min(1.0, prefix / self._sizes.seq_len)

    def _prefix_cost(self, prefix: int, top_k: int) -> float:
        """Dense forward passes per token of a full window, of which all models read the prefix."""
        share = self._share(prefix)
        return len(self._members) * share + top_k * (1 - share)

    def _bounded(self) -> int:
        """As many models as cost no more than the mixture, at least one."""
        affordable = [k for k in range(1, len(self._members) + 1) if self._prefix_cost(SHORT_PREFIX, k) <= 1.05 * self._dense(self._top_k)]
        return max(affordable, default=1)

    # --- ours ---------------------------------------------------------------------------------------------------------

    def _pairs(self, overrides: Mapping[str, Any]) -> dict[str, Task]:
        return {name: self._made.pair(name, overrides) for name in self._domains}

    def _mixture(
        self,
        name: str,
        overrides: Mapping[str, Any],
        *,
        group: Group = "ours",
        top_k: int | None = None,
        without: Sequence[str] = (),
        note: str = "",
    ) -> Row:
        """An assembled mixture of pairs that were trained with ``overrides``, with some experts left out."""
        allowed = [True, *(domain not in without for domain in self._domains)] if without else None
        k = top_k or self._top_k
        task = self._scores.flexolmo(name, list(self._pairs(overrides).values()), top_k=k, allowed=allowed)
        kept = len(self._domains) - len(without)
        training = kept * self._made.pair_cost(overrides) / self._budget.total
        return Row(name=name, group=group, task=task, training=training, inference=self._dense(min(k, kept + 1)), note=note)

    def ours(self) -> Iterator[Row]:
        """FlexOlmo by the product's defaults, and its variants."""
        yield self._mixture("FlexOlmo", {}, note=f"top-{self._top_k}, no joint step")
        yield self._mixture("FlexOlmo, paper's recipe", PAPER_RECIPE)
        yield self._tuned()
        rank = {"rank": max(1, self._sizes.anchor.hidden_size // 8)}
        yield self._mixture(f"FlexOlmo, rank {rank['rank']}", rank)

    def _tuned(self) -> Row:
        """The same mixture after a joint step on public text that the owners chose."""
        pairs = self._pairs({})
        rows = tuning(self._made, pairs, top_k=self._top_k)
        return Row(
            name="FlexOlmo, router tuned on proxies",
            group="ours",
            task=self._scores.flexolmo("FlexOlmo, tuned", list(pairs.values()), top_k=self._top_k, rows=rows),
            training=(len(pairs) * self._made.pair_cost({}) + rows.cost) / self._budget.total,
            inference=self._dense(self._top_k),
        )

    def opt_outs(self) -> Iterator[Row]:
        """The mixture without each of its experts."""
        for name in self._domains:
            yield self._mixture(f"without {name}", {}, group="opt-out", without=[name])

    def ablations(self) -> Iterator[Row]:
        """One thing changed at a time."""
        for top_k in _TOP_KS:
            if top_k <= len(self._domains) + 1 and top_k != self._top_k:
                yield self._mixture(f"top-{top_k}", {}, group="ablation", top_k=top_k)
        for count in range(1, len(self._domains)):
            yield self._mixture(f"{count + 1} experts", {}, group="ablation", without=self._domains[count:])
        training = self._costs.ffn_training() * self._sizes.pair_tokens * len(self._domains) / self._budget.total
        task = self._scores.flexolmo("without the anchor", [self._made.unanchored(name) for name in self._domains], top_k=self._top_k)
        yield Row(
            name="experts trained without the anchor",
            group="ablation",
            task=task,
            training=training,
            inference=self._dense(self._top_k),
        )
        half, double = self._sizes.pair_tokens // 2, self._sizes.pair_tokens * 2
        width = self._sizes.anchor.hidden_size
        changes: dict[str, dict[str, Any]] = {
            "rows not refitted": {"router_refit": False},
            "public share 0": {"public_share": 0.0},
            "public share 0.3": {"public_share": 0.3},
            "AdamW": {"optimizer": "adamw"},
            "router hidden-mean": {"router": "hidden-mean"},
            "router random": {"router": "random"},
            "rows not trained": {"router_train": False},
            "half the tokens": {"tokens": half},
            "twice the tokens": {"tokens": double},
            f"rank {width // 32}": {"rank": width // 32},
            f"rank {width // 2}": {"rank": width // 2},
        }
        for name, overrides in changes.items():
            yield self._mixture(name, overrides, group="ablation")
