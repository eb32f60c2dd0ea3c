"""What is trained for one seed: the anchor, dense models, expert pairs and mixtures, each a task that names all it depends on."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.formats.layout import PUBLIC_SAMPLE_NAME, router_row_name
from common.formats.manifest import LowRankKind
from common.lowrank import materialise
from common.modeling.config import ModelConfig
from common.modeling.export import dense_tensors, save_dense
from common.modeling.loading import load_model, load_pair
from common.modeling.model import CausalLM
from common.textdata.packing import PackedSequences
from common.textdata.readers import read_texts
from common.textdata.tokens import TokenFile, Tokenizer, load_tokenizer, tokenize_to_file
from common.weights.assembly import write_assembly
from common.weights.plan import plan_assembly
from common.weights.sources import AnchorSource, ExpertSource, anchor_source, expert_source, read_manifest
from coordinator.compute.anchor_training import train_anchor
from coordinator.compute.moments import public_moments
from owner_client.training import routers
from owner_client.training.package import package_kind, write_tensors
from owner_client.training.routers import collect_inputs, refit_rows
from owner_client.training.run import train_expert
from owner_client.training.settings import TrainSettings
from tests.bench.experiment.baselines.mixtures import branch_train_mix, load_mixture, save_mixture, upcycled
from tests.bench.experiment.data import PUBLIC, Corpus, write_texts
from tests.bench.experiment.flops import Budget, Costs
from tests.bench.experiment.presets import Sizes
from tests.bench.experiment.recipes import BTX_ALL, BTX_ROUTER, DENSE, DENSE_PUBLIC_SHARE, MIXTURE
from tests.bench.experiment.store import Desk, Store, Task
from tests.bench.experiment.training import Blend, Recipe, continue_training
from tests.support.tiny_manifests import anchor_manifest, expert_manifest

__all__ = ["MIXTURE_FILE", "ROWS_FILE", "Artefacts", "assemble"]

MIXTURE_FILE = "mixture.safetensors"
ROWS_FILE = "rows.safetensors"
_UNMEASURED = (
    "eval_tokens",
    "checkpoint_every",
    "checkpoint_layers",
    "compile",
    "device",
    "micro_tokens",
)  # they change nothing in a package


class Artefacts:
    """The tasks of one seed.

    Args:
        store: where results go.
        corpus: the texts.
        sizes: of everything.
        seed: of the anchor and of every training.
    """

    def __init__(self, store: Store, corpus: Corpus, sizes: Sizes, seed: int) -> None:
        self.store, self.corpus, self.sizes, self.seed = store, corpus, sizes, seed

    @property
    def domains(self) -> tuple[str, ...]:
        """The owners."""
        return self.corpus.domains

    @cached_property
    def config(self) -> ModelConfig:
        """Sizes of the anchor."""
        preset = self.sizes.anchor
        return ModelConfig(
            vocab_size=preset.vocab_size,
            hidden_size=preset.hidden_size,
            intermediate_size=preset.intermediate_size,
            num_layers=preset.num_layers,
            num_heads=preset.num_heads,
            num_kv_heads=preset.num_kv_heads,
            max_position_embeddings=preset.max_positions,
            rope_theta=preset.rope_theta,
            rms_norm_eps=1e-6,
        )

    @property
    def costs(self) -> Costs:
        """Of the anchor's sizes."""
        return Costs(self.config)

    @property
    def budget(self) -> Budget:
        """What every row may spend."""
        return Budget(self.costs, len(self.domains), self.sizes.pair_tokens)

    # --- the anchor ---------------------------------------------------------------------------------------------------

    @cached_property
    def anchor(self) -> Task:
        """The anchor as it is published: with its public sample, router statistics and manifest."""
        seed = self.seed if self.sizes.anchor_seed is None else self.sizes.anchor_seed
        preset = replace(self.sizes.anchor, settings=replace(self.sizes.anchor.settings, seed=seed))

        def make(desk: Desk) -> Mapping[str, Any]:
            trained, mix = desk.work / "anchor", self.corpus.mix()
            if not trained.exists():
                train_anchor([str(mix)], out_dir=trained, preset=preset, progress=desk.progress)
            for path in trained.iterdir():
                (desk.out / path.name).write_bytes(path.read_bytes())
            write_texts(desk.out / PUBLIC_SAMPLE_NAME, _up_to(read_texts([mix]), self.sizes.sample_bytes))
            public_moments(desk.out, read_texts([desk.out / PUBLIC_SAMPLE_NAME]), progress=desk.progress)
            anchor_manifest(desk.out, name="anchor")
            return {}

        identity = {"preset": asdict(preset), "corpus": self.corpus.digest, "sample_bytes": self.sizes.sample_bytes}
        cost = preset.settings.tokens * self.costs.full_training()
        return Task("anchor", f"anchor, seed {seed}", identity, make, cost=cost)

    def anchor_folder(self) -> Path:
        """Where it is."""
        return self.store.path(self.anchor)

    def anchor_digest(self) -> str:
        """Of its manifest: what packages and lists name it by."""
        return hashlib.sha256(read_manifest(self.anchor_folder())).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The anchor's, and so everyone's."""
        return load_tokenizer(self.anchor_folder())

    def tokens(self, name: str) -> TokenFile:
        """Training tokens of an owner, or of the public mix; made when first needed."""
        tokenizer = self.tokenizer()
        folder = f"{name}-{self.corpus.digest[:12]}-{tokenizer.digest[:12]}"
        (self.store.folder / "tokens").mkdir(exist_ok=True)
        with self.store.lock(f"tokens-{folder}", wait=True):
            texts = read_texts([self.corpus.training(name)])
            return tokenize_to_file(texts, tokenizer, self.store.folder / "tokens" / folder, key=self.corpus.digest)

    def _blend(self, shares: Mapping[str, float], steps: int) -> Blend:
        sources = [PackedSequences(self.tokens(name), seq_len=self.sizes.seq_len, seed=self.seed) for name in shares]
        return Blend(sources, list(shares.values()), seed=self.seed, total=steps * self._batch_size)

    @property
    def _batch_size(self) -> int:
        return self.sizes.batch_tokens // self.sizes.seq_len

    def everything(self) -> dict[str, float]:
        """All texts alike."""
        return dict.fromkeys(self.corpus.names, 1 / len(self.corpus.names))

    # --- dense models and mixtures of which every weight is trained ---------------------------------------------------

    def _trained(self, desk: Desk, model: CausalLM, recipe: Recipe, shares: Mapping[str, float], tokens: int, label: str) -> float:
        steps = max(1, tokens // self.sizes.batch_tokens)
        return continue_training(
            model,
            self._blend(shares, steps),
            steps=steps,
            batch_size=self._batch_size,
            seq_len=self.sizes.seq_len,
            recipe=recipe,
            work=desk.work,
            progress=desk.progress,
            label=label,
        )

    def _identity(self, recipe: Recipe, shares: Mapping[str, float], tokens: int, **more: Any) -> dict[str, Any]:
        sizes = {"tokens": tokens, "batch_tokens": self.sizes.batch_tokens, "seq_len": self.sizes.seq_len}
        return {"recipe": asdict(recipe), "shares": dict(shares), "seed": self.seed, "corpus": self.corpus.digest, **sizes, **more}

    def dense(self, name: str, *, recipe: Recipe = DENSE, public_share: float = DENSE_PUBLIC_SHARE) -> Task:
        """A dense model continued from the anchor on one domain."""
        shares = {name: 1 - public_share} | ({PUBLIC: public_share} if public_share else {})
        return self._dense(f"dense {name}", recipe, shares, self.budget.dense_expert_tokens)

    def dense_all(self) -> Task:
        """One dense model continued on everything, for the cost of all experts."""
        return self._dense("dense on everything", DENSE, self.everything(), self.budget.dense_all_tokens)

    def ffns(self, name: str) -> Task:
        """A dense model of which only the FFNs were continued on one domain, for as many tokens as an expert pair sees."""
        return self._dense(f"FFNs of {name}", DENSE, {name: 1.0}, self.sizes.pair_tokens, only=".mlp.")

    def _dense(self, label: str, recipe: Recipe, shares: Mapping[str, float], tokens: int, *, only: str = "") -> Task:
        def make(desk: Desk) -> Mapping[str, Any]:
            model = load_model(self.anchor_folder())
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(only in parameter_name)
            loss = self._trained(desk, model, recipe, shares, tokens, label)
            save_dense(model, desk.out, tokenizer_files=self.anchor_folder(), into=True)
            return {"training_loss": loss}

        cost = tokens * (self.costs.ffn_training() if only else self.costs.full_training())
        identity = self._identity(recipe, shares, tokens, **({"only": only} if only else {}))
        return Task("dense", f"{label}, seed {self.seed}", identity, make, [self.anchor], cost)

    def unrestricted(self, factor: float, *, recipe: Recipe = MIXTURE) -> Task:
        """A mixture upcycled from the anchor and trained on everything, at ``factor`` times the experts' cost."""
        tokens = self.budget.mixture_tokens(self.sizes.moe_top_k, factor)
        label, shares = f"unrestricted MoE, {factor:g}x", self.everything()

        def make(desk: Desk) -> Mapping[str, Any]:
            model = upcycled(load_model(self.anchor_folder()), experts=len(self.corpus.names), top_k=self.sizes.moe_top_k, seed=self.seed)
            loss = self._trained(desk, model, recipe, shares, tokens, label)
            save_mixture(model, desk.out / MIXTURE_FILE)
            return {"training_loss": loss}

        identity = self._identity(recipe, shares, tokens, top_k=self.sizes.moe_top_k)
        cost = tokens * self.costs.full_training(self.sizes.moe_top_k)
        return Task("moe", f"{label}, seed {self.seed}", identity, make, [self.anchor], cost)

    def btx(self, *, rows_only: bool) -> Task:
        """Branch-Train-MiX of anchor and dense experts: rows trained on public text, or everything on all texts."""
        recipe = BTX_ROUTER if rows_only else BTX_ALL
        shares = {PUBLIC: 1.0} if rows_only else self.everything()
        tokens, top_k = self.sizes.tuning_tokens, self.sizes.moe_top_k
        label = "BTX, router on public text" if rows_only else "BTX, all weights on all text"
        models = [self.anchor, *(self.dense(name) for name in self.domains)]

        def make(desk: Desk) -> Mapping[str, Any]:
            model = branch_train_mix([load_model(self.store.path(task)) for task in models], top_k=top_k, seed=self.seed)
            if rows_only:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(name.endswith(".mlp.rows"))
            loss = self._trained(desk, model, recipe, shares, tokens, label)
            save_mixture(model, desk.out / MIXTURE_FILE)
            return {"training_loss": loss}

        identity = self._identity(recipe, shares, tokens, top_k=top_k, rows_only=rows_only)
        cost = tokens * (self.costs.rows_training(top_k) if rows_only else self.costs.full_training(top_k))
        return Task("btx", f"{label}, seed {self.seed}", identity, make, models, cost)

    def mixture(self, task: Task) -> CausalLM:
        """What :meth:`unrestricted` or :meth:`btx` made."""
        path = self.store.path(task) / MIXTURE_FILE
        return load_mixture(path, load_model(self.anchor_folder()).config, experts=len(self.corpus.names), top_k=self.sizes.moe_top_k)

    # --- expert pairs, as owners train them ---------------------------------------------------------------------------

    def settings(self, overrides: Mapping[str, Any]) -> TrainSettings:
        """The product's defaults at the experiment's sizes."""
        ours: dict[str, Any] = {
            "tokens": self.sizes.pair_tokens,
            "batch_tokens": self.sizes.batch_tokens,
            "seq_len": self.sizes.seq_len,
            "seed": self.seed,
            "dtype": "float32",
            "device": "cpu",
            "eval_tokens": self.sizes.batch_tokens,
        }
        return TrainSettings(**{**ours, **overrides}).for_width(self.config.hidden_size)

    def pair(self, name: str, overrides: Mapping[str, Any]) -> Task:
        """An owner's package, by ``owner_client.training.run.train_expert``."""
        settings = self.settings(overrides)
        label = f"expert {name}" + "".join(f", {key} {value}" for key, value in overrides.items())

        def make(desk: Desk) -> Mapping[str, Any]:
            made, data = desk.work / "package", [str(self.corpus.training(name))]
            if not made.exists():
                train_expert(self.anchor_folder(), data, run_dir=desk.work / "run", out_dir=made, settings=settings, progress=desk.progress)
            for path in made.iterdir():
                (desk.out / path.name).write_bytes(path.read_bytes())
            expert_manifest(desk.out, self.anchor_digest(), name=name, kind=package_kind(desk.out, self.anchor_folder()))
            return {}

        kept = {key: value for key, value in asdict(settings).items() if key not in _UNMEASURED}
        identity = {"settings": kept, "domain": name, "corpus": self.corpus.digest, "routers": _source_digest()}
        cost = settings.total_steps(0) * settings.batch_tokens * self.costs.pair_training(settings.rank)
        return Task("pair", f"{label}, seed {self.seed}", identity, make, [self.anchor], cost, "ours")

    def unanchored(self, name: str) -> Task:
        """The FFNs of :meth:`ffns` as a package, with rows fitted as those of a trained pair are."""
        settings, trained = self.settings({}), self.ffns(name)

        def make(desk: Desk) -> Mapping[str, Any]:
            dense = load_model(self.store.path(trained))
            tensors = {key: value.detach() for key, value in dense_tensors(dense).items() if ".mlp." in key}
            pair = load_pair(self.anchor_folder(), expert=tensors)
            private, public = (
                collect_inputs(
                    pair,
                    PackedSequences(self.tokens(text), seq_len=settings.seq_len, seed=self.seed),
                    tokens=settings.router_tokens,
                    seq_len=settings.seq_len,
                )
                for text in (name, PUBLIC)
            )
            rows = refit_rows(private, public, layers=self.config.num_layers)
            write_tensors(tensors, {router_row_name(layer): row[None] for layer, row in enumerate(rows)}, desk.work / "package")
            for path in (desk.work / "package").iterdir():
                (desk.out / path.name).write_bytes(path.read_bytes())
            expert_manifest(desk.out, self.anchor_digest(), name=name, kind=package_kind(desk.out, self.anchor_folder()))
            return {}

        identity = {"router_tokens": settings.router_tokens, "refit": settings.router_refit, "routers": _source_digest()}
        return Task("unanchored", f"{trained.title} as a package", identity, make, [trained], 0.0, "ours")

    def pair_cost(self, overrides: Mapping[str, Any]) -> float:
        """FLOPs of one owner's training."""
        settings = self.settings(overrides)
        return settings.total_steps(0) * settings.batch_tokens * self.costs.pair_training(settings.rank)


