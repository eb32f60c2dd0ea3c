"""What one process does before training: tokens, fitted rows, the anchor's perplexities and every decision, kept in the run's folder."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from common.errors import AlreadyExistsError, DataError, UsageError
from common.files import storage_errors, write_atomic
from common.formats.layout import ROUTER_NAME
from common.modeling.loading import load_model, load_router_stats, read_config
from common.modeling.model import CausalLM
from common.progress import ProgressSink
from common.textdata.packing import PackedSequences
from common.textdata.tokens import TokenFile, load_tokenizer
from owner_client.training.distributed import World
from owner_client.training.hardware import decide, device_type
from owner_client.training.inputs import RunInputs, prepare_inputs
from owner_client.training.measuring import Perplexity, measure
from owner_client.training.routers import collect_inputs, fit_rows
from owner_client.training.settings import TrainSettings
from owner_client.training.trainer import frozen_digest

__all__ = ["Plan", "measured", "prepare", "sequences_of"]

logger = logging.getLogger(__name__)

_ROWS, _ANCHOR, _RUN = "rows.safetensors", "anchor-perplexity.json", "run.json"
_OWN = (_RUN, _ROWS, _ANCHOR, "metrics.jsonl", "cost.json")
_OWN_FOLDERS = ("tokens", "checkpoints")
_DECIDED = ("dtype", "micro_tokens", "compile")  # by the machine, once per run


@dataclass(frozen=True, slots=True)
class Plan:
    """A prepared run: all that a process needs in order to train, as JSON."""

    anchor: Path
    run_dir: Path
    out_dir: Path
    settings: TrainSettings
    """With everything decided."""
    parts: list[str]
    """Token streams in ``run_dir``."""
    digest: str
    """Of the inputs."""

    def to_json(self) -> str:
        """The plan as text."""
        paths = {name: str(getattr(self, name)) for name in ("anchor", "run_dir", "out_dir")}
        return json.dumps({**paths, "settings": asdict(self.settings), "parts": self.parts, "digest": self.digest})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read :meth:`to_json`."""
        value = json.loads(text)
        anchor, run_dir, out_dir = (Path(value[name]) for name in ("anchor", "run_dir", "out_dir"))
        return cls(anchor, run_dir, out_dir, TrainSettings(**value["settings"]), value["parts"], value["digest"])

    def inputs(self) -> RunInputs:
        """The run's token streams.

        Raises:
            LayoutError: a stream is missing or damaged.
        """
        return RunInputs.reopened(self.run_dir, self.parts, self.digest)

    def rows(self) -> Tensor:
        """The rows that training starts from, ``[L, H]`` fp32.

        Raises:
            DataError: they are missing or damaged.
        """
        rows = _known_rows(self.run_dir / _ROWS)
        if rows is None:
            raise DataError("The fitted router rows in the run folder are missing or damaged; run the command again.")
        return rows

    def anchor_perplexity(self) -> dict[str, Perplexity]:
        """The anchor's perplexities by text.

        Raises:
            DataError: they are missing or damaged.
        """
        known = _known_perplexity(self.run_dir / _ANCHOR)
        if known is None:
            raise DataError("The anchor's measured perplexities in the run folder are missing or damaged; run the command again.")
        return known


def prepare(
    anchor_folder: Path,
    data: Sequence[str],
    *,
    run_dir: Path,
    out_dir: Path,
    settings: TrainSettings,
    text_field: str,
    progress: ProgressSink,
    fresh: bool,
) -> Plan:
    """Make or reuse everything in ``run_dir`` that training starts from; arguments and errors as :func:`train_expert`'s."""
    config = read_config(anchor_folder)
    if settings.seq_len > config.max_position_embeddings:
        raise UsageError(f"Sequences of {settings.seq_len} tokens are longer than the anchor's {config.max_position_embeddings}.")
    settings = settings.for_width(config.hidden_size)
    device = device_type(settings)
    _enter(run_dir, fresh)
    tokenizer = load_tokenizer(anchor_folder)
    inputs = prepare_inputs(anchor_folder, data, tokenizer, run_dir=run_dir, settings=settings, text_field=text_field, progress=progress)
    if settings.patience and (inputs.private_heldout is None or inputs.private_heldout.num_tokens < 2):
        raise UsageError("No private document was held out, so training cannot stop early; give more text or a larger held-out share.")
    anchor = load_model(anchor_folder, device=device)
    decided = _open_run(run_dir, anchor, anchor_folder, inputs, settings, device)
    if decided.dtype != "float32":
        anchor = load_model(anchor_folder, dtype=torch.bfloat16, device=device)
    _fit_rows(run_dir, anchor_folder, anchor, inputs, decided, progress)
    _measure_anchor(run_dir, anchor, inputs, decided)
    return Plan(anchor_folder, run_dir, out_dir, decided, inputs.parts, inputs.digest)


