"""Bytes that claim or ask for more than they are: every parser ends with its documented error, soon and in bounded memory."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import CertificateError, ElmgroveError, FormatError, InvitationFormatError, LimitError, LogError
from common.formats.entries import parse_entry
from common.formats.hfconfig import loads_config
from common.formats.invitation import decode_invitation
from common.formats.limits import MAX_BUNDLE_BYTES, MAX_DOCUMENT_BYTES, MAX_JSON_NODES, MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSORS
from common.formats.manifest import ExpertManifest
from common.formats.proxies import parse_proxies
from common.formats.safetensors import parse_header, parse_length
from common.formats.statements import parse_statement
from common.formats.strictjson import loads_strict, parse_document
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.note import parse_note
from common.translog.proof import parse_receipt
from common.translog.reader import FolderReader, read_log
from common.translog.tiles import parse_entries
from common.trust.certificates import TrustRoot, public_key_from_csr, verify_leaf
from common.trust.oms import verify_bundle
from common.weights.index import read_header
from tests.fuzz.samples import samples

_SECONDS = 8.0  # of processor time; the longest takes under two on a slow core
_MEMORY = 300 * 1024 * 1024  # bytes; a million values as Python's objects, and the bomb itself
FULL = MAX_DOCUMENT_BYTES


def _manifest_of_chunks() -> bytes:
    """One file that claims 2^53 - 1 bytes and lists as many chunks as fit."""
    manifest: dict[str, Any] = json.loads(samples().manifests["expert"][0])
    manifest["files"][0] |= {"size": 2**53 - 1, "chunks": ["0" * 64] * 60_000}
    return json.dumps(manifest).encode()


def _in_envelope(payload: str) -> bytes:
    bundle: dict[str, Any] = json.loads(samples().bundles[0])
    bundle["dsseEnvelope"]["payload"] = payload
    return json.dumps(bundle).encode()


def _der(depth: int) -> bytes:
    inner = b"\x05\x00"
    for _ in range(depth):
        size = struct.pack(">H", len(inner))
        inner = b"\x30\x82" + size + inner
    return inner


def _tensors(count: int) -> bytes:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps(dict.fromkeys(map(str, range(count)), empty)).encode()


def _leaf(raw: bytes) -> object:
    return verify_leaf(raw, samples().world.root, "signing", samples().world.now)


def _bundle(raw: bytes) -> object:
    return verify_bundle(raw, samples().world.root, at=samples().world.now)


def _expert(raw: bytes) -> object:
    return parse_document(ExpertManifest, raw)


Parse = Callable[[bytes], object]
BOMBS: dict[str, tuple[Parse, Callable[[], bytes], type[ElmgroveError]]] = {
    "JSON: opening brackets": (loads_strict, lambda: b"[" * FULL, LimitError),
    "JSON: nested objects": (loads_strict, lambda: b'{"a":' * (FULL // 5), LimitError),
    "JSON: two million numbers": (loads_strict, lambda: b"[" + b"0," * (FULL // 2 - 2) + b"0]", LimitError),
    "JSON: a million empty lists": (loads_strict, lambda: b"[" + b"[]," * (FULL // 3 - 2) + b"[]]", LimitError),
    "JSON: almost a million numbers": (loads_strict, lambda: b"[" + b"0," * (MAX_JSON_NODES - 9) + b"1.5]", FormatError),
    "JSON: one key a million times": (loads_strict, lambda: b"{" + b'"a":0,' * (FULL // 6 - 2) + b'"a":0}', FormatError),
    "JSON: quotes without end": (loads_strict, lambda: b'"' + b'\\"' * (FULL // 2 - 1), FormatError),
    "JSON: four million digits": (loads_strict, lambda: b"1" * FULL, FormatError),
    "JSON: an exponent": (loads_strict, lambda: b"1e999999999", FormatError),
    "JSON: a text without end": (loads_strict, lambda: b'"' + b"\\\\" * (FULL // 2 - 1), FormatError),
    "JSON: escapes without end": (loads_strict, lambda: b'"' + b"\\u0041" * (FULL // 6 - 1), FormatError),
    "JSON: one byte too many": (loads_strict, lambda: b" " * (FULL + 1), LimitError),
    "statement: two million numbers": (parse_statement, lambda: b"[" + b"0," * (FULL // 2 - 2) + b"0]", LimitError),
    "manifest: chunks of 2^53 bytes": (_expert, _manifest_of_chunks, FormatError),
    "entry: too long": (parse_entry, lambda: b" " * 100_000, LimitError),
    "bundle: payload of 4 MiB of base64": (_bundle, lambda: _in_envelope("A" * (MAX_BUNDLE_BYTES - 4000)), ElmgroveError),
    "bundle: brackets": (_bundle, lambda: b"[" * MAX_BUNDLE_BYTES, LimitError),
    "proxies: lines without end": (parse_proxies, lambda: b"\n" * FULL, FormatError),
    "proxies: one line": (parse_proxies, lambda: b"{" * (FULL - 1) + b"\n", LimitError),
    "invitation: one MiB": (lambda raw: decode_invitation(raw.decode()), lambda: b"elmgrove1-" + b"A" * (1 << 20), InvitationFormatError),
    "config: brackets": (loads_config, lambda: b'{"a":' + b"[" * 1_000_000, FormatError),
    "config: digits": (loads_config, lambda: b'{"a":' + b"1" * 1_000_000 + b"}", FormatError),
    "header: 2^63 bytes claimed": (lambda raw: parse_length(raw, len(raw)), lambda: struct.pack("<Q", 1 << 63) + b"{}", FormatError),
    "header: 8 MiB of spaces": (
        lambda raw: parse_header(raw, len(raw) + 8), lambda: b"{" + b" " * (MAX_SAFETENSORS_HEADER_BYTES - 1), FormatError),
    "header: 8 MiB of lists": (
        lambda raw: parse_header(raw, len(raw) + 8),
        lambda: b'{"a":[' + b"[]," * (MAX_SAFETENSORS_HEADER_BYTES // 3 - 9) + b"[]]}", LimitError),
    "header: a tensor too many": (lambda raw: parse_header(raw, len(raw) + 8), lambda: _tensors(MAX_TENSORS + 1), LimitError),
    "certificate: nested deep": (_leaf, lambda: _der(4000), CertificateError),
    "certificate: 4 GiB claimed": (_leaf, lambda: b"\x30\x84\xff\xff\xff\xff" + bytes(100), CertificateError),
    "root file: a thousand certificates": (
        TrustRoot.from_pem, lambda: samples().root_files[0] * 1000, CertificateError),
    "request: nested deep": (public_key_from_csr, lambda: _der(4000), FormatError),
    "note: line feeds": (parse_note, lambda: b"\n" * 65_536, FormatError),
    "note: a hundred and one signatures": (parse_note, lambda: b"a\n\n" + "\u2014 a AAAAAAA=\n".encode() * 101, LimitError),
    "receipt: hashes without end": (parse_receipt, lambda: b"c2sp.org/tlog-proof@v1\nindex 0\n" + b"AA==\n" * 12_000, FormatError),
    "entry bundle: 257 entries": (parse_entries, lambda: b"\x00\x01a" * 257, FormatError),
    "entry bundle: empty entries": (parse_entries, lambda: b"\x00\x00" * 100_000, FormatError),
}  # fmt: skip


def _peak() -> int:
    """The largest size this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def before() -> int:
    """The peak before the first bomb; since it never falls, comparing with it bounds every one."""
    samples()
    return _peak()


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(name: str, before: int) -> None:
    parse, make, kind = BOMBS[name]
    raw = make()
    began = time.process_time()
    with pytest.raises(ElmgroveError) as caught:
        parse(raw)
    assert time.process_time() - began < _SECONDS
    assert isinstance(caught.value, kind), caught.value
    assert _peak() - before < _MEMORY


def test_a_checkpoint_of_2_to_the_63_entries_is_refused_at_its_first_missing_file(tmp_path: Path) -> None:
    """A log's own key signs a size; nothing is made ready for it."""
    world = samples().world
    (tmp_path / "checkpoint").write_bytes(sign_checkpoint(Checkpoint(world.origin, 2**63 - 1, bytes(32)), world.log_key))
    began = time.process_time()
    with pytest.raises(LogError, match="lacks its file tile/entries"):
        read_log(FolderReader(tmp_path), world.vkey)
    assert time.process_time() - began < _SECONDS


def test_a_sparse_file_of_a_terabyte_is_not_read_for_its_header(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as out:
        out.write(struct.pack("<Q", 1 << 39))
        out.seek(1 << 40)
        out.write(b"\0")
    peak = _peak()
    with pytest.raises(LimitError, match="exceeds the limit"):
        read_header(path)
    assert _peak() - peak < 64 * 1024 * 1024
