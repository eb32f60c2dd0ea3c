"""Trains a consortium's small public anchor from text, from the tokenizer to the ``Olmo2ForCausalLM`` folder (OLMo 2: arXiv 2501.00656).

Everything under way lies in ``OUT.partial`` beside the target, which appears whole at the end. A run that was stopped goes on from its
last checkpoint with the same numbers as if it had not been stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import AlreadyExistsError, ArchitectureError, DataError, FormatError, InterruptedByUserError, UsageError
from common.files import storage_errors, write_atomic
from common.modeling.config import ModelConfig
from common.modeling.export import save_dense
from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from common.textdata.packing import PackedSequences, make_batch
from common.textdata.readers import expand, read_texts
from common.textdata.tokens import TokenFile, Tokenizer, input_digest, load_tokenizer, tokenize_to_file
from coordinator.compute.optimizer import Optimizer
from coordinator.compute.presets import AnchorSettings, Preset
from coordinator.compute.presets import preset as named_preset
from coordinator.compute.tokenizer import train_tokenizer

__all__ = ["AnchorResult", "train_anchor"]

_RUN = "run.json"
_CHECKPOINT = "checkpoint.safetensors"
_METRICS = "metrics.jsonl"
_FALTERS = 20  # steps in a row whose gradients are not finite before training is given up
_EMBEDDING_SCALE = 10.0  # of embeddings at the start, over the 0.02 of all other matrices
_SMOOTH = 0.95  # of the loss that is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorResult:
    """What was trained."""

    folder: Path
    parameters: int
    steps: int
    tokens: int
    epochs: float
    loss: float
    """Smoothed training loss at the end, nats per token."""
    seconds: float
    """Of training in this process, without what an earlier, stopped process did."""


def train_anchor(
    data: Sequence[str],
    *,
    out_dir: Path,
    preset: str | Preset = "nano",
    vocab_size: int | None = None,
    settings: AnchorSettings | None = None,
    text_field: str = "text",
    progress: ProgressSink = silent,
) -> AnchorResult:
    """Train an anchor on public text and write it to ``out_dir``, or go on with a run of the same text and settings that was stopped.

    Args:
        data: files, folders or globs of public text.
        out_dir: appears whole at the end; ``out_dir.partial`` holds the run until then, and is kept when the run is stopped.
        preset: sizes and default settings, by name or as such.
        vocab_size: instead of the preset's.
        settings: instead of the preset's.
        text_field: field or column of the text.
        progress: hears of every stage.

    Raises:
        AlreadyExistsError: ``out_dir`` exists.
        DataError, TextFieldError: the text cannot be used.
        UsageError: the settings make no sense, or ``out_dir.partial`` is of another run.
        InterruptedByUserError: Ctrl-C or SIGTERM; a checkpoint was written.
        StorageError: the disk is full or not writable.
    """
    with storage_errors(str(out_dir)):
        if out_dir.exists():
            raise AlreadyExistsError(f"{out_dir} exists already; choose another name or remove it.")
    chosen = named_preset(preset) if isinstance(preset, str) else preset
    if vocab_size is not None:
        chosen = replace(chosen, vocab_size=vocab_size)
    chosen = replace(chosen, settings=settings or chosen.settings)
    paths = expand(data)
    work = out_dir.with_name(f"{out_dir.name}.partial")
    chosen = _enter(work, chosen, input_digest(paths, text_field=text_field))
    with _nothing_left(work):
        tokenizer = _tokenizer(work, paths, chosen, text_field, progress)
        tokens = _tokens(work, paths, tokenizer, text_field, progress)
        run = _Run(work, chosen, tokenizer, tokens, progress)
    result = run.train()
    save_dense(run.model, out_dir, tokenizer_files=work / "tokenizer")
    shutil.rmtree(work)
    return replace(result, folder=out_dir)


# --- the run's folder -------------------------------------------------------------------------------------------------


def _enter(work: Path, chosen: Preset, data_digest: str) -> Preset:
    """Make the run's folder, or check that it is of the same run; returns the preset with device and dtype decided."""
    device = _device(chosen.settings)
    wanted = {"preset": asdict(chosen), "data": data_digest}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    with storage_errors(str(work)):
        work.mkdir(parents=True, exist_ok=True)
    path = work / _RUN
    if path.exists():
        found = _read_run(path)
        if found.get("digest") != digest:
            raise UsageError(f"{work} holds a run with other text or settings. Remove it, or give the same ones to go on with it.")
        # What "auto" meant is kept, so that a run goes on in the type it began in.
        dtype = _dtype(replace(chosen.settings, dtype="float32" if found.get("dtype") == "float32" else "bfloat16"))
    else:
        dtype = _dtype(chosen.settings)
        write_atomic(path, json.dumps({"digest": digest, "dtype": dtype, **wanted}, indent=2).encode())
    return replace(chosen, settings=replace(chosen.settings, device=device, dtype=dtype))


