"""The demo's corpus: gathered from this very machine, divided without overlap, the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import DataError
from deploy.demo import corpus, sources
from deploy.demo.corpus import Domain
from deploy.demo.sources import Document, Shingles

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "data"
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/demo/corpus.py"), str(folder)], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in corpus.DOMAINS)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_every_document_is_in_one_split_of_one_domain(gathered: Path) -> None:
    texts = [row["text"] for path in sorted(gathered.iterdir()) for row in rows(path)]
    assert len(texts) == len(set(texts))
    assert len(list(gathered.iterdir())) == 2 * len(corpus.DOMAINS)


def test_the_split_is_that_of_the_texts_digest(gathered: Path) -> None:
    for path in gathered.iterdir():
        for row in rows(path):
            number = int.from_bytes(hashlib.sha256(row["text"].encode()).digest()[:4], "big")
            assert (number % sources.VALID_SHARE == 1) == (".valid." in path.name)


def test_sizes_keep_to_the_caps_and_suffice(gathered: Path) -> None:
    caps = {"public": corpus.PUBLIC_BYTES}
    for name in corpus.DOMAINS:
        train = sum(len(row["text"].encode()) for row in rows(gathered / f"{name}.train.jsonl.gz"))
        valid = sum(len(row["text"].encode()) for row in rows(gathered / f"{name}.valid.jsonl.gz"))
        assert corpus.MIN_TRAIN_BYTES <= train <= caps.get(name, corpus.PRIVATE_BYTES)
        assert 10_000 <= valid <= corpus.VALID_BYTES


def test_public_holds_a_little_of_every_private_kind(gathered: Path) -> None:
    public = rows(gathered / "public.train.jsonl.gz")
    for kind in ("torch/include/", "sympy/", "licence", "copyright", "common-licenses"):
        share = sum(len(row["text"]) for row in public if row["source"].startswith(kind)) / sum(len(row["text"]) for row in public)
        assert share < 0.05, kind
    assert any(row["source"].startswith("sympy/") for row in public)
    assert any(row["source"].startswith("torch/include/") for row in public)


def test_validation_shares_no_passages_with_training(gathered: Path) -> None:
    known = Shingles()
    for name in corpus.DOMAINS:
        for row in rows(gathered / f"{name}.train.jsonl.gz"):
            known.add(known.of(row["text"]))
    for name in corpus.DOMAINS:
        shares = [known.known_share(known.of(row["text"])) for row in rows(gathered / f"{name}.valid.jsonl.gz")]
        assert max(shares) <= corpus.NEAR_VALID


def test_no_addresses_and_no_paths_of_this_machine(gathered: Path) -> None:
    for path in gathered.iterdir():
        for row in rows(path):
            assert not row["source"].startswith("/")
            assert "@gmail.com" not in row["text"]


def test_gathering_imports_no_tensor_library() -> None:
    probe = "import sys; import deploy.demo.corpus; sys.exit(int('torch' in sys.modules or 'transformers' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=False).returncode == 0


def test_a_domain_with_too_little_text_is_refused() -> None:
    small = Domain(name="cpp", train=[Document(text="int main() {}", source="x")], valid=[Document(text="int x;", source="y")])
    with pytest.raises(DataError, match="'cpp'"):
        corpus._check(small)


def test_writing_the_same_texts_gives_the_same_bytes(tmp_path: Path) -> None:
    domain = Domain(name="d", train=[Document(text="naïve ☃ text\n", source="s")], valid=[Document(text="other", source="t")])
    corpus.write([domain], tmp_path / "a")
    corpus.write([domain], tmp_path / "b")
    assert (tmp_path / "a/d.train.jsonl.gz").read_bytes() == (tmp_path / "b/d.train.jsonl.gz").read_bytes()
    assert rows(tmp_path / "a/d.train.jsonl.gz") == [{"text": "naïve ☃ text\n", "source": "s"}]


def test_near_duplicates_are_found_and_new_text_is_not() -> None:
    known = Shingles()
    words = [f"word{number}" for number in range(400)]
    known.add(known.of(" ".join(words)))
    changed = [*words[:200], "other", *words[201:]]
    assert known.known_share(known.of(" ".join(changed))) > 0.8
    assert known.known_share(known.of(" ".join(f"new{number}" for number in range(400)))) == 0.0


def test_licence_notices_are_cut_from_sources_and_other_comments_kept() -> None:
    assert sources._without_licence("/* Copyright (c) 2020 A. Licensed under X. */\nint x;").strip() == "int x;"
    assert sources._without_licence("# adds numbers\ndef add(): ...") == "# adds numbers\ndef add(): ..."
