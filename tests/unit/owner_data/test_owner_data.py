"""Duplicates, the held-out part, and mixing public sequences in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, UsageError
from common.textdata.packing import PackedSequences
from common.textdata.tokens import TokenFile
from owner_client.data.documents import DocumentCounts, documents, fingerprint
from owner_client.data.mixing import MixedSequences


def _file(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_duplicates_differ_only_in_space_or_composition() -> None:
    assert fingerprint("a  b\n") == fingerprint(" a b")
    assert fingerprint("caf\u00e9") == fingerprint("cafe\u0301")
    assert fingerprint("ab") != fingerprint("a b")
    assert fingerprint("A") != fingerprint("a")


def test_parts_are_disjoint_complete_and_stable(tmp_path: Path) -> None:
    texts = [f"document number {number}" for number in range(2000)]
    forward = _file(tmp_path / "a.jsonl", [*texts, "", texts[0] + " "])
    backward = _file(tmp_path / "b.jsonl", texts[::-1])
    counts = DocumentCounts()
    train = list(documents([forward], part="train", text_field="text", fraction=0.1, seed=0, counts=counts))
    heldout = list(documents([forward], part="heldout", text_field="text", fraction=0.1, seed=0))
    assert sorted(train + heldout) == sorted(texts)
    assert 140 < len(heldout) < 260
    assert (counts.kept, counts.duplicates, counts.empty) == (len(train), 1, 1)
    assert counts.characters == sum(map(len, train))
    assert set(documents([backward], part="heldout", text_field="text", fraction=0.1, seed=0)) == set(heldout)
    assert set(documents([forward], part="heldout", text_field="text", fraction=0.1, seed=1)) != set(heldout)
    assert list(documents([forward], part="heldout", text_field="text", fraction=0.0, seed=0)) == []


def test_duplicates_across_files_are_left_out(tmp_path: Path) -> None:
    paths = [_file(tmp_path / "a.jsonl", ["x", "y"]), _file(tmp_path / "b.jsonl", ["y", "z"])]
    assert list(documents(paths, part="train", text_field="text", fraction=0.0, seed=0)) == ["x", "y", "z"]
    with pytest.raises(DataError):
        list(documents([_file(tmp_path / "c.jsonl", [])], part="train", text_field="text", fraction=0.0, seed=0))


def _packed(offset: int) -> PackedSequences:
    tokens = np.arange(400, dtype="<u4") + offset
    return PackedSequences(TokenFile(tokens, np.array([0, 200, 400], dtype="<u8"), 0, 0), seq_len=10, seed=0, shuffle=False)


def test_mixing_share_order_and_resumption() -> None:
    total = 3000
    mixed = MixedSequences(_packed(0), _packed(100_000), public_share=0.3, seed=5, total=total)
    batches = [mixed.batch(step, 10) for step in range(total // 10)]
    rows = np.concatenate([batch.tokens for batch in batches])
    public = rows[:, 0] >= 100_000
    assert 0.26 < public.mean() < 0.34
    # Each side is walked in its own order without a gap, whatever the other does.
    for side, offset in ((rows[~public], 0), (rows[public], 100_000)):
        expected = [_packed(offset).window(number).tokens[:-1] for number in range(len(side))]
        assert np.array_equal(side, np.stack(expected))
    longer = MixedSequences(_packed(0), _packed(100_000), public_share=0.3, seed=5, total=2 * total)
    assert np.array_equal(longer.batch(123, 10).tokens, batches[123].tokens)
    assert not np.array_equal(
        MixedSequences(_packed(0), _packed(100_000), public_share=0.3, seed=6, total=total).batch(0, 10).tokens, batches[0].tokens
    )


def test_no_public_text_means_no_public_share() -> None:
    with pytest.raises(UsageError, match="public share"):
        MixedSequences(_packed(0), None, public_share=0.1, seed=0, total=10)
    alone = MixedSequences(_packed(0), None, public_share=0.0, seed=0, total=10)
    assert alone.batch(0, 3).tokens[:, 0].tolist() == [0, 10, 20]
    with pytest.raises(UsageError):
        MixedSequences(_packed(0), _packed(1), public_share=1.0, seed=0, total=10)
