"""Where the demo's text lies on a machine and how it is cleaned: files of the running Python and of the system, never imported."""

from __future__ import annotations

import ast
import hashlib
import pydoc_data.topics
import re
import sysconfig
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MIN_DOCUMENT", "NEAR_DUPLICATE", "Document", "Shingles", "cpp_sources", "legal_sources", "math_sources", "public_sources"]

MAX_DOCUMENT = 16_000  # characters of one row; longer texts are cut at blank lines
MAX_LEGAL = 3_000  # the same for licence texts, of which there are few
MIN_DOCUMENT = 300  # characters; shorter texts teach nothing
VALID_SHARE = 10  # one document in so many is validation
PUBLIC_SHARE = 20  # one private document in so many goes to the public set instead
SHINGLE = 13  # words
NEAR_DUPLICATE = 0.5  # share of a document's shingles seen before that makes it a duplicate


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One row: its text and where it comes from (a name within its package, never a path of this machine)."""

    text: str
    source: str

    @property
    def digest(self) -> bytes:
        """sha256 of the text: decides the order, the split and the public slice."""
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def is_valid(self) -> bool:
        """Whether the document belongs to the validation split."""
        return int.from_bytes(self.digest[:4], "big") % VALID_SHARE == 1

    @property
    def is_slice(self) -> bool:
        """Whether a document of a private kind belongs to the public set instead."""
        return int.from_bytes(self.digest[4:8], "big") % PUBLIC_SHARE == 0


# --- where the text is ------------------------------------------------------------------------------------------------

_SKIPPED_PARTS = {"tests", "test", "testing", "_vendor", "idlelib", "lib2to3", "__pycache__", "site-packages", "benchmarks", "locale"}
_DOCUMENTED = ("click", "cryptography", "huggingface_hub", "networkx", "numpy", "pip", "pydantic", "setuptools", "torch", "transformers")
_PARAGRAPH_END = re.compile(r"\n[ .]*\n")
_LICENCE_NAME = re.compile(r"(licen[cs]e|notice|copying|copyright|patents)", re.IGNORECASE)
# stands around every header of torch
_TORCH_GUARD = re.compile(r"^#if !defined\(TORCH_STABLE_ONLY\)[^\n]*\n|^#else\n#error [^\n]*\n#endif[^\n]*\n", re.MULTILINE)
_MAX_SOURCE = 400_000  # bytes of one file; larger ones are generated tables
_MIN_PROSE = 0.25  # share of a module between triple quotes that makes parsing it worth the time
_MAX_PARSED = 3_000_000  # bytes of Python parsed for each package


def _site_packages() -> list[Path]:
    """Folders in which this Python's packages lie, without repetition."""
    folders = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _package(name: str) -> list[Path]:
    """The folders of an installed package; none if it is not installed."""
    return [folder / name for folder in _site_packages() if (folder / name).is_dir()]


def _files(folder: Path, pattern: str, *, skip: set[str] = _SKIPPED_PARTS) -> list[Path]:
    """Regular files below ``folder`` in a fixed shuffle, without tests and vendored copies and without links."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob(pattern)}
    names = [name for name in found if not skip.intersection(name.split("/"))]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    return [found[name] for name in names if found[name].is_file() and not found[name].is_symlink()]


def _read(path: Path) -> str:
    """The file's text, or an empty string if it cannot be read as UTF-8: this machine's files are taken as they come."""
    try:
        return "" if path.stat().st_size > _MAX_SOURCE else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _python_topics() -> Iterator[Document]:
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield from _cut(text, f"pydoc/{name}")


def _descriptions() -> Iterator[Document]:
    """The long description in the METADATA of every installed distribution."""
    for site in _site_packages():
        for path in sorted(site.glob("*.dist-info/METADATA")):
            body = _read(path).partition("\n\n")[2]
            yield from _cut(_prose(body), f"description/{path.parent.name.removesuffix('.dist-info')}")


def _docstrings(folder: Path, label: str) -> Iterator[Document]:
    """Prose in the string constants of a package's modules (docstrings and the texts given to ``add_docstr``), without running them."""
    parsed = 0
    for path in _files(folder, "*.py"):
        source = _read(path)
        if parsed > _MAX_PARSED:
            break
        if sum(map(len, source.split('"""')[1::2])) < _MIN_PROSE * len(source):
            continue
        parsed += len(source)
        texts = [_prose(_dedent(text)) for text in _string_constants(source)]
        name = path.relative_to(folder).with_suffix("").as_posix()
        yield from _cut("\n\n".join(text for text in texts if len(text) >= 80), f"{label}/{name}")


