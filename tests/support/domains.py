"""Small real corpora from what every Python installation holds, in the demo's form."""

from __future__ import annotations

import gzip
import json
import pydoc_data.topics
import sysconfig
from pathlib import Path

DOMAINS = ("code", "heads")


def write_domains(folder: Path, *, limit: int = 600_000) -> None:
    """``NAME.train.jsonl.gz`` and ``NAME.valid.jsonl.gz``: ``public`` prose, ``code`` in Python, ``heads`` in C, each up to ``limit``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "public", list(pydoc_data.topics.topics.values()))
    _write(folder, "code", _sources(Path(sysconfig.get_path("stdlib")) / "asyncio", "*.py", limit))
    _write(folder, "heads", _sources(Path(sysconfig.get_path("include")), "**/*.h", limit))


def _write(folder: Path, name: str, texts: list[str]) -> None:
    """Every seventh text is held out."""
    for part, chosen in (("train", [text for at, text in enumerate(texts) if at % 7]), ("valid", texts[::7])):
        with gzip.open(folder / f"{name}.{part}.jsonl.gz", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps({"text": text}) + "\n" for text in chosen)


def _sources(folder: Path, pattern: str, limit: int) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.glob(pattern)):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 400 and sum(map(len, found)) + len(text) < limit:
            found.append(text)
    return found
