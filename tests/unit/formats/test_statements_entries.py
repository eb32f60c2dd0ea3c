"""Statements and log entries: one encoding, known kinds, no field too many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FormatError, LimitError
from common.formats.entries import LogEntry, encode_entry, parse_entry
from common.formats.limits import MAX_ENTRY_BYTES
from common.formats.statements import parse_statement
from common.formats.strictjson import canonical_bytes

COMMON = {"consortium": "grove", "created": "2026-01-31T08:00:00Z"}
RECORD = {"purpose": "signing", "uri": "elmgrove://grove/owners/anna", "der": "MIIB"}
SLOT = {"slot": 1, "name": "moss", "version": 2, "owner": "elmgrove://grove/owners/anna", "manifest": "1" * 64}
STATEMENTS: dict[str, dict[str, Any]] = {
    "founded": {"root": "MIIB", "log_key": "elmgrove/grove/log+01234567+AQ==", "certificates": [RECORD]},
    "owner-admitted": {"owner": "elmgrove://grove/owners/anna", "certificates": [RECORD, RECORD | {"purpose": "transport"}]},
    "owner-revoked": {"owner": "elmgrove://grove/owners/anna", "reason": "left"},
    "certificates-renewed": {"holder": "elmgrove://grove/owners/anna", "certificates": [RECORD], "request": "6" * 64},
    "new-keys": {"holder": "elmgrove://grove/operator", "keys": [{"purpose": "signing", "key": "MFkw"}]},
    "key-rotated": {"holder": "elmgrove://grove/owners/anna", "certificates": [RECORD], "request": "6" * 64, "authorisation": "MIIB"},
    "expert-withdrawn": {"owner": "elmgrove://grove/owners/anna", "expert": "moss", "manifest": "1" * 64, "reason": ""},
    "model-assembled": {"manifest": "2" * 64, "anchor": "3" * 64, "experts": [SLOT], "top_k": 2, "log_size": 9},
    "router-tuned": {
        "manifest": "2" * 64, "base": "3" * 64, "proxies": [{"expert": "moss", "sha256": "4" * 64}],
        "settings": {"steps": 9, "learning_rate": "5e-3"}, "log_size": 9,
    },
    "witness-registered": {"owner": "elmgrove://grove/owners/anna", "key": "elmgrove/grove/witness/anna+01234567+BA=="},
}  # fmt: skip


def document(kind: str, **change: Any) -> bytes:
    return json.dumps(COMMON | {"schema": f"elmgrove.{kind}/v1"} | STATEMENTS[kind] | change).encode()


@pytest.mark.parametrize("kind", STATEMENTS)
def test_statement_round_trip(kind: str) -> None:
    statement = parse_statement(document(kind))
    assert json.loads(canonical_bytes(statement)) == json.loads(document(kind))
    assert parse_statement(canonical_bytes(statement)) == statement


@pytest.mark.parametrize("kind", STATEMENTS)
def test_each_field_of_a_statement_is_needed_and_no_other_is_taken(kind: str) -> None:
    good = json.loads(document(kind))
    for field in good:
        with pytest.raises(FormatError, match="Statement: "):
            parse_statement(json.dumps({key: value for key, value in good.items() if key != field}).encode())
        with pytest.raises(FormatError, match="Statement: "):
            parse_statement(json.dumps(good | {field: None}).encode())
    with pytest.raises(FormatError, match="more"):
        parse_statement(json.dumps(good | {"more": 1}).encode())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (document("founded", certificates=[]), "certificates"),
        (document("founded", certificates=[RECORD] * 17), "certificates"),
        (document("founded", log_key="log key+01234567+AQ=="), "log_key"),
        (document("founded", root="MI IB"), "root"),
        (document("owner-admitted", certificates=[RECORD | {"purpose": "root"}]), "purpose"),
        (document("owner-revoked", owner="anna"), "owner"),
        (document("owner-revoked", schema="elmgrove.owner-forgiven/v1"), "tag"),
        (document("expert-withdrawn", manifest="1" * 63), "manifest"),
        (document("model-assembled", log_size=0), "log_size"),
        (document("model-assembled", top_k=True), "top_k"),
        (document("model-assembled", experts=[SLOT | {"slot": 0}]), "slot"),
        (document("router-tuned", settings={"learning_rate": 0.1}), "JSON"),
        (document("router-tuned", proxies=[{"expert": "moss"}]), "proxies.0.sha256"),
        (b"[]", "Statement"),
        (b"null", "Statement"),
        (document("founded").replace(b"{", b'{"root":"AAAA",', 1), "same key twice"),
    ],
)
def test_statement_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_statement(raw)


# --- log entries -------------------------------------------------------------------------------------------------------------------

ENTRY = LogEntry(
    schema="elmgrove.entry/v1", kind="expert-accepted", subject="expert/moss@2", document="a" * 64, time="2026-01-31T08:00:00Z"
)  # fmt: skip
RAW = (
    b'{"schema":"elmgrove.entry/v1","kind":"expert-accepted","subject":"expert/moss@2","document":"' + b"a" * 64
    + b'","time":"2026-01-31T08:00:00Z"}'
)  # fmt: skip


def test_entry_has_the_documented_bytes() -> None:
    assert encode_entry(ENTRY) == RAW
    assert parse_entry(RAW) == ENTRY


@pytest.mark.parametrize(
    "raw",
    [
        RAW + b"\n",
        b" " + RAW,
        RAW.replace(b":", b": ", 1),
        RAW.replace(b"moss", b"\\u006doss"),
        RAW.replace(b'"schema":"elmgrove.entry/v1",', b"")[:-1] + b',"schema":"elmgrove.entry/v1"}',
        RAW.replace(b"/v1", b"\\/v1"),
    ],
)
def test_another_spelling_of_the_same_entry_is_refused(raw: bytes) -> None:
    assert json.loads(raw) == json.loads(RAW)
    with pytest.raises(FormatError, match="canonical encoding"):
        parse_entry(raw)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"expert-accepted", b"expert-forged"),
        (b"expert/moss@2", b"expert/../x"),
        (b"expert/moss@2", b"expert/Moss@2"),
        (b"expert/moss@2", b"expert"),
        (b"entry/v1", b"entry/v2"),
        (b"a" * 64, b"A" * 64),
        (b"a" * 64, b"a" * 63),
        (b"08:00:00Z", b"08:00:00"),
        (b'"}', b'","index":1}'),
    ],
)
def test_wrong_entry_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(FormatError):
        parse_entry(RAW.replace(old, new))


def test_long_entry_is_refused_unread() -> None:
    with pytest.raises(LimitError):
        parse_entry(b"\xff" * (MAX_ENTRY_BYTES + 1))


@settings(max_examples=400)
@given(st.integers(0, len(RAW) - 1), st.integers(0, 255))
def test_an_entry_with_one_byte_changed_is_another_entry_or_none(place: int, byte: int) -> None:
    changed = RAW[:place] + bytes([byte]) + RAW[place + 1 :]
    try:
        assert encode_entry(parse_entry(changed)) == changed
    except FormatError:
        return