def _source_digest() -> str:
    """Of the code that fits router rows: it decides the result as much as the settings do."""
    return hashlib.sha256(inspect.getsource(routers).encode()).hexdigest()


def _up_to(texts: Iterable[str], limit: int) -> Iterator[str]:
    used = 0
    for text in texts:
        used += len(text.encode())
        if used > limit:
            return
        yield text


def assemble(anchor: Path, packages: Sequence[Path], out: Path, *, top_k: int) -> Path:
    """The folder that the coordinator assembles of these packages; what was at ``out`` is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    base = anchor_source(read_manifest(anchor), anchor)
    experts = [expert_source(read_manifest(package), package) for package in packages]
    plan = plan_assembly(base, experts, top_k, "", materialised=_materialised(base, experts, out.parent))
    write_assembly(plan, out)
    return out


def _materialised(anchor: AnchorSource, experts: Sequence[ExpertSource], folder: Path) -> dict[str, Path]:
    """The full matrices of low-rank experts, as the coordinator makes them for an assembly."""
    files: dict[str, Path] = {}
    for expert in experts:
        kind = expert.manifest.kind
        if isinstance(kind, LowRankKind):
            files[expert.digest] = folder / f"{expert.digest}.safetensors"
            signed = {entry.name: entry.sha256 for entry in kind.materialised}
            materialise.write_materialised(materialise.source_matrices(anchor, expert), files[expert.digest], signed)
    return files
