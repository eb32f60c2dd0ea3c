"""Training one expert from files to package files: read, fit the rows, train, measure, write; every stage resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from common.errors import AlreadyExistsError, UsageError
from common.files import storage_errors, write_atomic
from common.formats.layout import ROUTER_NAME
from common.modeling.loading import checkpoint_dtype, expert_pairs, load_model, load_pair, load_router_stats, read_config
from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from common.textdata.packing import PackedSequences
from common.textdata.tokens import TokenFile, load_tokenizer
from owner_client.data.mixing import MixedSequences
from owner_client.training.inputs import RunInputs, prepare_inputs
from owner_client.training.measuring import Perplexity, measure
from owner_client.training.package import write_package_files
from owner_client.training.routers import collect_inputs, fit_rows
from owner_client.training.settings import TrainSettings
from owner_client.training.trainer import Trainer, frozen_digest

__all__ = ["TrainResult", "train_expert"]

logger = logging.getLogger(__name__)

_PROBE_HIDDEN = 512  # below this width bf16 on a CPU gains nothing, whatever the products alone do
_PROBE_GAIN = 1.5  # how much faster a bf16 product must be
_OWN = ("run.json", "rows.safetensors", "anchor-perplexity.json", "metrics.jsonl")
_OWN_FOLDERS = ("tokens", "checkpoints")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run hands on."""

    files: Path
    """The folder with parts, router rows and ``privacy.json``."""
    summary: dict[str, str | int]
    """For the manifest: settings only, nothing that was measured on private text."""
    perplexity: dict[str, dict[str, Perplexity]]
    """By text (``"private"`` held out, ``"public"`` held out) and model (``"anchor"``, ``"pair"``); for the owner's eyes."""


def train_expert(
    anchor_folder: Path,
    data: Sequence[str],
    *,
    run_dir: Path,
    out_dir: Path,
    settings: TrainSettings,
    text_field: str = "text",
    progress: ProgressSink = silent,
    fresh: bool = False,
) -> TrainResult:
    """Train an expert on ``data`` against the frozen anchor and write the package's files.

    Args:
        anchor_folder: a published anchor, already verified.
        data: files, folders and globs of private text.
        run_dir: holds the run's tokens, checkpoints and metrics; a run that was stopped there goes on.
        out_dir: must not exist; appears whole at the end.
        settings: of the run.
        text_field: of the private text.
        progress: hears of every stage.
        fresh: start over whatever ``run_dir`` holds.

    Raises:
        AlreadyExistsError: ``out_dir`` exists, or ``run_dir`` holds a run with other settings, data or anchor.
        ArchitectureError, LayoutError, SafetensorsError: the anchor cannot be used.
        DataError, TextFieldError, MissingExtraError: the data cannot be used.
        InterruptedByUserError: Ctrl-C or SIGTERM during training; the same call goes on from there.
        NonFiniteError: training diverged.
        StorageError: the disk is full or not writable.
        UsageError: settings that do not fit the machine or the anchor.
    """
    if out_dir.exists():
        raise AlreadyExistsError(f"{out_dir} exists already; choose another place or remove it.")
    settings = _fitting(anchor_folder, settings)
    device = _device(settings)
    _enter(run_dir, fresh)
    tokenizer = load_tokenizer(anchor_folder)
    inputs = prepare_inputs(anchor_folder, data, tokenizer, run_dir=run_dir, settings=settings, text_field=text_field, progress=progress)
    anchor = load_model(anchor_folder, device=device)
    dtype = _open_run(run_dir, anchor, anchor_folder, inputs, settings, device)
    if dtype != torch.float32:
        anchor = load_model(anchor_folder, dtype=dtype, device=device)
    rows = _rows(run_dir, anchor_folder, anchor, inputs, settings, progress)
    before = _measure_anchor(run_dir, anchor, inputs, settings)
    del anchor
    model = load_pair(anchor_folder, rows_LH=rows, rank=settings.rank, seed=settings.seed, dtype=dtype, device=device)
    steps = _train(model, inputs, settings, run_dir, progress)
    after = _measure(model, inputs, settings)
    write_package_files(model, out_dir, dtype=checkpoint_dtype(anchor_folder))
    perplexity = {text: {"anchor": before[text], "pair": after[text]} for text in after}
    return TrainResult(out_dir, _summary(settings, steps, dtype), perplexity)


def _fitting(anchor_folder: Path, settings: TrainSettings) -> TrainSettings:
    """The settings with what depends on the anchor's sizes decided and checked."""
    config = read_config(anchor_folder)
    if settings.seq_len > config.max_position_embeddings:
        raise UsageError(f"Sequences of {settings.seq_len} tokens are longer than the anchor's {config.max_position_embeddings}.")
    return settings.for_width(config.hidden_size)