def _string_constants(source: str) -> list[str]:
    """The long texts of one module; nothing if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text for text in _texts(tree.body) if len(text) >= 160 and "\n" in text]


def _texts(body: list[ast.stmt]) -> Iterator[str]:
    """String statements (docstrings) and string arguments of calls that are statements, in classes and functions too."""
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _texts(node.body)
        elif isinstance(node, ast.Expr):
            values = node.value.args if isinstance(node.value, ast.Call) else [node.value]
            yield from (value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def public_sources() -> Iterator[Document]:
    """English technical prose: documentation topics, package descriptions, docstrings."""
    yield from _python_topics()
    yield from _descriptions()
    yield from _docstrings(Path(sysconfig.get_path("stdlib")), "python")
    for name in _DOCUMENTED:
        for folder in _package(name):
            yield from _docstrings(folder, name)


def cpp_sources() -> Iterator[Document]:
    """Headers written by people; the thousands that torch's build generates from one template are left out."""
    for package in _package("torch"):
        include = package / "include"
        for path in (found for suffix in ("*.h", "*.hpp", "*.cuh") for found in _files(include, suffix, skip={"ops"})):
            text = _read(path)
            if "@generated" not in text[:2000]:
                yield from _cut(_without_licence(_TORCH_GUARD.sub("", text)), f"torch/include/{path.relative_to(include).as_posix()}")


def math_sources() -> Iterator[Document]:
    """Sympy's modules, code and docstrings together; its tables of numbers are left out."""
    for package in _package("sympy"):
        for path in _files(package, "*.py"):
            text = _read(path)
            if sum(map(text.count, "0123456789")) < 0.12 * len(text):  # more is a table, not mathematics
                yield from _cut(_without_licence(text), f"sympy/{path.relative_to(package).as_posix()}")


def legal_sources() -> Iterator[Document]:
    """Licence texts; they quote each other at length, so a paragraph is kept only where it, or one much like it, first appears."""
    known = Shingles()
    fresh: dict[str, list[str]] = {}
    for path, source in _licence_files():
        for paragraph in _PARAGRAPH_END.split(_clean(_read(path))):
            if _is_prose(paragraph) and not _repeats(paragraph, known):
                fresh.setdefault(source, []).append(_dedent(paragraph))
    for source, paragraphs in fresh.items():
        yield from _cut("\n\n".join(paragraphs), source, limit=MAX_LEGAL)


def _repeats(paragraph: str, known: Shingles) -> bool:
    """Whether most of the paragraph was seen; it is seen from now on."""
    shingles = known.of(paragraph)
    repeated = not shingles or known.known_share(shingles) > NEAR_DUPLICATE
    known.add(shingles)
    return repeated


def _licence_files() -> Iterator[tuple[Path, str]]:
    common = Path("/usr/share/common-licenses")
    for path in sorted(common.glob("*")) if common.is_dir() else []:
        if not path.is_symlink():
            yield path, f"common-licenses/{path.name}"
    for site in _site_packages():
        for path in sorted(found for folder in site.glob("*.dist-info") for found in folder.rglob("*") if _LICENCE_NAME.search(found.name)):
            if path.is_file() and not path.is_symlink():
                yield path, f"licence/{path.relative_to(site).parts[0].removesuffix('.dist-info')}"
    documents = Path("/usr/share/doc")
    for path in sorted(documents.glob("*/copyright")) if documents.is_dir() else []:
        if not path.is_symlink():
            yield path, f"copyright/{path.parent.name[:1]}"  # many small remainders: those of one letter make one document


