"""Gathers the demo's text from files that any machine with Elmgrove installed already holds, those of its Python and its system.

One domain is public (English technical prose) and three are private, one for each owner of the demo:

- ``public``  Python's documentation topics, descriptions and docstrings of the standard library and of installed packages;
- ``cpp``     the C++ headers that ship with torch;
- ``math``    sympy: computer algebra as source and docstrings;
- ``legal``   licence texts of installed packages and of the system, every paragraph once.

The public set also holds a twentieth of each private kind of text (other documents than the owners have), because an anchor trained on the
web knows a little of everything and an expert starts from that. Documents are cut to parts of at most 16 kB, cleaned, freed of exact
and near duplicates, and divided by the sha256 of their text: one part in ten is validation. The result depends only on the
installed versions. Run it as ``python -m deploy.demo.corpus OUT_DIR``.
"""

from __future__ import annotations

import gzip
import itertools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also when run by its path

from common.console import emit, run_cli, table
from common.errors import DataError
from common.files import storage_errors, write_atomic
from deploy.demo.sources import (
    MIN_DOCUMENT,
    NEAR_DUPLICATE,
    PUBLIC_SHARE,
    Document,
    Shingles,
    cpp_sources,
    legal_sources,
    math_sources,
    public_sources,
)

__all__ = ["DOMAINS", "Domain", "gather", "main", "summary", "write"]

VALID_BYTES = 240_000  # cap of each validation file, uncompressed
PUBLIC_BYTES = 4_000_000  # cap of the public training file, uncompressed
PRIVATE_BYTES = 2_500_000  # cap of each private training file, uncompressed
SLICE_BYTES = 130_000  # cap of each private kind of text inside the public training file
MAX_POOL = 8_000_000  # characters of one domain's documents looked at; the caps need about half
MIN_TRAIN_BYTES = 200_000  # less text than this cannot show what an expert learns
NEAR_VALID = 0.2  # share of known shingles that keeps a document out of validation: it must be new text


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """The chosen documents of one domain."""

    name: str
    train: list[Document] = field(default_factory=list)
    valid: list[Document] = field(default_factory=list)


def _take(candidates: Iterable[Document], cap: int, known: Shingles, limit: float, *, remember: bool) -> list[Document]:
    """The first candidates that are new, up to ``cap`` bytes of text."""
    chosen: list[Document] = []
    size = 0
    for document in candidates:
        length = len(document.text.encode())
        if size + length > cap:
            continue
        shingles = known.of(document.text)
        if known.known_share(shingles) > limit:
            continue
        if remember:
            known.add(shingles)
        chosen.append(document)
        size += length
        if size > cap - MIN_DOCUMENT:
            break
    return chosen


_PRIVATE: dict[str, Callable[[], Iterator[Document]]] = {"cpp": cpp_sources, "math": math_sources, "legal": legal_sources}
DOMAINS = ("public", *_PRIVATE)


def gather() -> list[Domain]:
    """Collect, clean and divide the text of all domains; no document and hardly a sentence is in two of them.

    Returns:
        ``public`` first, then the private domains; each split is in the order of its documents' digests.

    Raises:
        DataError: this machine holds too little text of some domain.
    """
    known = Shingles()
    # Not forked: numpy has started threads by now, which a fork would cut off.
    with ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn")) as executor:
        pools = dict(zip(DOMAINS, executor.map(_pool, DOMAINS), strict=True))
    train: dict[str, list[Document]] = {}
    sliced: list[Document] = []
    for name in _PRIVATE:
        pool = [document for document in pools[name] if not document.is_valid]
        train[name] = _take([one for one in pool if not one.is_slice], PRIVATE_BYTES, known, NEAR_DUPLICATE, remember=True)
        share = min(SLICE_BYTES, sum(len(one.text) for one in train[name]) // PUBLIC_SHARE)
        sliced += _take([one for one in pool if one.is_slice], share, known, NEAR_DUPLICATE, remember=True)
    prose = [document for document in pools["public"] if not document.is_valid]
    rest = PUBLIC_BYTES - sum(len(one.text.encode()) for one in sliced)
    train["public"] = _by_digest([*_take(prose, rest, known, NEAR_DUPLICATE, remember=True), *sliced])
    valid = {name: _take([one for one in pools[name] if one.is_valid], VALID_BYTES, known, NEAR_VALID, remember=True) for name in DOMAINS}
    domains = [Domain(name=name, train=train[name], valid=valid[name]) for name in DOMAINS]
    for domain in domains:
        _check(domain)
    return domains


def _pool(name: str) -> list[Document]:
    """All documents of one domain on this machine, or as many as could be needed."""
    ordered = _by_digest(public_sources() if name == "public" else _PRIVATE[name]())
    sizes = itertools.accumulate(len(document.text) for document in ordered)
    return [document for document, size in zip(ordered, sizes, strict=True) if size <= MAX_POOL]


def _by_digest(documents: Iterable[Document]) -> list[Document]:
    """Without exact duplicates, in the order of the digests: a fixed shuffle."""
    unique = {document.digest: document for document in documents}
    return [unique[digest] for digest in sorted(unique)]


def _check(domain: Domain) -> None:
    size = sum(len(document.text.encode()) for document in domain.train)
    if size < MIN_TRAIN_BYTES or not domain.valid:
        raise DataError(
            f"This machine holds only {size:,} bytes of text for the demo's domain '{domain.name}' ({MIN_TRAIN_BYTES:,} are needed). "
            "Install the [train] extra into this Python, or give the demo your own files with DATA=DIR."
        )


# --- writing ----------------------------------------------------------------------------------------------------------


def write(domains: Iterable[Domain], folder: Path) -> None:
    """Write ``NAME.train.jsonl.gz`` and ``NAME.valid.jsonl.gz`` of every domain into ``folder``; the same texts give the same bytes.

    Raises:
        StorageError: the folder cannot be written.
    """
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    for domain in domains:
        for split, documents in (("train", domain.train), ("valid", domain.valid)):
            rows = (json.dumps({"text": one.text, "source": one.source}, ensure_ascii=False) for one in documents)
            body = "".join(f"{row}\n" for row in rows).encode()
            write_atomic(folder / f"{domain.name}.{split}.jsonl.gz", gzip.compress(body, compresslevel=6, mtime=0))


def summary(domains: Iterable[Domain]) -> str:
    """A table of documents and bytes per domain and split."""
    rows = [[one.name, *[f(split) for split in (one.train, one.valid) for f in (_count, _bytes)]] for one in domains]
    return table(["domain", "train documents", "train bytes", "valid documents", "valid bytes"], rows)


def _count(documents: list[Document]) -> str:
    return f"{len(documents):,}"


def _bytes(documents: list[Document]) -> str:
    return f"{sum(len(one.text.encode()) for one in documents):,}"


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Gather the demo's text on this machine into the folder OUT."""
    domains = gather()
    write(domains, out)
    emit(summary(domains))


if __name__ == "__main__":
    run_cli(main, name="corpus")