def _device(settings: TrainSettings) -> torch.device:
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


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
    run_dir: Path, anchor: CausalLM, anchor_folder: Path, inputs: RunInputs, settings: TrainSettings, device: torch.device
) -> torch.dtype:
    """Check that ``run_dir`` is this run's, or make it so; returns the dtype of the frozen part, decided once per run."""
    digest = hashlib.sha256(frozen_digest(anchor).encode())
    digest.update((anchor_folder / ROUTER_NAME).read_bytes() if (anchor_folder / ROUTER_NAME).exists() else b"")
    identity = {"schema": 1, "settings": settings.digest(), "inputs": inputs.digest, "anchor": digest.hexdigest(), "device": device.type}
    path = run_dir / "run.json"
    known = _read(path)
    if known is None:
        name = _dtype_name(settings, device, anchor)
        write_atomic(path, json.dumps({"identity": identity, "dtype": name}, indent=2).encode())
    elif known.get("identity") != identity or known.get("dtype") not in ("float32", "bfloat16"):
        raise AlreadyExistsError(
            f"{run_dir} holds a run with other settings, data, device or anchor. "
            "Give the same ones to go on with it, start afresh, or choose another folder."
        )
    else:
        name = known["dtype"]
    return torch.float32 if name == "float32" else torch.bfloat16


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _dtype_name(settings: TrainSettings, device: torch.device, anchor: CausalLM) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    if device.type == "cuda":
        return "bfloat16"
    wide = anchor.config.hidden_size >= _PROBE_HIDDEN
    return "bfloat16" if wide and _bf16_gain(anchor.config.hidden_size, anchor.config.intermediate_size) >= _PROBE_GAIN else "float32"


def _bf16_gain(hidden: int, inner: int) -> float:
    """How many times faster this CPU multiplies a block of the model's FFN in bf16 than in fp32."""
    best: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(512, hidden, dtype=dtype), torch.ones(inner, hidden, dtype=dtype)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            torch.mm(x, weight.t())
            times.append(time.perf_counter() - started)
        best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def _sequences(source: TokenFile, settings: TrainSettings) -> PackedSequences:
    return PackedSequences(source, seq_len=settings.seq_len, seed=settings.seed)


def _rows(
    run_dir: Path, anchor_folder: Path, anchor: CausalLM, inputs: RunInputs, settings: TrainSettings, progress: ProgressSink
) -> Tensor:
    """The rows that training starts from, ``[L, H]`` fp32, fitted once per run."""
    path = run_dir / "rows.safetensors"
    if path.exists():
        try:
            return load_file(path)["rows"]
        except (SafetensorError, KeyError, OSError):
            logger.warning("The fitted router rows in the run folder are damaged and are fitted again.")
    config = anchor.config
    stats = private = public = None
    if settings.router != "random":
        stats = load_router_stats(anchor_folder)
        private = collect_inputs(anchor, _sequences(inputs.private, settings), tokens=settings.router_tokens, seq_len=settings.seq_len)
    if settings.router == "discriminant" and inputs.public is not None:
        public = collect_inputs(anchor, _sequences(inputs.public, settings), tokens=settings.router_tokens, seq_len=settings.seq_len)
    progress("Fitting the router", 0, 1, "fits")
    rows = fit_rows(settings.router, stats, private, public, layers=config.num_layers, hidden=config.hidden_size, seed=settings.seed)
    progress("Fitting the router", 1, 1, "fits")
    write_atomic(path, save({"rows": rows.contiguous()}))
    return rows


def _train(model: CausalLM, inputs: RunInputs, settings: TrainSettings, run_dir: Path, progress: ProgressSink) -> int:
    for pair in expert_pairs(model):
        pair.row.requires_grad_(settings.router_train)
    total = settings.total_steps(inputs.private.num_tokens)
    mixed = MixedSequences(
        _sequences(inputs.private, settings),
        None if inputs.public is None else _sequences(inputs.public, settings),
        public_share=settings.public_share,
        seed=settings.seed,
        total=total * settings.batch_size,
    )
    return Trainer(model, mixed, settings, total_steps=total, run_dir=run_dir, progress=progress).run()


def _measure(model: CausalLM, inputs: RunInputs, settings: TrainSettings) -> dict[str, Perplexity]:
    texts = {"private": inputs.private_heldout, "public": inputs.public_heldout}
    return {
        name: measure(model, source, seq_len=settings.seq_len, tokens=settings.eval_tokens)
        for name, source in texts.items()
        if source is not None and source.num_tokens >= 2
    }


def _measure_anchor(run_dir: Path, anchor: CausalLM, inputs: RunInputs, settings: TrainSettings) -> dict[str, Perplexity]:
    """The anchor's perplexities, measured once per run."""
    path = run_dir / "anchor-perplexity.json"
    known = _read(path)
    if known:
        try:
            return {str(text): Perplexity(float(value["nats"]), int(value["tokens"])) for text, value in known.items()}
        except (KeyError, TypeError, ValueError):
            logger.warning("The anchor's measured perplexities in the run folder are damaged and are measured again.")
    measured = _measure(anchor, inputs, settings)
    document: Mapping[str, object] = {text: {"nats": value.nats, "tokens": value.tokens} for text, value in measured.items()}
    write_atomic(path, json.dumps(document).encode())
    return measured


def _summary(settings: TrainSettings, steps: int, dtype: torch.dtype) -> dict[str, str | int]:
    return {
        "router": settings.router,
        "router_trained": "yes" if settings.router_train else "no",
        "public_share": f"{settings.public_share:g}",
        "steps": steps,
        "batch_tokens": settings.batch_tokens,
        "sequence_length": settings.seq_len,
        "learning_rate": f"{settings.lr:.3g}",
        "precision": str(dtype).removeprefix("torch."),
    }
