"""Roots, proofs, tiles, notes and cosignatures that other implementations published (``vectors/README.md`` names where)."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError, SignatureError
from common.formats.strictjson import b64decode_canonical
from common.translog.checkpoint import parse_checkpoint, verify_checkpoint
from common.translog.cosignature import verify_cosignature
from common.translog.merkle import consistency_proof, leaf_hash, nodes_of, root_hash, verify_consistency, verify_inclusion
from common.translog.note import parse_note, parse_vkey
from common.translog.reader import FolderReader, read_log
from common.translog.tiles import encode_entries, parse_entries
from coordinator.log.tree import TreeEdge
from coordinator.log.writer import LogWriter

VECTORS = Path(__file__).parent / "vectors"


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["case"]) for case in json.loads((VECTORS / f"{name}.json").read_text())]


def raw(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


@pytest.mark.parametrize("case", cases("inclusion"))
def test_inclusion_claims_of_transparency_dev(case: dict[str, Any]) -> None:
    leaf, root = raw([case["leaf"], case["root"]])
    if case["holds"]:
        verify_inclusion(leaf, case["index"], case["size"], raw(case["proof"]), root)
    else:
        with pytest.raises(LogError):
            verify_inclusion(leaf, case["index"], case["size"], raw(case["proof"]), root)


@pytest.mark.parametrize("case", cases("consistency"))
def test_consistency_claims_of_transparency_dev(case: dict[str, Any]) -> None:
    old, new = raw([case["old_root"], case["new_root"]])
    if case["holds"]:
        verify_consistency(case["old"], case["new"], raw(case["proof"]), old, new)
    else:
        with pytest.raises(LogError):
            verify_consistency(case["old"], case["new"], raw(case["proof"]), old, new)


# --- tessera: a whole log, whose key its build script shows -------------------------------------------------------------------------

TESSERA = json.loads((VECTORS / "tessera-log.json").read_text())
TESSERA_VKEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
TESSERA_KEY = Ed25519PrivateKey.from_private_bytes(b64decode_canonical("AeymY/SZAX0jZcJ8enZ5FY1Dz+wTML2yWSkK+9DSF3eg")[1:])
TESSERA_ENTRIES = b"one two three four five six seven eit nain ten ileven twelf threeten fourten fivten".split(b" ")


def test_checkpoints_and_files_of_tessera() -> None:
    assert parse_entries(bytes.fromhex(TESSERA["entries"])) == TESSERA_ENTRIES
    assert encode_entries(TESSERA_ENTRIES).hex() == TESSERA["entries"]
    hashes = [leaf_hash(entry) for entry in TESSERA_ENTRIES]
    assert b"".join(hashes).hex() == TESSERA["tile"]
    checkpoints = [verify_checkpoint(note.encode(), TESSERA_VKEY) for note in TESSERA["checkpoints"]]
    assert [checkpoint.size for checkpoint in checkpoints] == list(range(16))
    assert [checkpoint.root for checkpoint in checkpoints] == [root_hash(hashes[:size]) for size in range(16)]
    for old in range(1, 16):
        for new in range(old, 16):
            proof = consistency_proof(old, new, nodes_of(hashes))
            verify_consistency(old, new, proof, checkpoints[old].root, checkpoints[new].root)


def test_our_writer_gives_the_very_bytes_of_tessera(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    writer = LogWriter(tmp_path, TESSERA_VKEY, TESSERA_KEY, "example.com/log/testdata")
    for size, entry in enumerate(TESSERA_ENTRIES, start=1):
        with writer.exclusive():
            writer.append([entry], [])
        assert (tmp_path / "checkpoint").read_bytes() == TESSERA["checkpoints"][size].encode()
    assert (tmp_path / "tile/0/000.p/15").read_bytes().hex() == TESSERA["tile"]
    assert (tmp_path / "tile/entries/000.p/15").read_bytes().hex() == TESSERA["entries"]
    assert list(read_log(FolderReader(tmp_path), TESSERA_VKEY).entries) == TESSERA_ENTRIES


# --- sunlight: a tree of 300 leaves, and three cosignatures of it and of others -----------------------------------------------------

RECORDS = [leaf_hash(b"record %d" % number) for number in range(300)]
SUNLIGHT_ROOT = "gw31yQrqZZCcEOPrzX+bpy3nJ6QgngTKn8G1m0i62uU="
COSIGNED = json.loads((VECTORS / "sunlight-cosigned.json").read_text())


def test_cosignatures_of_sunlight() -> None:
    assert len(COSIGNED) == 3
    for note, vkey in ((each["note"], each["key"]) for each in COSIGNED):
        found = verify_cosignature(note.encode(), vkey)
        assert (found.name, found.time) == (parse_vkey(vkey).name, datetime(2025, 12, 31, tzinfo=UTC))
        with pytest.raises(SignatureError, match="does not hold"):
            verify_cosignature(note.replace("\n300\n", "\n301\n").encode(), vkey)


def test_tiles_and_root_of_sunlights_mirror() -> None:
    edge, filled = TreeEdge(), []
    for leaf in RECORDS:
        filled += edge.add(leaf)
    tiles = {tile: hashlib.sha256(content).hexdigest() for tile, content in [*filled, *edge.partial()]}
    assert tiles == {
        (0, 0, 256): "66a1d43136a854a5776d5bce14bf101c925fc7d4b32f1be23b658f636ebfcddb",
        (0, 1, 44): "699f078d937f13343d71ad39321757de3ecf391e8d7a1b2015ad38bd36f5d60a",
        (1, 0, 1): "dcef9e571841bfe2defd16306f8a7d69f5054092fb8b7f983970c646f7f5fd85",
    }
    assert edge.root() == root_hash(RECORDS) == b64decode_canonical(SUNLIGHT_ROOT)


# --- C2SP: the example of tlog-cosignature, whose keys are not published -------------------------------------------------------------


def test_the_example_of_the_specification_is_read() -> None:
    signature = "EZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
        f"\u2014 witness.example.com/w1 jWbPPwAAAABkGFDL{signature}\n"
    )
    text, (log, witness) = parse_note(note.encode())
    checkpoint = parse_checkpoint(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert (log.name, f"{log.key_id:08x}", len(log.signature)) == ("example.com/behind-the-sofa", "033de0ae", 64)
    assert (witness.name, f"{witness.key_id:08x}", len(witness.signature)) == ("witness.example.com/w1", "8d66cf3f", 72)
    assert int.from_bytes(witness.signature[:8], "big") == 1_679_315_147
