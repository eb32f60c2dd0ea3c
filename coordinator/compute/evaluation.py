"""Perplexity and bits per byte of any number of models on the same text, and what a mixture's router does with it; by the rule here.

What is scored. A domain's documents are taken in order, each cut to ``max_document_tokens``, until ``max_tokens`` are chosen. The cut is
made in the text, with the first model's tokenizer, so every model sees the same characters. A document is read in windows of ``seq_len``
tokens from its start, without overlap and without context across windows. Every token counts once, except the document's first, for
which there is nothing to predict it from. Bytes are those of the counted tokens. The end of a document is not scored.

Perplexity is per token, so it compares models of one tokenizer only; bits per byte compare all. Confidence intervals are
percentiles of a bootstrap over documents, the same resamples for every model, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import DataError, UsageError
from common.modeling.loading import load_model, read_config
from common.modeling.model import CausalLM, Taps
from common.progress import ProgressSink, silent
from common.textdata.readers import expand, read_texts
from common.textdata.tokens import Tokenizer, load_tokenizer
from coordinator.compute.generate import expert_names
from coordinator.compute.windows import ScoringBatch, scoring_batches

__all__ = ["EvaluationReport", "RouterLoad", "Score", "evaluate"]

SCHEMA = "elmgrove.evaluation/v1"
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_BATCH_TOKENS = 8192  # computed at once
_MAX_SEQ_LEN = 2048  # by default; longer windows on request


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One model on one domain."""

    model: str
    domain: str
    documents: int
    tokens: int
    """Scored."""
    bytes: int
    """UTF-8 length of the scored tokens."""
    nll: float
    """Sum of negative log-likelihoods, nats."""
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    bits_per_byte: float
    bits_per_byte_low: float
    bits_per_byte_high: float
    difference: float
    """Bits per byte less those of the first model; negative is better."""
    difference_low: float
    difference_high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterLoad:
    """Where one mixture's router sends one domain's tokens."""

    model: str
    domain: str
    experts: list[str]
    active: list[list[float]]
    """Share of tokens for which the expert is among the top k, per layer and expert."""
    probability: list[list[float]]
    """Mean router probability, per layer and expert; a layer's sum to 1."""

    @property
    def mean_probability(self) -> list[float]:
        """Mean over layers, per expert."""
        return [float(value) for value in np.mean(self.probability, axis=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """All scores, models and domains in the order they were given."""

    models: list[str]
    domains: list[str]
    scores: list[Score]
    loads: list[RouterLoad]
    same_tokenizer: bool
    """Whether perplexities of different models may be compared."""
    seq_len: int
    max_tokens: int
    parameters: dict[str, int]
    """Per model, all experts counted."""

    def score(self, model: str, domain: str) -> Score:
        """The score of one model on one domain.

        Raises:
            KeyError: there is none.
        """
        for each in self.scores:
            if (each.model, each.domain) == (model, domain):
                return each
        raise KeyError((model, domain))

    def geometric_mean(self, model: str) -> float:
        """Geometric mean of a model's perplexities over all domains."""
        return math.exp(sum(math.log(self.score(model, domain).perplexity) for domain in self.domains) / len(self.domains))

    def mean_bits(self, model: str) -> float:
        """Mean of a model's bits per byte over all domains."""
        return sum(self.score(model, domain).bits_per_byte for domain in self.domains) / len(self.domains)

    def to_dict(self) -> dict[str, object]:
        """Everything, for a script: plain lists, numbers and strings."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "geometric_means": {model: self.geometric_mean(model) for model in self.models},
            "mean_bits_per_byte": {model: self.mean_bits(model) for model in self.models},
        }


@dataclass(frozen=True, slots=True)
class _Texts:
    """The characters of one domain that every model scores."""

    name: str
    documents: list[str]


@dataclass(frozen=True, slots=True)
class _Counts:
    """Per document: summed losses (nats), scored tokens, their bytes."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]


def evaluate(
    models: Sequence[tuple[str, Path]],
    domains: Sequence[tuple[str, Sequence[str]]],
    *,
    max_tokens: int = 100_000,
    max_document_tokens: int | None = None,
    seq_len: int | None = None,
    text_field: str = "text",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: ProgressSink = silent,
) -> EvaluationReport:
    """Score every model on every domain; one model is in memory at a time.

    Args:
        models: name and folder of each, dense or mixture; differences are to the first.
        domains: name and data files, folders or globs of each.
        max_tokens: per domain, counted with the first model's tokenizer.
        max_document_tokens: of one document, so that a few long ones do not stand for a domain; by default four windows.
        seq_len: of the windows; by default the most that all models read, at most 2,048.
        text_field: field or column of the text.
        device: to compute on.
        dtype: to compute in.
        seed: of the bootstrap.
        progress: hears of tokens scored, per model.

    Raises:
        UsageError: no or repeated names, or windows longer than a model reads.
        DataError, TextFieldError: a domain's text cannot be used.
        ArchitectureError, LayoutError, SafetensorsError: a model cannot be loaded.
    """
    _check_names("model", [name for name, _ in models])
    _check_names("domain", [name for name, _ in domains])
    length = _window_length(models, seq_len)
    tokenizers = {name: load_tokenizer(folder) for name, folder in models}
    first = tokenizers[models[0][0]]
    limit = max_document_tokens or 4 * length
    texts = [_choose(name, specs, first, max_tokens, limit, text_field) for name, specs in domains]
    counts: dict[tuple[str, str], _Counts] = {}
    loads: list[RouterLoad] = []
    parameters: dict[str, int] = {}
    for name, folder in models:
        model = load_model(folder, dtype=dtype, device=device)
        parameters[name] = model.config.num_params()
        names = expert_names(folder, model.config.num_experts)
        scorer = _Scorer(name, model, tokenizers[name], length, names, progress)
        for domain in scorer.score(texts):
            counts[name, domain.name] = domain.counts
            loads += [domain.load] if domain.load is not None else []
    baseline = models[0][0]
    scores = [
        _score(name, domain.name, counts[name, domain.name], counts[baseline, domain.name], seed) for name, _ in models for domain in texts
    ]
    return EvaluationReport(
        models=[name for name, _ in models],
        domains=[domain.name for domain in texts],
        scores=scores,
        loads=loads,
        same_tokenizer=len({tokenizer.digest for tokenizer in tokenizers.values()}) == 1,
        seq_len=length,
        max_tokens=max_tokens,
        parameters=parameters,
    )


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names:
        raise UsageError(f"Give at least one {kind} to evaluate.")
    if len(set(names)) != len(names) or not all(names):
        raise UsageError(f"Every {kind} needs a name of its own.")


def _window_length(models: Sequence[tuple[str, Path]], seq_len: int | None) -> int:
    readable = min(read_config(folder).max_position_embeddings for _, folder in models)
    if seq_len is None:
        return min(readable, _MAX_SEQ_LEN)
    if not 2 <= seq_len <= readable:
        raise UsageError(f"Windows of {seq_len} tokens do not fit: the models read 2 to {readable}.")
    return seq_len


def _choose(name: str, specs: Sequence[str], tokenizer: Tokenizer, max_tokens: int, limit: int, text_field: str) -> _Texts:
    """The documents of one domain, cut to ``limit`` tokens each and ``max_tokens`` in all."""
    chosen: list[str] = []
    left = max_tokens
    for text in read_texts(expand(specs), text_field=text_field):
        ids = tokenizer.encode(text)
        room = min(limit, left)
        if room < 2:
            break
        cut = text if len(ids) <= room else tokenizer.decode(ids[:room]).rstrip("\ufffd")
        if len(ids) >= 2 and cut:
            chosen.append(cut)
            left -= min(len(ids), room)
    if not chosen:
        raise DataError(f"The domain {name!r} has no document of at least two tokens.")
    return _Texts(name, chosen)


@dataclass(frozen=True, slots=True)
class _Scored:
    name: str
    counts: _Counts
    load: RouterLoad | None


class _Scorer:
    """One model at work."""

    def __init__(
        self, name: str, model: CausalLM, tokenizer: Tokenizer, seq_len: int, experts: Sequence[str], progress: ProgressSink
    ) -> None:
        self._name, self._model, self._tokenizer, self._seq_len = name, model, tokenizer, seq_len
        self._experts = list(experts)
        self._progress = progress

    def score(self, texts: Sequence[_Texts]) -> list[_Scored]:
        """All domains."""
        encoded = {domain.name: self._tokenizer.encode_batch(domain.documents) for domain in texts}
        total = sum(max(0, len(ids) - 1) for documents in encoded.values() for ids in documents)
        done = 0
        scored = []
        for domain in texts:
            tally = _Tally(self._model, len(self._experts)) if self._model.kind == "mixture" else None
            nll = np.zeros(len(domain.documents))
            for batch in scoring_batches(encoded[domain.name], seq_len=self._seq_len, batch_tokens=_BATCH_TOKENS):
                np.add.at(nll, batch.documents, self._losses(batch, tally))
                done += int(batch.is_token.sum())
                self._progress(f"Evaluating {self._name}", done, total, "tokens")
            tokens = np.asarray([len(ids) - 1 for ids in encoded[domain.name]], dtype=np.int64)
            counts = _Counts(nll, np.maximum(tokens, 0), self._bytes(domain.documents, encoded[domain.name]))
            load = None if tally is None else tally.load(self._name, domain.name, self._experts)
            scored.append(_Scored(domain.name, counts, load))
        return scored

    @torch.inference_mode()
    def _losses(self, batch: ScoringBatch, tally: _Tally | None) -> NDArray[np.float64]:
        """Summed loss of each row, ``[B]``."""
        device = self._model.embed_tokens.weight.device
        tokens, targets = (torch.from_numpy(array).to(device) for array in (batch.tokens, batch.targets))
        taps = None if tally is None else Taps(routing=tally.watch(torch.from_numpy(batch.is_token).flatten().to(device)))
        losses = self._model.token_losses(tokens, targets, taps=taps)
        summed: NDArray[np.float64] = losses.view(tokens.shape).sum(1, dtype=torch.float64).cpu().numpy()
        return summed

    def _bytes(self, documents: Sequence[str], encoded: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Bytes of every document less those of its first token."""
        firsts = (len(self._tokenizer.decode(ids[:1]).encode()) if ids else 0 for ids in encoded)
        sizes = [max(1, len(text.encode()) - first) for text, first in zip(documents, firsts, strict=True)]
        return np.asarray(sizes, dtype=np.int64)


class _Tally:
    """Counts a router's choices on the tokens of one domain."""

    def __init__(self, model: CausalLM, experts: int) -> None:
        shape = (model.config.num_layers, experts)
        device = model.embed_tokens.weight.device
        self._active = torch.zeros(shape, dtype=torch.float64, device=device)
        self._probability = torch.zeros(shape, dtype=torch.float64, device=device)
        self._tokens = 0

    def watch(self, real_N: Tensor) -> Callable[[int, Tensor, Tensor], None]:
        """A tap that counts the tokens which are ``real_N`` (``[n]`` bool), not padding."""
        self._tokens += int(real_N.sum())

        def note(layer: int, probabilities: Tensor, picks: Tensor) -> None:
            self._probability[layer] += probabilities[real_N].sum(0, dtype=torch.float64)
            self._active[layer] += torch.bincount(picks[real_N].flatten(), minlength=self._active.shape[1])

        return note

    def load(self, model: str, domain: str, experts: list[str]) -> RouterLoad:
        """The shares."""
        active, probability = ((counts / self._tokens).tolist() for counts in (self._active, self._probability))
        return RouterLoad(model=model, domain=domain, experts=experts, active=active, probability=probability)


def _score(model: str, domain: str, counts: _Counts, baseline: _Counts, seed: int) -> Score:
    samples = np.random.default_rng(seed).integers(0, len(counts.nll), size=(_RESAMPLES, len(counts.nll)))
    per_token = counts.nll[samples].sum(1) / counts.tokens[samples].sum(1)
    bits = _bits(counts, samples)
    gaps = bits - _bits(baseline, samples)
    nll, tokens, size = float(counts.nll.sum()), int(counts.tokens.sum()), int(counts.bytes.sum())
    value = nll / size / math.log(2)
    ppl_low, ppl_high = _interval(np.exp(per_token))
    bits_low, bits_high = _interval(bits)
    gap_low, gap_high = _interval(gaps)
    return Score(
        model=model,
        domain=domain,
        documents=len(counts.nll),
        tokens=tokens,
        bytes=size,
        nll=nll,
        perplexity=math.exp(nll / tokens),
        perplexity_low=ppl_low,
        perplexity_high=ppl_high,
        bits_per_byte=value,
        bits_per_byte_low=bits_low,
        bits_per_byte_high=bits_high,
        difference=value - float(baseline.nll.sum() / baseline.bytes.sum() / math.log(2)),
        difference_low=gap_low,
        difference_high=gap_high,
    )


def _bits(counts: _Counts, samples: NDArray[np.int64]) -> NDArray[np.float64]:
    bits: NDArray[np.float64] = counts.nll[samples].sum(1) / counts.bytes[samples].sum(1) / math.log(2)
    return bits


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
