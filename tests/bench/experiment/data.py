"""A folder of corpora as the experiment's texts: a public slice of every private domain, its private rest, and documents held out.

Where a document goes follows from the SHA-256 of its text alone, so no two parts share a text and every run splits alike.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import DataError
from common.files import atomic_folder
from common.textdata.readers import read_texts
from common.textdata.tokens import input_digest

__all__ = ["PUBLIC", "Corpus", "part_of", "prepare_corpus", "write_texts"]

PUBLIC = "public"
Part = Literal["slice", "tune", "private"]
_TRAIN, _VALID = ".train.jsonl.gz", ".valid.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The texts of one split; ``digest`` stands for all of them."""

    folder: Path
    source: Path
    domains: tuple[str, ...]
    digest: str

    @property
    def names(self) -> tuple[str, ...]:
        """All that is measured: the public text and the private domains."""
        return (PUBLIC, *self.domains)

    def mix(self) -> Path:
        """What the anchor trains on: public text and the slices, in the order of their hashes."""
        return self.folder / "mix.jsonl.gz"

    def training(self, name: str) -> Path:
        """What an owner trains on; the mix for the public name."""
        return self.mix() if name == PUBLIC else self.folder / f"{name}.private.jsonl.gz"

    def scored(self, name: str, part: Literal["tune", "valid"]) -> Path:
        """Text to measure on: documents held out of training files, or the validation file."""
        return self.folder / f"{name}.tune.jsonl.gz" if part == "tune" else self.source / f"{name}{_VALID}"


def part_of(text: str, *, public_slice: float, tune_share: float) -> Part:
    """Where a training document of a private domain belongs."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if int(digest[8:16], 16) % 100 < 100 * public_slice:
        return "slice"
    return "tune" if int(digest[16:24], 16) % 100 < 100 * tune_share else "private"


def prepare_corpus(source: Path, out: Path, *, public_slice: float, tune_share: float) -> Corpus:
    """Split the corpora of ``source`` into a folder below ``out``, unless that was done before.

    Raises:
        DataError: ``source`` has no ``public.train.jsonl.gz``, no private domain, or a domain without a validation file.
    """
    names = sorted(path.name.removesuffix(_TRAIN) for path in source.glob(f"*{_TRAIN}"))
    if PUBLIC not in names or len(names) < 2:
        raise DataError(f"{source} must hold public{_TRAIN} and at least one other NAME{_TRAIN}, each with its NAME{_VALID}.")
    files = [source / f"{name}{suffix}" for name in names for suffix in (_TRAIN, _VALID)]
    digest = hashlib.sha256(f"{input_digest(files, text_field='text')} {public_slice} {tune_share}".encode()).hexdigest()
    corpus = Corpus(out / f"corpus-{digest[:12]}", source, tuple(name for name in names if name != PUBLIC), digest)
    if not corpus.folder.exists():
        with atomic_folder(corpus.folder) as aside:
            _split(corpus, aside, public_slice, tune_share)
    return corpus


def _split(corpus: Corpus, folder: Path, public_slice: float, tune_share: float) -> None:
    mix: list[str] = []
    for name in corpus.names:
        parts: dict[Part, list[str]] = {"slice": [], "tune": [], "private": []}
        share = 0.0 if name == PUBLIC else public_slice
        for text in dict.fromkeys(read_texts([corpus.source / f"{name}{_TRAIN}"])):
            parts[part_of(text, public_slice=share, tune_share=tune_share)].append(text)
        mix += parts["slice"]
        if name == PUBLIC:
            mix += parts["private"]
        else:
            write_texts(folder / f"{name}.private.jsonl.gz", parts["private"])
        # A domain of very few documents may have none to spare.
        write_texts(folder / f"{name}.tune.jsonl.gz", parts["tune"] or parts["private"][:1])
    write_texts(folder / "mix.jsonl.gz", sorted(dict.fromkeys(mix), key=lambda text: hashlib.sha256(text.encode()).digest()))


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write ``.jsonl.gz``; the same texts give the same bytes."""
    with path.open("xb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as out:
        for line in _lines(texts):
            out.write(line)


def _lines(texts: Iterable[str]) -> Iterator[bytes]:
    for text in texts:
        yield (json.dumps({"text": text}, ensure_ascii=False) + "\n").encode()
