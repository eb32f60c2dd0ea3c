"""docs/formats.md is normative: its worked example and limits are those of the code."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common.formats.entries import encode_entry, parse_entry
from common.formats.invitation import Invitation, encode_invitation
from common.formats.safetensors import encode_header
from common.translog.merkle import leaf_hash
from common.trust.envelope import pre_authentication_encoding
from common.trust.oms import OMS_PAYLOAD_TYPE, statement_payload

PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLE = PAGE[PAGE.index("## 11. A worked example") :]


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def row(what: str) -> str:
    """The digest in the table's row that begins with ``what``."""
    found = re.search(rf"^\| {re.escape(what)}.*\| `([0-9a-f]{{64}})` \|$", EXAMPLE, re.MULTILINE)
    assert found, what
    return found.group(1)


def blocks() -> list[str]:
    return [block.strip("\n") for block in EXAMPLE.split("```")[1::2]]


def test_weights_of_the_worked_example() -> None:
    head, _ = encode_header([("a", "F32", (2,)), ("b", "BF16", (1, 2))])
    body = struct.pack("<2f", 1.0, -2.0) + bytes.fromhex("803f00c0")
    assert head == struct.pack("<Q", 144) + blocks()[0].encode() + b"  "
    assert (row("tensor `a`"), row("tensor `b`"), row("the file")) == (sha(body[:8]), sha(body[8:]), sha(head + body))
    assert len(head + body) == 164


def test_signature_of_the_worked_example() -> None:
    resources = {"manifest.json": sha(b"{}\n"), "weights.safetensors": row("the file")}
    assert row("a `manifest.json`") == resources["manifest.json"]
    payload = statement_payload(resources, "example")
    assert f'"sha256":"{row("`ROOT`")}"' in payload.decode()
    encoded = pre_authentication_encoding(OMS_PAYLOAD_TYPE, payload)
    for said in (f"has {len(payload)} bytes", sha(payload), sha(encoded), encoded[:40].decode()):
        assert said in EXAMPLE
    key = ec.derive_private_key(int.from_bytes(hashlib.sha256(b"elmgrove example").digest(), "big"), ec.SECP256R1())
    key.public_key().verify(base64.b64decode(blocks()[1]), encoded, ec.ECDSA(hashes.SHA256()))
    again = key.sign(encoded, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    assert base64.b64encode(again).decode() == blocks()[1]


def test_entry_and_invitation_of_the_worked_example() -> None:
    entry = blocks()[2].encode()
    assert encode_entry(parse_entry(entry)) == entry
    assert f"has {len(entry)} bytes" in EXAMPLE
    assert leaf_hash(entry).hex() in EXAMPLE
    invitation = Invitation(
        consortium="grove", owner="anna", host="log.example", enrol_port=7001, port=7000, root_sha256="ab" * 32, token="A" * 43,
        expires="2026-01-31T08:00:00Z",
    )  # fmt: skip
    assert f"`{encode_invitation(invitation)[-9:]}`" in EXAMPLE


def test_every_case_beside_the_stock_tools_has_its_module_named() -> None:
    for name in re.findall(r"`(tests/[a-z_/]+\.py)`", PAGE):
        assert (Path(__file__).parents[3] / name).is_file(), name
