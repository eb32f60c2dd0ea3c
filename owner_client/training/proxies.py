"""Choosing public proxy documents for an expert: relevant to the owner's private text and diverse (MetaMoE, arXiv 2605.14289).

1. Every document, private or public, becomes one vector: the frozen anchor's router inputs, averaged over its first tokens, at three
   depths.
2. A discriminant of private against public vectors is fitted on one half of the public documents and scores the other, and the other
   way round, so that no document is scored by a fit that has seen it. Relevance is the probability of being private.
3. Of the most relevant candidates a determinantal point process takes those that are relevant and unlike each other.

Only public documents are named, but which ones is a function of private text: the list is capped, and every document is in it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError, NonFiniteError, UsageError
from common.formats.layout import PUBLIC_SAMPLE_NAME
from common.formats.limits import MAX_PROXIES
from common.formats.proxies import text_digest
from common.modeling.loading import load_model
from common.modeling.model import CausalLM, Taps
from common.progress import ProgressSink, silent
from common.textdata.readers import expand, read_texts
from common.textdata.tokens import Tokenizer, load_tokenizer
from owner_client.data.documents import documents
from owner_client.training.dpp import greedy_map, similarity
from owner_client.training.routers import discriminant_row

__all__ = ["Proxy", "ProxySettings", "choose_proxies"]

_RIDGE = 1e-2  # of the discriminant: there are fewer documents than tokens, so more than a router's row needs
_CANDIDATES = 6  # for each document of the list
_LEAST = 16  # documents of either side; fewer describe nothing
_BATCH_TOKENS = 8192  # computed at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxySettings:
    """How proxies are chosen.

    Raises:
        UsageError: a value out of its range.
    """

    count: int = 500
    """Documents of the list, at most."""
    candidates: int | None = None
    """The most relevant documents that diversity chooses from; by default six times ``count``, the proportion of MetaMoE."""
    private_documents: int = 2000
    """Private documents looked at, drawn by seed."""
    public_documents: int = 20_000
    """Public documents looked at, the sample's first."""
    tokens: int = 256
    """Of a document, from its start."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PROXIES:
            raise UsageError(f"A list names 1 to {MAX_PROXIES} documents.")
        if self.pool < self.count:
            raise UsageError(f"{self.pool} candidates are fewer than the {self.count} documents to choose.")
        if min(self.private_documents, self.public_documents) < _LEAST or self.tokens < 2 or self.seed < 0:
            raise UsageError(f"At least {_LEAST} documents of either side and 2 tokens are needed, and a seed of at least 0.")

    @property
    def pool(self) -> int:
        """Candidates that diversity chooses from."""
        return _CANDIDATES * self.count if self.candidates is None else self.candidates


@dataclass(frozen=True, slots=True)
class Proxy:
    """One public document of the list."""

    sha256: str
    relevance: float
    """Probability that it is private text, by the discriminant; for the owner's eyes."""
    beginning: str
    """Its first characters; for the owner's eyes."""


def choose_proxies(
    anchor_folder: Path,
    data: Sequence[str],
    settings: ProxySettings,
    *,
    text_field: str = "text",
    device: str = "auto",
    progress: ProgressSink = silent,
) -> list[Proxy]:
    """Documents of the anchor's public sample that stand for the owner's, the best first.

    Args:
        anchor_folder: a published anchor, already verified.
        data: files, folders and globs of private text.
        settings: of the choice.
        text_field: of the private text.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: hears of every stage.

    Returns:
        At most ``settings.count``; fewer when the sample has no more, or none that would add anything.

    Raises:
        UsageError: the anchor brings no public sample, or no such device.
        DataError, TextFieldError, MissingExtraError: the data cannot be used.
        NonFiniteError: the anchor computes no finite numbers.
        ArchitectureError, LayoutError, SafetensorsError: the anchor cannot be used.
    """
    sample = anchor_folder / PUBLIC_SAMPLE_NAME
    if not sample.exists() or sample.stat().st_size == 0:
        raise UsageError("The anchor brings no sample of public text to choose from.")
    own = _some(documents(expand(data), part="train", text_field=text_field, fraction=0.0, seed=settings.seed), settings)
    public = list(islice(_distinct(read_texts([sample])), settings.public_documents))
    for name, texts in (("private", own), ("public", public)):
        if len(texts) < _LEAST:
            raise DataError(f"There are only {len(texts)} {name} documents; at least {_LEAST} are needed to choose proxies.")
    reader = _Reader(load_model(anchor_folder, device=_device(device)), load_tokenizer(anchor_folder), settings.tokens, progress)
    private_NF, public_MF = reader.vectors(own, "private"), reader.vectors(public, "public")
    scores_M = _cross_scores(private_NF, public_MF)
    order = scores_M.argsort(descending=True)[: settings.pool]
    log_relevance = torch.nn.functional.logsigmoid(scores_M[order])
    picked = order[greedy_map(log_relevance, similarity(public_MF[order]), settings.count)]
    relevance = torch.sigmoid(scores_M)
    return [Proxy(text_digest(public[number]), float(relevance[number]), public[number][:80]) for number in picked.tolist()]


