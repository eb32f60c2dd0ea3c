"""Documents as a stream of token numbers on disk: ``tokens.u32`` and ``documents.u64`` (little endian) with a ``meta.json`` beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, LayoutError, MissingExtraError
from common.files import atomic_folder, storage_errors
from common.progress import ProgressSink, silent

__all__ = ["TokenFile", "Tokenizer", "input_digest", "load_tokenizer", "open_token_file", "tokenize_to_file"]

_SCHEMA = 1
_BATCH = 256  # documents encoded at once, over all cores
_BATCH_CHARACTERS = 4 << 20  # after which a batch of long documents ends
_READ = 1 << 20  # bytes


class Tokenizer:
    """A ``tokenizer.json`` with the number that ends a document."""

    def __init__(self, inner: Any, eos_id: int, digest: str) -> None:
        self._inner = inner
        self.eos_id = eos_id
        self.digest = digest
        """sha256 of the ``tokenizer.json``, in hex; equal digests mean comparable perplexities."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token numbers of ``text``, without special tokens."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of many texts, in parallel where the machine allows."""
        return [list(encoding.ids) for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


def load_tokenizer(folder: Path, *, eos_id: int | None = None) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: holds ``tokenizer.json``, and ``tokenizer_config.json`` or ``config.json`` that name the end token.
        eos_id: the end token's number, when the caller knows it.

    Raises:
        LayoutError: the file is missing or malformed, or no end token is named.
        MissingExtraError: the tokenizers library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("Tokenising needs the tokenizers library; install the extra: pip install 'elmgrove[train]'") from error
    path = folder / "tokenizer.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LayoutError(f"The model folder has no readable {path.name}: {error.strerror}.") from error
    try:
        inner = tokenizers.Tokenizer.from_buffer(raw)
    except Exception as error:
        raise LayoutError("tokenizer.json is malformed.") from error
    end = eos_id if eos_id is not None else _end_token(folder, inner)
    return Tokenizer(inner, end, hashlib.sha256(raw).hexdigest())


def _end_token(folder: Path, inner: Any) -> int:
    value = _read_object(folder / "tokenizer_config.json").get("eos_token")
    text = value.get("content") if isinstance(value, dict) else value
    number = inner.token_to_id(text) if isinstance(text, str) else None
    if number is None:
        number = _read_object(folder / "config.json").get("eos_token_id")
        number = number[0] if isinstance(number, list) and number else number
    if not isinstance(number, int) or isinstance(number, bool):
        raise LayoutError("Neither tokenizer_config.json nor config.json names an end-of-text token that tokenizer.json knows.")
    return number


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise LayoutError(f"{path.name} is not readable JSON.") from error
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A memory-mapped token stream in which every document ends with the end token."""

    tokens: NDArray[np.uint32]
    """All documents one after the other, ``[tokens]``."""
    starts: NDArray[np.uint64]
    """Where each document starts, and at last where the last one ends, ``[documents + 1]``."""
    text_bytes: int
    """UTF-8 length of all documents."""
    eos_id: int
    """The token that ends every document."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, end tokens included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    def document(self, number: int) -> NDArray[np.uint32]:
        """Tokens of one document, its end token included."""
        return self.tokens[int(self.starts[number]) : int(self.starts[number + 1])]


def input_digest(paths: Sequence[Path], *, text_field: str) -> str:
    """sha256 in hex over the bytes of ``paths`` in order and the field's name: what a token file was made from.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256(f"field {text_field}\n".encode())
    for path in paths:
        try:
            with path.open("rb") as stream:
                digest.update(f"file {path.name} {path.stat().st_size}\n".encode())
                while block := stream.read(_READ):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path.name} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def tokenize_to_file(
    texts: Iterable[str], tokenizer: Tokenizer, out: Path, *, key: str = "", progress: ProgressSink = silent, label: str = "Tokenising"
) -> TokenFile:
    """Write the tokens of ``texts`` as the folder ``out``, or open it when it was made with the same tokenizer and ``key``.

    Args:
        texts: documents; not read when the folder can be reused.
        tokenizer: makes the tokens; its end token closes every document.
        out: appears whole or not at all; one made from something else is replaced.
        key: names the input (:func:`input_digest` and whatever was done to it); an empty key is never reused.
        progress: hears of documents done.
        label: for ``progress``.

    Raises:
        DataError: there is no document.
        StorageError: the disk is full or not writable.
    """
    identity = {"schema": _SCHEMA, "key": key, "tokenizer": tokenizer.digest, "eos_id": tokenizer.eos_id}
    if key and _read_meta(out).get("identity") == identity:
        return open_token_file(out)
    if out.exists():
        shutil.rmtree(out)
    with atomic_folder(out) as aside, storage_errors("the tokens"):
        text_bytes, lengths = _write_tokens(texts, tokenizer, aside / "tokens.u32", progress, label)
        if not lengths:
            raise DataError("There is no document to tokenise.")
        starts = np.zeros(len(lengths) + 1, dtype="<u8")
        np.cumsum(lengths, out=starts[1:])
        (aside / "documents.u64").write_bytes(starts.tobytes())
        (aside / "meta.json").write_text(json.dumps({"identity": identity, "text_bytes": text_bytes}), encoding="utf-8")
    return open_token_file(out)


def _write_tokens(texts: Iterable[str], tokenizer: Tokenizer, path: Path, progress: ProgressSink, label: str) -> tuple[int, list[int]]:
    text_bytes, lengths, started = 0, list[int](), time.monotonic()
    with path.open("wb") as stream:
        for batch in _batches(texts):
            text_bytes += sum(len(text.encode()) for text in batch)
            lengths += _append(stream, tokenizer.encode_batch(batch), tokenizer.eos_id)
            rate = text_bytes / max(time.monotonic() - started, 1e-9)
            progress(label, len(lengths), 0, "documents", {"MB/s": f"{rate / 1e6:.1f}"})
    progress(label, len(lengths), len(lengths), "documents")
    return text_bytes, lengths


def _append(stream: BinaryIO, documents: Sequence[list[int]], eos_id: int) -> list[int]:
    for ids in documents:
        stream.write(np.asarray([*ids, eos_id], dtype="<u4").tobytes())
    return [len(ids) + 1 for ids in documents]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def open_token_file(folder: Path) -> TokenFile:
    """The token stream in ``folder``.

    Raises:
        LayoutError: its files are missing or do not fit each other.
    """
    meta = _read_meta(folder)
    try:
        tokens: NDArray[np.uint32] = np.memmap(folder / "tokens.u32", dtype="<u4", mode="r")
        starts = np.fromfile(folder / "documents.u64", dtype="<u8")
        text_bytes, eos_id = int(meta["text_bytes"]), int(meta["identity"]["eos_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{folder.name} is not a folder of tokens; remove it and run the command again.") from error
    if len(starts) < 2 or starts[0] != 0 or int(starts[-1]) != len(tokens) or bool((starts[1:] <= starts[:-1]).any()):
        raise LayoutError(f"{folder.name} holds a damaged token stream; remove it and run the command again.")
    return TokenFile(tokens, starts, text_bytes, eos_id)
