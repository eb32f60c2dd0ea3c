"""The router statistics that an anchor is published with: mean and second moment of every layer's public router inputs (design, section 3).

Owners fit their router rows against these instead of against public text alone. The public router row itself is zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from common.errors import DataError
from common.files import write_atomic
from common.formats.layout import input_mean_name, input_second_moment_name, router_row_name
from common.modeling.loading import checkpoint_dtype, load_model
from common.modeling.model import CausalLM, Taps
from common.progress import ProgressSink, silent
from common.textdata.tokens import Tokenizer, load_tokenizer
from coordinator.compute.windows import ScoringBatch, scoring_batches

__all__ = ["public_moments"]

_FULL_UP_TO = 2048  # hidden size; a wider model's second moment is stored as its diagonal
_BATCH_TOKENS = 8192  # computed at once
_DOCUMENTS = 64  # tokenised at once


def public_moments(
    checkpoint_dir: Path,
    texts: Iterable[str],
    *,
    out: Path | None = None,
    max_tokens: int | None = None,
    seq_len: int | None = None,
    device: str = "cpu",
    progress: ProgressSink = silent,
) -> Path:
    """Measure the anchor's FFN inputs on public text and write ``router.safetensors``.

    For each layer ``l`` the file holds ``model.layers.{l}.mlp.gate.weight`` (``[1, H]`` zeros in the anchor's dtype), ``.input_mean``
    (``[H]`` float32) and ``.input_second_moment`` (``[H, H]`` float32, uncentred; its diagonal ``[H]`` above a hidden size of 2,048).

    Args:
        checkpoint_dir: the anchor, an ``Olmo2ForCausalLM`` folder with its tokenizer.
        texts: public documents; read until there are enough tokens.
        out: file to write; by default ``router.safetensors`` in ``checkpoint_dir``.
        max_tokens: tokens measured; by default a hundred for each column of the matrix, and between 32,768 and 200,000.
        seq_len: of the windows; by default at most 1,024 and what the model reads.
        device: to compute on.
        progress: hears of tokens done.

    Returns:
        The file.

    Raises:
        DataError: there is no text.
        ArchitectureError, LayoutError, SafetensorsError: the anchor cannot be loaded.
        StorageError: the disk is full or not writable.
    """
    dtype = checkpoint_dtype(checkpoint_dir)
    model = load_model(checkpoint_dir, dtype=torch.float32 if device == "cpu" else dtype, device=device)
    length = min(seq_len or 1024, model.config.max_position_embeddings)
    wanted = max_tokens or min(200_000, max(32_768, 100 * model.config.hidden_size))
    documents = _encode(texts, load_tokenizer(checkpoint_dir), wanted)
    sums = _Sums(model.config.num_layers, model.config.hidden_size, device)
    total = sum(len(ids) for ids in documents)
    done = 0
    for batch in scoring_batches(documents, seq_len=length, batch_tokens=_BATCH_TOKENS):
        sums.add(model, batch, device)
        done += int(batch.is_token.sum())
        progress("Measuring public router inputs", done, total - len(documents), "tokens")
    path = out or checkpoint_dir / "router.safetensors"
    write_atomic(path, save(sums.tensors(dtype), metadata={"format": "pt"}))
    return path


def _encode(texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    documents: list[list[int]] = []
    left, rest = max_tokens, iter(texts)
    while left > 0 and (batch := list(islice(rest, _DOCUMENTS))):
        for ids in tokenizer.encode_batch(batch):
            if left > 0 and len(ids) > 1:
                documents.append(ids[:left])
                left -= len(documents[-1])
    if not any(len(ids) > 1 for ids in documents):
        raise DataError("There is no public text to measure the anchor's router inputs on.")
    return documents


class _Sums:
    """Sums over tokens of ``x`` and ``x x^T``, per layer, in float64."""

    def __init__(self, layers: int, hidden: int, device: str) -> None:
        self._diagonal = hidden > _FULL_UP_TO
        shape = (hidden,) if self._diagonal else (hidden, hidden)
        self._first = [torch.zeros(hidden, dtype=torch.float64, device=device) for _ in range(layers)]
        self._second = [torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(layers)]
        self._count = 0

    @torch.inference_mode()
    def add(self, model: CausalLM, batch: ScoringBatch, device: str) -> None:
        """Count the router inputs of a batch's tokens, padding left out."""
        real = torch.from_numpy(batch.is_token).flatten().to(device)

        def note(layer: int, inputs: Tensor) -> None:
            x = inputs[real].float()
            self._first[layer] += x.sum(0, dtype=torch.float64)
            self._second[layer] += x.square().sum(0, dtype=torch.float64) if self._diagonal else (x.mT @ x).double()

        model.hidden(torch.from_numpy(batch.tokens).to(device), taps=Taps(ffn_input=note))
        self._count += int(batch.is_token.sum())

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The file's tensors."""
        held: dict[str, Tensor] = {}
        for layer, (first, second) in enumerate(zip(self._first, self._second, strict=True)):
            held[router_row_name(layer)] = torch.zeros(1, len(first), dtype=dtype)
            held[input_mean_name(layer)] = (first / self._count).float().cpu()
            held[input_second_moment_name(layer)] = (second / self._count).float().cpu()
        return held