# --- cleaning ---------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"\b(?:https?|ftp|git)://\S+")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u00ad\u200b-\u200f\ufeff]")
_C_COMMENT = re.compile(r"\A\s*(?:/\*.*?\*/|(?://[^\n]*\n\s*)+)", re.DOTALL)
_HASH_COMMENT = re.compile(r"\A(?:#[^\n]*\n\s*)+")
_MARKUP = re.compile(r"<[^>\n]{1,200}>|!?\[!\[[^\n]*|^\s*\.\. [^\n]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(r"\w+")


def _clean(text: str) -> str:
    """NFC, LF line ends, no control or invisible characters, no addresses of persons, no trailing blanks or runs of blank lines."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " "))
    text = _UNSEEN.sub("", text).expandtabs(4)
    text = _EMAIL.sub("[email]", text) if "@" in text else text
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def _cut(text: str, source: str, *, limit: int = MAX_DOCUMENT) -> Iterator[Document]:
    """The cleaned text as documents of about ``limit`` characters at most, cut at blank lines; what is too short is dropped."""
    part: list[str] = []
    size = number = 0
    for paragraph in [*_clean(text).split("\n\n"), None]:
        if part and (paragraph is None or size + len(paragraph) > limit):
            joined = "\n\n".join(part).strip("\n")
            if MIN_DOCUMENT <= len(joined) <= 2 * MAX_DOCUMENT:
                yield Document(text=joined, source=source if not number else f"{source}#{number}")
                number += 1
            part, size = [], 0
        if paragraph is not None:
            part.append(paragraph)
            size += len(paragraph) + 2


def _dedent(text: str) -> str:
    """Without the indentation that all lines after the first share."""
    lines = text.expandtabs(4).split("\n")
    margins = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(margins, default=0)
    return "\n".join([lines[0].strip(), *[line[margin:].rstrip() for line in lines[1:]]])


def _prose(text: str) -> str:
    """The paragraphs that are sentences: code, tables, badges, signatures and interactive sessions are left out."""
    paragraphs = _MARKUP.sub("", _URL.sub("", text)).split("\n\n")
    return "\n\n".join(part for part in paragraphs if _is_prose(part))


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < 8 or ">>>" in paragraph or "```" in paragraph or "Files:" in paragraph:
        return False
    if len(words) > 40 and len(set(words)) < 0.3 * len(words):
        return False
    plain = sum(word.strip(".,;:!?()\"'`*").isalpha() for word in words)
    return plain >= 0.7 * len(words) and paragraph.count("  ") < len(words) // 3 + 2 * paragraph.count("\n")


def _without_licence(source: str) -> str:
    """A source file without the licence notice at its head: notices belong to another domain."""
    for pattern in (_C_COMMENT, _HASH_COMMENT):
        match = pattern.match(source)
        if match and _LICENCE_NAME.search(match.group()):
            return source[match.end() :]
    return source


# --- repetition -------------------------------------------------------------------------------------------------------


class Shingles:
    """Runs of ``SHINGLE`` words seen so far, as 64-bit hashes; one in four is kept, which is enough to find shared passages."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._words: dict[str, int] = {}

    def of(self, text: str) -> list[int]:
        """The document's own shingles."""
        words = _WORD.findall(text.lower())
        codes = np.fromiter((self._code(word) for word in words), dtype=np.uint64, count=len(words))
        count = len(codes) - SHINGLE + 1
        if count <= 0:
            return []
        total = np.zeros(count, dtype=np.uint64)
        for offset in range(SHINGLE):
            total = total * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
        return [int(value) for value in np.unique(total[(total >> np.uint64(40)) % np.uint64(4) == 0])]

    def _code(self, word: str) -> int:
        code = self._words.get(word)
        if code is None:
            code = self._words[word] = zlib.crc32(word.encode()) * 2654435761 % 2**61
        return code

    def known_share(self, shingles: list[int]) -> float:
        """Share of ``shingles`` that was seen in an added document."""
        return sum(value in self._seen for value in shingles) / len(shingles) if shingles else 0.0

    def add(self, shingles: list[int]) -> None:
        """Remember a chosen document."""
        self._seen.update(shingles)
