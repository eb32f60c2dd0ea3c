"""From public texts and owners' lists of proxies to a model's tuned routers; the training itself is in ``router_tuning.py``."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DataError, FormatError, UsageError
from common.formats.layout import PUBLIC_SAMPLE_NAME, router_row_name
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.proxies import parse_proxies, text_digest
from common.modeling.loading import checkpoint_dtype, load_model
from common.progress import ProgressSink, silent
from common.textdata.packing import PackedSequences
from common.textdata.readers import expand, read_texts
from common.textdata.tokens import Tokenizer, input_digest, load_tokenizer, tokenize_to_file
from common.weights.digests import read_small
from coordinator.compute.generate import expert_names
from coordinator.compute.router_tuning import TunedRows, TuningSettings, UniformMix, tune_rows
from coordinator.usecases.tune_router import PublicSample, Tuning

__all__ = ["PUBLIC", "TuningTexts", "run_tuning"]

PUBLIC = "public"
"""Name of the text that stands for no expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningTexts:
    """What the rows are tuned on: one equal part of the mix for every name.

    ``data`` are texts by name, which is :data:`PUBLIC` or an expert's; ``proxies`` are lists of proxies (``docs/formats.md``,
    section 10) by expert, whose documents are looked up in the public text and in the anchor's public sample.
    """

    data: Mapping[str, Sequence[str]]
    proxies: Mapping[str, Path]
    text_field: str = "text"

    def __post_init__(self) -> None:
        both = sorted(set(self.data) & set(self.proxies))
        if both:
            raise UsageError(f"Proxies of {both[0]} are given twice, as texts and as a list.")


def run_tuning(
    folder: Path,
    sample: PublicSample | None,
    texts: TuningTexts,
    settings: TuningSettings,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: ProgressSink = silent,
) -> tuple[Tuning, TunedRows]:
    """Tune the routers of the model in ``folder``.

    Args:
        folder: an assembled model, verified.
        sample: its anchor's public text.
        texts: what to tune on; the sample is the public text when none is given.
        settings: of the run.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of everything frozen: ``auto`` (bfloat16 on a GPU), ``float32`` or ``bfloat16``.
        progress: hears of every stage.

    Raises:
        UsageError: names that are neither an expert's nor ``public``, no public text, a list for another expert or anchor, no such
            device, or settings that do not fit the model.
        DataError, TextFieldError, MissingExtraError: a text cannot be used, or a list names documents that are nowhere.
        FormatError, LimitError: a list is malformed.
        NonFiniteError: tuning diverged.
    """
    chosen = _device(device)
    precision = _precision(dtype, chosen)
    model = load_model(folder, dtype=precision, device=chosen)
    settings = settings.for_width(model.config.hidden_size)
    with tempfile.TemporaryDirectory(prefix="elmgrove-tuning-") as scratch:
        reader = _Reader(Path(scratch), sample, texts)
        reader.check_names(expert_names(folder, model.config.num_experts))
        sources = reader.sources(load_tokenizer(folder), settings, progress)
        tuned = tune_rows(model, UniformMix(sources, seed=settings.seed), settings, progress=progress)
    summary = _summary(settings, tuned, precision) | {"public_text": reader.public_digest()}
    return Tuning(_encode(tuned.rows, checkpoint_dtype(folder)), reader.digests(), summary), tuned


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def _precision(wanted: str, device: torch.device) -> torch.dtype:
    wide = wanted == "float32" or (wanted == "auto" and device.type == "cpu")
    return torch.float32 if wide else torch.bfloat16


def _encode(rows: Tensor, dtype: torch.dtype) -> dict[str, bytes]:
    """Bytes of every router by tensor name, in the model's dtype."""
    return {router_row_name(layer): router.to(dtype).contiguous().view(torch.uint8).numpy().tobytes() for layer, router in enumerate(rows)}


def _summary(settings: TuningSettings, tuned: TunedRows, dtype: torch.dtype) -> dict[str, int | str]:
    return {
        "steps": settings.steps,
        "batch_tokens": settings.batch_tokens,
        "sequence_length": settings.seq_len,
        "learning_rate": f"{settings.lr:.3g}",
        "active_experts": tuned.top_k,
        "public_row": "tuned" if settings.tune_public else "fixed",
        "seed": settings.seed,
        "precision": str(dtype).removeprefix("torch."),
    }