@contextlib.contextmanager
def _nothing_left(work: Path) -> Iterator[None]:
    """Remove the run's folder when its preparation fails, unless there is a checkpoint to lose."""
    try:
        yield
    except BaseException:
        if not (work / _CHECKPOINT).exists():
            shutil.rmtree(work, ignore_errors=True)
        raise


def _read_run(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged. Remove the folder {path.parent} and run the command again.") from error
    return value if isinstance(value, dict) else {}


def _device(settings: AnchorSettings) -> Literal["cpu", "cuda"]:
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise UsageError("There is no usable CUDA device; leave the device to 'auto' or say 'cpu'.")
    return "cuda" if available and settings.device != "cpu" else "cpu"


def _dtype(settings: AnchorSettings) -> Literal["float32", "bfloat16"]:
    if settings.dtype != "auto":
        return settings.dtype
    if _device(settings) == "cuda":
        return "bfloat16"
    return "bfloat16" if _probe(torch.bfloat16) * 1.2 < _probe(torch.float32) else "float32"


def _probe(dtype: torch.dtype) -> float:
    """Seconds of a small matrix product, the best of several: slow where the processor has no instructions for the type."""
    left, right = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return best


def _tokenizer(work: Path, paths: Sequence[Path], chosen: Preset, text_field: str, progress: ProgressSink) -> Tokenizer:
    folder = work / "tokenizer"
    with storage_errors(str(folder)):
        folder.mkdir(exist_ok=True)
    # The settings file is written last, so it says that the tokenizer is whole.
    if not (folder / "tokenizer_config.json").exists():
        progress("Training the tokenizer", 0, 1, "vocabularies")
        texts = read_texts(paths, text_field=text_field)
        train_tokenizer(texts, folder, vocab_size=chosen.vocab_size, max_length=chosen.max_positions)
        progress("Training the tokenizer", 1, 1, "vocabularies")
    return load_tokenizer(folder)


def _tokens(work: Path, paths: Sequence[Path], tokenizer: Tokenizer, text_field: str, progress: ProgressSink) -> TokenFile:
    texts = read_texts(paths, text_field=text_field)
    return tokenize_to_file(texts, tokenizer, work / "tokens", key="anchor", progress=progress)


# --- the loop ---------------------------------------------------------------------------------------------------------


class _Run:
    """One anchor in training."""

    def __init__(self, work: Path, chosen: Preset, tokenizer: Tokenizer, tokens: TokenFile, progress: ProgressSink) -> None:
        settings = chosen.settings
        if tokens.num_tokens < settings.seq_len:
            raise DataError(f"The text has {tokens.num_tokens} tokens; at least one sequence of {settings.seq_len} is needed.")
        self._work, self._settings, self._progress = work, settings, progress
        self._sequences = PackedSequences(tokens, seq_len=settings.seq_len, seed=settings.seed)
        self.model = CausalLM(_config(chosen, tokenizer))
        self.model.init_weights(settings.seed)
        _balance(self.model)
        self.model.to(device=settings.device, dtype=getattr(torch, settings.dtype))
        self._optimizer = Optimizer(self.model, settings)
        self._step = 0
        self._loss = 0.0
        self._falters = 0
        self._resume()

    def train(self) -> AnchorResult:
        """Take the steps that are left; at the end the model holds the trained weights in float32."""
        settings, started, first = self._settings, time.monotonic(), self._step
        with _stop_requests() as stop:
            while self._step < settings.steps:
                self._advance()
                self._report(started, first)
                if stop.is_set():
                    self._save()
                    raise InterruptedByUserError(f"Interrupted after step {self._step} of {settings.steps}; run the same command to go on.")
                if self._step % settings.checkpoint_every == 0 and self._step < settings.steps:
                    self._save()
        self._promote()
        return AnchorResult(
            folder=self._work,
            parameters=self.model.config.num_params(),
            steps=settings.steps,
            tokens=settings.steps * settings.batch_tokens,
            epochs=settings.steps * settings.batch_tokens / settings.seq_len / self._sequences.per_epoch,
            loss=self._smoothed(),
            seconds=time.monotonic() - started,
        )

    def _advance(self) -> None:
        settings = self._settings
        rows = settings.batch_tokens // settings.seq_len
        micro = max(1, min(rows, settings.micro_tokens // settings.seq_len))
        total = 0.0
        for start in range(0, rows, micro):
            count = min(micro, rows - start)
            numbers = range(self._step * rows + start, self._step * rows + start + count)
            batch = make_batch([self._sequences.window(number) for number in numbers])
            inputs, targets = self._to_device(batch.tokens), self._to_device(batch.targets)
            segments = None if batch.segments is None else self._to_device(batch.segments)
            loss = self.model.loss(inputs, targets, segments, z_loss=settings.z_loss) * (count / rows)
            loss.backward()
            total += float(loss.detach())
        norm = self._optimizer.step(_rate(settings, self._step))
        self._falters = 0 if math.isfinite(norm) and math.isfinite(total) else self._falters + 1
        if self._falters >= _FALTERS:
            raise UsageError(f"The loss has not been finite for {_FALTERS} steps; use a lower learning rate.")
        self._step += 1
        if math.isfinite(total):
            self._loss = _SMOOTH * self._loss + (1 - _SMOOTH) * total
        self._log(total, norm)

    def _to_device(self, array: object) -> Tensor:
        return torch.as_tensor(array).to(self._settings.device, non_blocking=True)

    def _smoothed(self) -> float:
        return self._loss / (1 - _SMOOTH**self._step) if self._step else math.nan

    def _report(self, started: float, first: int) -> None:
        settings = self._settings
        speed = (self._step - first) * settings.batch_tokens / max(1e-9, time.monotonic() - started)
        figures = {"loss": f"{self._smoothed():.3f}", "tok/s": f"{speed:,.0f}"}
        self._progress("Training the anchor", self._step, settings.steps, "steps", figures)

    def _log(self, loss: float, norm: float) -> None:
        row = {"step": self._step, "tokens": self._step * self._settings.batch_tokens, "loss": loss, "gradient_norm": norm}
        with storage_errors("the metrics"), (self._work / _METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _promote(self) -> None:
        """Put the float32 weights into the model."""
        weights = {name.partition("|")[2]: tensor for name, tensor in self._optimizer.state().items() if name.startswith("weight|")}
        self.model.float().load_state_dict(weights)

    # checkpoints: one safetensors file, replaced by renaming

    def _save(self) -> None:
        path = self._work / _CHECKPOINT
        aside = path.with_suffix(".tmp")
        # As a hexadecimal the running loss comes back exactly.
        metadata = {"step": str(self._step), "loss": self._loss.hex(), "falters": str(self._falters)}
        with storage_errors("the checkpoint"):
            save_file({name: tensor.contiguous() for name, tensor in self._optimizer.state().items()}, aside, metadata=metadata)
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            aside.replace(path)

    def _resume(self) -> None:
        path = self._work / _CHECKPOINT
        if not path.exists():
            (self._work / _METRICS).unlink(missing_ok=True)
            return
        try:
            with safe_open(path, framework="pt") as stream:
                metadata = stream.metadata() or {}
                self._optimizer.restore({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118 - safe_open is no mapping
            self._step, self._loss, self._falters = int(metadata["step"]), float.fromhex(metadata["loss"]), int(metadata["falters"])
        except (SafetensorError, OSError, KeyError, ValueError, FormatError) as error:
            raise UsageError(f"{path} cannot be read. Remove the folder {self._work} and run the command again.") from error
        self._cut_metrics()

    def _cut_metrics(self) -> None:
        """Forget the steps after the checkpoint: they will be taken again."""
        path = self._work / _METRICS
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        write_atomic(path, "".join(lines[: self._step]).encode())


def _config(chosen: Preset, tokenizer: Tokenizer) -> ModelConfig:
    if tokenizer.vocab_size > chosen.vocab_size:
        raise ArchitectureError("The tokenizer has more tokens than the model.")
    return ModelConfig(
        vocab_size=chosen.vocab_size,
        hidden_size=chosen.hidden_size,
        intermediate_size=chosen.intermediate_size,
        num_layers=chosen.num_layers,
        num_heads=chosen.num_heads,
        num_kv_heads=chosen.num_kv_heads,
        max_position_embeddings=chosen.max_positions,
        rope_theta=chosen.rope_theta,
        rms_norm_eps=1e-6,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id + 1,
    )


@torch.no_grad()
def _balance(model: CausalLM) -> None:
    """Let every token's embedding weigh against what the layers add to it.

    In OLMo 2's reordered norm each sub-layer adds a vector of unit entries whatever its input, which drowns embeddings of 0.02. Larger
    embeddings and smaller gains at the start give a small anchor a lower loss for the same tokens.
    """
    model.embed_tokens.weight.mul_(_EMBEDDING_SCALE)
    gain = 0.5 / math.sqrt(2 * model.config.num_layers)
    for name, parameter in model.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            parameter.fill_(gain)


def _rate(settings: AnchorSettings, step: int) -> float:
    """Share of the peak learning rate at ``step``."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return (step + 1) / warm
    left = 1 - (step - warm) / max(1, settings.steps - warm)
    fallen = left if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return settings.final_lr + (1 - settings.final_lr) * fallen


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set instead of ending the process, so that a step ends whole; a second signal ends it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(_signum: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