def _enter(run_dir: Path, fresh: bool) -> None:
    """Make the run's folder, and clear what a killed run left half-written, or everything when starting afresh."""
    with storage_errors("the run's folder"):
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{run_dir} cannot be a folder: a file is in its place.") from error
        for folder in (run_dir, *(run_dir / name for name in _OWN_FOLDERS)):
            for left in (*folder.glob(".*.partial"), *folder.glob(".*.tmp")):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if fresh:
            for name in _OWN:
                (run_dir / name).unlink(missing_ok=True)
            for name in _OWN_FOLDERS:
                shutil.rmtree(run_dir / name, ignore_errors=True)


def _open_run(
    run_dir: Path, anchor: CausalLM, anchor_folder: Path, inputs: RunInputs, settings: TrainSettings, device: str
) -> TrainSettings:
    """Check that ``run_dir`` is this run's, or make it so; returns the settings with the machine's decisions, made once per run."""
    digest = hashlib.sha256(frozen_digest(anchor).encode())
    digest.update((anchor_folder / ROUTER_NAME).read_bytes() if (anchor_folder / ROUTER_NAME).exists() else b"")
    identity = {"schema": 2, "settings": settings.digest(), "inputs": inputs.digest, "anchor": digest.hexdigest(), "device": device}
    path = run_dir / _RUN
    known = _read(path)
    if known is None:
        decided = decide(settings, anchor.config, device, private_tokens=inputs.private.num_tokens)
        document = {"identity": identity, "decided": {name: getattr(decided, name) for name in _DECIDED}}
        write_atomic(path, json.dumps(document, indent=2).encode())
        return decided
    facts = known.get("decided")
    if known.get("identity") != identity or not isinstance(facts, dict) or set(facts) != set(_DECIDED):
        raise AlreadyExistsError(
            f"{run_dir} holds a run with other settings, data, device or anchor. "
            "Give the same ones to go on with it, start afresh, or choose another folder."
        )
    return replace(settings, device="cuda" if device == "cuda" else "cpu", **facts)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sequences_of(source: TokenFile, settings: TrainSettings) -> PackedSequences:
    """The training sequences of one stream."""
    return PackedSequences(source, seq_len=settings.seq_len, seed=settings.seed)


def _known_rows(path: Path) -> Tensor | None:
    try:
        return load_file(path)["rows"] if path.exists() else None
    except (SafetensorError, KeyError, OSError):
        logger.warning("The fitted router rows in the run folder are damaged.")
        return None


def _fit_rows(
    run_dir: Path, anchor_folder: Path, anchor: CausalLM, inputs: RunInputs, settings: TrainSettings, progress: ProgressSink
) -> None:
    """Fit the rows that training starts from, once per run."""
    path = run_dir / _ROWS
    if _known_rows(path) is not None:
        return
    config = anchor.config
    stats = private = public = None
    if settings.router != "random":
        stats = load_router_stats(anchor_folder)
        private = collect_inputs(anchor, sequences_of(inputs.private, settings), tokens=settings.router_tokens, seq_len=settings.seq_len)
    if settings.router == "discriminant" and inputs.public is not None:
        public = collect_inputs(anchor, sequences_of(inputs.public, settings), tokens=settings.router_tokens, seq_len=settings.seq_len)
    progress("Fitting the router", 0, 1, "fits")
    rows = fit_rows(settings.router, stats, private, public, layers=config.num_layers, hidden=config.hidden_size, seed=settings.seed)
    progress("Fitting the router", 1, 1, "fits")
    write_atomic(path, save({"rows": rows.contiguous()}))


def measured(model: CausalLM, inputs: RunInputs, settings: TrainSettings, world: World | None = None) -> dict[str, Perplexity]:
    """Perplexities on the held-out texts that there are."""
    texts = {"private": inputs.private_heldout, "public": inputs.public_heldout}
    return {
        name: measure(model, source, seq_len=settings.seq_len, tokens=settings.eval_tokens, world=world)
        for name, source in texts.items()
        if source is not None and source.num_tokens >= 2
    }


def _known_perplexity(path: Path) -> dict[str, Perplexity] | None:
    known = _read(path)
    if known is None:
        return None
    try:
        return {str(text): Perplexity(float(value["nats"]), int(value["tokens"])) for text, value in known.items()}
    except (KeyError, TypeError, ValueError):
        logger.warning("The anchor's measured perplexities in the run folder are damaged.")
        return None


def _measure_anchor(run_dir: Path, anchor: CausalLM, inputs: RunInputs, settings: TrainSettings) -> None:
    """Measure the anchor's perplexities, once per run."""
    path = run_dir / _ANCHOR
    if _known_perplexity(path):
        return
    document: Mapping[str, object] = {
        text: {"nats": value.nats, "tokens": value.tokens} for text, value in measured(anchor, inputs, settings).items()
    }
    write_atomic(path, json.dumps(document).encode())
