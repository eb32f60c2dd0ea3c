"""A receipt is believed only if it is about our document, under the pinned log key; kept receipts are checked again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from common.errors import ElmgroveError, LogError, NotLoggedError, StorageError
from common.formats.entries import LogEntry, encode_entry
from common.formats.manifest import FileEntry
from common.progress import silent
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.merkle import inclusion_proof, leaf_hash, nodes_of, root_hash
from common.translog.note import encode_vkey
from common.translog.proof import encode_receipt
from common.trust.keys import generate_log_key
from owner_client.daemon.download import Download
from owner_client.daemon.patience import Patience
from owner_client.daemon.receipts import CheckedReceipt, Claim, check_receipt, load_receipt, store_receipt

KEY = generate_log_key()
VKEY = encode_vkey("elmgrove/demo/log", KEY.public_key())
DOCUMENT = b"the signed bundle"
CLAIM = Claim("expert-accepted", "expert/letters@1", DOCUMENT)


def entry_for(claim: Claim) -> bytes:
    fields = {"schema": "elmgrove.entry/v1", "kind": claim.kind, "subject": claim.subject, "time": "2026-03-01T12:00:00Z"}
    return encode_entry(LogEntry.model_validate({**fields, "document": hashlib.sha256(claim.document).hexdigest()}))


def proof_of(entry: bytes) -> bytes:
    hashes = [leaf_hash(leaf) for leaf in (b"first", b"second", entry, b"fourth", b"fifth")]
    note = sign_checkpoint(Checkpoint("elmgrove/demo/log", len(hashes), root_hash(hashes)), KEY)
    return encode_receipt(2, inclusion_proof(2, len(hashes), nodes_of(hashes)), note)


def good() -> CheckedReceipt:
    entry = entry_for(CLAIM)
    return check_receipt(entry, proof_of(entry), CLAIM, VKEY)


def test_an_honest_receipt_is_kept_and_read_again(tmp_path: Path) -> None:
    receipt = good()
    assert (receipt.index, receipt.checkpoint.size) == (2, 5)
    store_receipt(tmp_path / "receipt", receipt)
    store_receipt(tmp_path / "receipt", receipt)
    assert load_receipt(tmp_path / "receipt", CLAIM.kind, CLAIM.subject, VKEY) == receipt


@pytest.mark.parametrize(
    "claim",
    [
        Claim("expert-withdrawn", CLAIM.subject, DOCUMENT),
        Claim(CLAIM.kind, "expert/letters@2", DOCUMENT),
        Claim(CLAIM.kind, CLAIM.subject, b"another bundle"),
    ],
)
def test_a_receipt_for_something_else_is_refused(claim: Claim) -> None:
    entry = entry_for(CLAIM)
    with pytest.raises(NotLoggedError):
        check_receipt(entry, proof_of(entry), claim, VKEY)


def test_an_entry_that_is_not_in_the_tree_is_refused() -> None:
    with pytest.raises(LogError):
        check_receipt(entry_for(CLAIM), proof_of(b"another leaf"), CLAIM, VKEY)


def test_another_logs_key_is_refused() -> None:
    entry = entry_for(CLAIM)
    with pytest.raises(ElmgroveError):
        check_receipt(entry, proof_of(entry), CLAIM, encode_vkey("elmgrove/demo/log", generate_log_key().public_key()))


@pytest.mark.parametrize("file", ["entry.json", "receipt.tlog-proof", "document.json"])
def test_a_kept_receipt_that_was_changed_is_refused(tmp_path: Path, file: str) -> None:
    store_receipt(tmp_path / "receipt", good())
    path = tmp_path / "receipt" / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ElmgroveError):
        load_receipt(tmp_path / "receipt", CLAIM.kind, CLAIM.subject, VKEY)


def test_a_download_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    size = 2**60
    entry = FileEntry.model_construct(name="model.safetensors", size=size, sha256="00" * 32, chunks=())
    with pytest.raises(StorageError, match="Free some"):
        Download(tmp_path, [entry], None, Patience(0), silent).run(1)  # type: ignore[arg-type]  # nothing is asked of the coordinator
    assert list(tmp_path.iterdir()) == []