class _Reader:
    """The texts of one run."""

    def __init__(self, scratch: Path, sample: PublicSample | None, texts: TuningTexts) -> None:
        self._scratch, self._texts, self._sample = scratch, texts, sample
        self._sample_file: Path | None = None
        if sample is not None:
            self._sample_file = scratch / PUBLIC_SAMPLE_NAME
            self._sample_file.symlink_to(sample.path.absolute())  # a reader goes by the name's ending, which a blob has not

    def check_names(self, experts: Sequence[str]) -> None:
        """Every name is known, and there is public text.

        Raises:
            UsageError: not so.
        """
        known = [PUBLIC, *experts[1:]]
        for name in (*self._texts.data, *self._texts.proxies):
            if name not in known or (name == PUBLIC and name in self._texts.proxies):
                raise UsageError(f"{name!r} is no expert of this model; its experts are: {', '.join(experts[1:])}.")
        if PUBLIC not in self._texts.data and self._sample_file is None:
            raise UsageError("The anchor brings no public text; give some with --data public=FILES.")

    def public_digest(self) -> str:
        """SHA-256 over the public text."""
        if PUBLIC in self._texts.data:
            return input_digest(expand(self._texts.data[PUBLIC]), text_field=self._texts.text_field)
        return self._sample.sha256 if self._sample is not None else ""

    def digests(self) -> dict[str, str]:
        """SHA-256 of every expert's list or texts."""
        given = {
            name: input_digest(expand(specs), text_field=self._texts.text_field)
            for name, specs in self._texts.data.items()
            if name != PUBLIC
        }
        return given | {name: hashlib.sha256(_read_list(path)).hexdigest() for name, path in self._texts.proxies.items()}

    def sources(self, tokenizer: Tokenizer, settings: TuningSettings, progress: ProgressSink) -> list[PackedSequences]:
        """One text after the other, public first."""
        chosen = self._lists()
        parts: dict[str, Iterator[str]] = {PUBLIC: self._public()}
        parts |= {name: self._read(specs) for name, specs in self._texts.data.items() if name != PUBLIC}
        parts |= {name: iter(texts) for name, texts in chosen.items()}
        files = {
            name: tokenize_to_file(texts, tokenizer, self._scratch / f"tokens-{name}", progress=progress, label=f"Reading {name}")
            for name, texts in parts.items()
        }
        return [PackedSequences(file, seq_len=settings.seq_len, seed=settings.seed) for file in files.values()]

    def _read(self, specs: Sequence[str]) -> Iterator[str]:
        return read_texts(expand(specs), text_field=self._texts.text_field)

    def _public(self) -> Iterator[str]:
        return self._read(self._texts.data[PUBLIC]) if PUBLIC in self._texts.data else self._from_sample()

    def _from_sample(self) -> Iterator[str]:
        return read_texts([self._sample_file]) if self._sample_file is not None else iter(())

    def _lists(self) -> dict[str, list[str]]:
        """The documents that the lists name, in the lists' order."""
        lists = {name: self._parse(name, path) for name, path in self._texts.proxies.items()}
        wanted = {digest for digests in lists.values() for digest in digests}
        found: dict[str, str] = {}
        if wanted:
            for texts in (self._from_sample(), self._public()):
                found |= {digest: text for text in texts if (digest := text_digest(text)) in wanted}
        for name, digests in lists.items():
            missing = sum(digest not in found for digest in digests)
            if missing:
                raise DataError(
                    f"{missing} of the {len(digests)} documents that the list for {name} names are neither in the anchor's public sample "
                    "nor in the public text given with --data public=FILES."
                )
        return {name: [found[digest] for digest in digests] for name, digests in lists.items()}

    def _parse(self, name: str, path: Path) -> tuple[str, ...]:
        try:
            head, digests = parse_proxies(_read_list(path))
        except FormatError as error:
            raise type(error)(f"{path.name}: {error}") from error
        if head.expert != name:
            raise UsageError(f"{path.name} is a list for expert {head.expert}, not for {name}.")
        if self._sample is not None and head.anchor != self._sample.anchor:
            raise UsageError(f"{path.name} was chosen from another anchor's public sample than this model's.")
        return digests


def _read_list(path: Path) -> bytes:
    return read_small(path, MAX_DOCUMENT_BYTES)
