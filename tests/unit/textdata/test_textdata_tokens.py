"""Token streams on disk, and the sequences cut from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, LayoutError
from common.textdata.packing import IGNORED, PackedSequences, make_batch
from common.textdata.tokens import TokenFile, input_digest, load_tokenizer, open_token_file, tokenize_to_file


def _stream(lengths: list[int]) -> TokenFile:
    """Documents whose tokens say ``100 * document + position``; the last of each is the end token 9,999."""
    pieces = [np.append(100 * number + np.arange(length - 1), 9999) for number, length in enumerate(lengths)]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype("<u8")
    return TokenFile(np.concatenate(pieces).astype("<u4"), starts, 0, 9999)


def test_tokenizer_round_trip(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_id == 256
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界")) == "Grüße, 世界"
    assert 256 not in tokenizer.encode("a")


def test_bad_tokenizers(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError):
        load_tokenizer(tmp_path / "absent")
    (tokenizer_folder / "tokenizer_config.json").unlink()
    with pytest.raises(LayoutError, match="end-of-text"):
        load_tokenizer(tokenizer_folder)
    (tokenizer_folder / "config.json").write_text(json.dumps({"eos_token_id": [256, 3]}))
    assert load_tokenizer(tokenizer_folder).eos_id == 256
    (tokenizer_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(LayoutError, match="malformed"):
        load_tokenizer(tokenizer_folder)


def test_token_file_is_written_once_and_reused(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = [f"document {number}" for number in range(600)]
    made = tokenize_to_file(texts, tokenizer, tmp_path / "tokens", key="k")
    assert made.num_documents == 600
    assert made.text_bytes == sum(len(text) for text in texts)
    assert tokenizer.decode(made.document(599)[:-1].tolist()) == "document 599"
    assert made.document(3)[-1] == tokenizer.eos_id

    def unread() -> Iterator[str]:
        raise AssertionError("read although the stream can be reused")
        yield ""

    again = tokenize_to_file(unread(), tokenizer, tmp_path / "tokens", key="k")
    assert np.array_equal(again.tokens, made.tokens)
    other = tokenize_to_file(["x"], tokenizer, tmp_path / "tokens", key="other")
    assert other.num_documents == 1


def test_no_debris_after_an_error(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    with pytest.raises(DataError):
        tokenize_to_file([], tokenizer, tmp_path / "made" / "tokens")
    assert list((tmp_path / "made").iterdir()) == []


def test_damaged_token_files_are_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    tokenize_to_file(["abc", "de"], load_tokenizer(tokenizer_folder), folder)
    whole = (folder / "tokens.u32").read_bytes()
    for raw in (whole[:-4], whole[:-1], b""):
        (folder / "tokens.u32").write_bytes(raw)
        with pytest.raises(LayoutError):
            open_token_file(folder)
    (folder / "tokens.u32").write_bytes(whole)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(LayoutError):
        open_token_file(folder)


def test_input_digest_sees_content_order_and_field(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name)
    digest = input_digest(paths, text_field="text")
    assert digest == input_digest(paths, text_field="text")
    assert digest != input_digest(paths[::-1], text_field="text")
    assert digest != input_digest(paths, text_field="body")
    paths[0].write_text("c")
    assert digest != input_digest(paths, text_field="text")


@pytest.mark.parametrize("lengths", [[7, 3, 12, 2, 30], [50], [2] * 40])
def test_an_epoch_is_every_token_once(lengths: list[int]) -> None:
    source = _stream(lengths)
    packed = PackedSequences(source, seq_len=8, seed=3)
    seen = np.concatenate([packed.window(number).tokens[:-1] for number in range(packed.per_epoch)])
    assert len(seen) == (source.num_tokens - 1) // 8 * 8
    values, counts = np.unique(seen[seen != 9999], return_counts=True)
    assert set(counts) == {1}
    assert set(values) <= set(source.tokens.tolist())


def test_windows_are_found_by_number_alone() -> None:
    source = _stream([7, 3, 12, 2, 30, 18])
    walked = PackedSequences(source, seq_len=5, seed=3)
    windows = [walked.window(number) for number in range(5 * walked.per_epoch)]
    jumped = PackedSequences(source, seq_len=5, seed=3)
    for number in (33, 2, 17, 60, 0):
        assert np.array_equal(jumped.window(number).tokens, windows[number].tokens)
    assert any(not np.array_equal(windows[number].tokens, windows[number + walked.per_epoch].tokens) for number in range(walked.per_epoch))
    other = PackedSequences(source, seq_len=5, seed=4)
    assert any(not np.array_equal(other.window(number).tokens, windows[number].tokens) for number in range(walked.per_epoch))


def test_targets_stay_within_documents() -> None:
    packed = PackedSequences(_stream([4, 6, 3, 9]), seq_len=7, seed=0, shuffle=False)
    batch = make_batch([packed.window(0), packed.window(1)])
    assert batch.tokens[0].tolist() == [0, 1, 2, 9999, 100, 101, 102]
    assert batch.targets[0].tolist() == [1, 2, 9999, IGNORED, 101, 102, 103]
    assert batch.segments is not None
    assert batch.segments[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.tokens[1].tolist() == [103, 104, 9999, 200, 201, 9999, 300]
    single = make_batch([PackedSequences(_stream([50]), seq_len=7, seed=0).window(1)])
    assert single.segments is None


def test_a_short_text_is_repeated_into_a_window() -> None:
    packed = PackedSequences(_stream([3, 2]), seq_len=16, seed=0)
    window = packed.window(packed.per_epoch)
    assert len(window.tokens) == 17
    assert window.segments.max() >= 5
    with pytest.raises(DataError):
        PackedSequences(_stream([1]), seq_len=4, seed=0)
