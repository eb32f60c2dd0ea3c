"""Trains an anchor's byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909) and writes it as ``AutoTokenizer`` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from common.errors import DataError, MissingExtraError, UsageError
from common.files import storage_errors, write_atomic

__all__ = ["END_OF_TEXT", "PAD", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_SPECIAL = (END_OF_TEXT, PAD)
_BYTES = 256
# Words with one leading sign or blank, at most three digits together, signs, line ends, runs of blanks: what models for text and code use.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], out: Path, *, vocab_size: int, max_length: int) -> int:
    """Train a tokenizer on ``texts`` and write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json`` into ``out``.

    The same texts and size give the same files. Every text can be encoded and decoded without loss: bytes are the alphabet.

    Args:
        texts: public documents.
        out: an existing folder.
        vocab_size: tokens in all, special ones and the 256 bytes included; fewer when the text has no more to merge.
        max_length: tokens the model reads at once; recorded for readers of the tokenizer.

    Returns:
        The number of tokens.

    Raises:
        UsageError: no room for the bytes.
        DataError: there is no text.
        MissingExtraError: the tokenizers library is not installed.
        StorageError: the disk is full or not writable.
    """
    if vocab_size < _BYTES + len(_SPECIAL):
        raise UsageError(f"A byte-level vocabulary has at least {_BYTES + len(_SPECIAL)} tokens; {vocab_size} were asked for.")
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise MissingExtraError("Training a tokenizer needs the tokenizers library: pip install 'elmgrove[train]'") from error
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer)
    if not counted.seen:
        raise DataError("There is no text to train a tokenizer on.")
    with storage_errors("the tokenizer"):
        write_atomic(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        _write_json(out / "special_tokens_map.json", {"eos_token": END_OF_TEXT, "pad_token": PAD})
        _write_json(out / "tokenizer_config.json", _settings(max_length))
    return int(tokenizer.get_vocab_size())


class _Counted:
    """An iterable that remembers whether it gave anything."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.seen = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.seen += 1
        return text


def _settings(max_length: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())
