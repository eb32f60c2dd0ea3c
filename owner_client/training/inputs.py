"""The texts of one run as token streams in its folder: private and public, each split into training and held-out documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, UsageError
from common.formats.layout import PUBLIC_SAMPLE_NAME
from common.progress import ProgressSink
from common.textdata.readers import expand
from common.textdata.tokens import TokenFile, Tokenizer, input_digest, open_token_file, tokenize_to_file
from owner_client.data.documents import DocumentCounts, Part, documents
from owner_client.training.settings import TrainSettings

__all__ = ["RunInputs", "prepare_inputs"]

_NAMES = ("private-train", "private-heldout", "public-train", "public-heldout")
_LEAST_TOKENS = 64  # of private training text; less is surely a mistake


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Token streams of one run; a held-out part is None when no document fell into it."""

    private: TokenFile
    private_heldout: TokenFile | None
    public: TokenFile | None
    public_heldout: TokenFile | None
    digest: str
    """sha256 in hex over all input files."""

    @property
    def parts(self) -> list[str]:
        """Names of the streams there are, for :meth:`reopened`."""
        streams = (self.private, self.private_heldout, self.public, self.public_heldout)
        return [name for name, stream in zip(_NAMES, streams, strict=True) if stream is not None]

    @classmethod
    def reopened(cls, run_dir: Path, parts: Sequence[str], digest: str) -> RunInputs:
        """The streams that another process prepared in ``run_dir``.

        Raises:
            LayoutError: a stream is missing or damaged.
        """
        opened = {name: open_token_file(run_dir / "tokens" / name) for name in ("private-train", *parts)}
        heldout, public, public_heldout = (opened.get(name) for name in _NAMES[1:])
        return cls(opened["private-train"], heldout, public, public_heldout, digest)


def prepare_inputs(
    anchor: Path,
    data: Sequence[str],
    tokenizer: Tokenizer,
    *,
    run_dir: Path,
    settings: TrainSettings,
    text_field: str,
    progress: ProgressSink,
) -> RunInputs:
    """Tokenise the owner's files and the anchor's public sample into ``run_dir / "tokens"``, or reuse what is there.

    Raises:
        DataError, TextFieldError, MissingExtraError: a data file cannot be used.
        UsageError: a public share is asked for and the anchor brings no public sample.
        StorageError: the disk is full or not writable.
    """
    sample = anchor / PUBLIC_SAMPLE_NAME
    has_public = sample.exists() and sample.stat().st_size > 0
    if not has_public and settings.public_share > 0:
        raise UsageError("The anchor brings no sample of public text, so none can be mixed in; use a public share of 0.")
    files = expand(data)

    def split(name: str, paths: Sequence[Path], field: str) -> tuple[TokenFile | None, TokenFile | None, str]:
        digest = input_digest(paths, text_field=field)
        train, heldout = (
            _tokens(run_dir / "tokens" / f"{name}-{part}", paths, part, field, digest, tokenizer, settings, progress) for part in _PARTS
        )
        return train, heldout, digest

    private, private_heldout, private_digest = split("private", files, text_field)
    if private is None or private.num_tokens < _LEAST_TOKENS:
        raise DataError("There is too little private text to train on.")
    public, public_heldout, public_digest = split("public", [sample], "text") if has_public else (None, None, "")
    digest = hashlib.sha256(f"{private_digest}\n{public_digest}\n{tokenizer.digest}\n".encode()).hexdigest()
    return RunInputs(private, private_heldout, public, public_heldout, digest)


_PARTS: tuple[Part, Part] = ("train", "heldout")


def _tokens(
    out: Path,
    paths: Sequence[Path],
    part: Part,
    field: str,
    digest: str,
    tokenizer: Tokenizer,
    settings: TrainSettings,
    progress: ProgressSink,
) -> TokenFile | None:
    if part == "heldout" and settings.heldout == 0:
        return None
    counts = DocumentCounts()
    texts = documents(paths, part=part, text_field=field, fraction=settings.heldout, seed=settings.seed, counts=counts)
    key = f"{digest} {part} {settings.heldout} {settings.seed}"
    try:
        return tokenize_to_file(texts, tokenizer, out, key=key, progress=progress, label=f"Reading {out.name.replace('-', ' ')} text")
    except DataError:
        # No document at all is an error of the files, and was raised by the reader; none in this part is only a small data set.
        if part == "heldout" and counts.kept == 0:
            return None
        raise