def _some(texts: Iterable[str], settings: ProxySettings) -> list[str]:
    """An even draw of the private documents, by reservoir, so that they need not be held all at once."""
    draw = np.random.Generator(np.random.PCG64(settings.seed))
    held: list[str] = []
    for number, text in enumerate(texts):
        if number < settings.private_documents:
            held.append(text)
        elif (place := int(draw.integers(0, number + 1))) < settings.private_documents:
            held[place] = text
    return held


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        digest = text_digest(text)
        if digest not in seen:
            seen.add(digest)
            yield text


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


class _Reader:
    """Documents to vectors."""

    def __init__(self, anchor: CausalLM, tokenizer: Tokenizer, tokens: int, progress: ProgressSink) -> None:
        self._anchor, self._tokenizer, self._progress = anchor, tokenizer, progress
        self._tokens = min(tokens, anchor.config.max_position_embeddings)
        last = anchor.config.num_layers - 1
        self._layers = sorted({last // 3, 2 * last // 3, last})

    def vectors(self, texts: Sequence[str], kind: str) -> Tensor:
        """``[n, F]`` fp64 on the CPU, in the order of ``texts``; an empty document is a vector of zeros.

        Raises:
            NonFiniteError: one is not finite.
        """
        ids = [row[: self._tokens] for row in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        out = torch.zeros(len(ids), len(self._layers) * self._anchor.config.hidden_size, dtype=torch.float64)
        done = 0
        while done < len(order):
            longest = max(1, len(ids[order[done]]))
            chosen = order[done : done + max(1, _BATCH_TOKENS // longest)]
            out[chosen] = self._means([ids[number] for number in chosen], longest)
            done += len(chosen)
            self._progress(f"Reading {kind} documents with the anchor", done, len(order), "documents")
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError("The anchor's router inputs are not finite; the anchor is damaged.")
        return out

    @torch.inference_mode()
    def _means(self, rows: Sequence[Sequence[int]], length: int) -> Tensor:
        device = self._anchor.embed_tokens.weight.device
        tokens, real = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, 1)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row, dtype=torch.long)
            real[number, : len(row)] = 1.0
        real = real.to(device)
        means: dict[int, Tensor] = {}
        self._anchor.hidden(tokens.to(device), taps=Taps(ffn_input=self._averaging(means, real)))
        return torch.cat([means[layer] for layer in self._layers], dim=1).double().cpu()

    def _averaging(self, means: dict[int, Tensor], real: Tensor) -> Callable[[int, Tensor], None]:
        def note(layer: int, inputs: Tensor) -> None:
            if layer in self._layers:
                wide = inputs.view(real.shape[0], real.shape[1], -1).float() * real
                means[layer] = wide.sum(1) / real.sum(1).clamp_min(1.0)

        return note


def _cross_scores(private_NF: Tensor, public_MF: Tensor) -> Tensor:
    """Log-odds of being private for every public document, ``[M]`` fp64, from the fit that did not see it."""
    scores = torch.empty(len(public_MF), dtype=torch.float64)
    for half in (0, 1):
        seen = public_MF[1 - half :: 2]
        centre, spread = seen.mean(0), seen.std(0).clamp_min(1e-6)
        private, public, held = (_whole((rows - centre) / spread) for rows in (private_NF, seen, public_MF[half::2]))
        scores[half::2] = held @ discriminant_row(private, public, public.square().mean(0), ridge=_RIDGE).double()
    return scores


def _whole(rows: Tensor) -> Tensor:
    """With a constant feature, because the discriminant has no intercept of its own."""
    return torch.cat((rows, rows.new_ones(len(rows), 1)), dim=1)
