"""Names, identities, digests, times: what is one, and every near miss."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from common.errors import FormatError
from common.formats.fields import (
    Digest,
    FileName,
    IdentityUri,
    Name,
    TensorName,
    Text,
    Timestamp,
    check_name,
    format_time,
    operator_uri,
    owner_name,
    owner_uri,
    parse_time,
    subject_expert,
    utc_now,
)

TAKEN: list[tuple[Any, list[str]]] = [
    (Name, ["a", "0", "a-b", "a--b", "x" * 40, "7b"]),
    (Digest, ["0" * 64, "abcdef0123456789" * 4]),
    (IdentityUri, ["elmgrove://grove/operator", "elmgrove://grove/server", "elmgrove://a-1/owners/st-mary"]),
    (FileName, ["a", "part-0000.safetensors", "A_b-c.D", "x" * 127, "a..b"]),
    (TensorName, ["w", "model.layers.0.mlp.gate.weight", "_x"]),
    (Timestamp, ["2026-01-31T08:00:00Z", "2000-01-01T00:00:00Z", "2024-02-29T23:59:59Z"]),
    (Text, ["", "tab\tand\nline", "ä 漢 🌳", "x" * 4096]),
]
REFUSED: list[tuple[Any, list[Any]]] = [
    (Name, ["", "A", "a_b", "-a", "a-", "x" * 41, "a b", "a\n", "ä", "a.b", "a/b", "ａ", 1]),
    (Digest, ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", " " + "0" * 63]),
    (
        IdentityUri,
        ["elmgrove://grove/owners/", "elmgrove://grove/owner/a", "elmgrove://Grove/operator", "ELMGROVE://grove/operator",
         "elmgrove://grove/operator/", "elmgrove://grove/owners/a/b", "elmgrove://grove/operator\n", "https://grove/operator", "",
         "elmgrove://grove@heath/operator", "elmgrove:///operator"],
    ),
    (FileName, ["", ".", "..", ".git", "a/b", "/a", "../a", "a\\b", "a b", "a\n", "a\x00", "ä", "-a", "_a", "x" * 128]),
    (TensorName, ["", "../x", "a/b", "é", "e\u0301", "a b", "x" * 256, ".a", "a\n"]),
    (
        Timestamp,
        ["", "2026-01-31", "2026-01-31T08:00:00", "2026-01-31T08:00:00+00:00", "2026-01-31t08:00:00z", "2026-1-31T08:00:00Z",
         "2026-02-30T08:00:00Z", "2026-01-31T24:00:00Z", "2026-01-31T08:00:60Z", "2026-01-31T08:00:00.0Z", "1999-12-31T23:59:59Z",
         "2026-01-31T08:00:00Z\n", " 2026-01-31T08:00:00Z", "２026-01-31T08:00:00Z", 1],
    ),
    (Text, ["\x00", "\x1b[31m", "a\rb", "\x7f", "x" * 4097]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), [pytest.param(kind, value) for kind, values in TAKEN for value in values])
def test_field_taken(kind: Any, value: str) -> None:
    assert TypeAdapter(kind).validate_python(value, strict=True) == value


@pytest.mark.parametrize(("kind", "value"), [pytest.param(kind, value) for kind, values in REFUSED for value in values])
def test_field_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value, strict=True)


@given(st.text(max_size=45))
def test_name_function_and_name_field_agree(text: str) -> None:
    try:
        TypeAdapter(Name).validate_python(text, strict=True)
    except ValidationError:
        with pytest.raises(FormatError, match="the grove"):
            check_name(text, "the grove")
    else:
        assert check_name(text, "the grove") == text


@given(st.datetimes(min_value=datetime(2000, 1, 2), max_value=datetime(9999, 12, 30)), st.integers(-12, 14))  # noqa: DTZ001
def test_time_round_trip_from_any_zone(naive: datetime, hours: int) -> None:
    moment = naive.replace(microsecond=0, tzinfo=timezone(timedelta(hours=hours)))
    assert parse_time(format_time(moment)) == moment
    assert parse_time(format_time(moment)).tzinfo is UTC


@given(st.text(max_size=30) | st.from_regex(re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n?", re.ASCII), fullmatch=True))
def test_time_that_reads_is_spelled_as_we_spell_it(text: str) -> None:
    try:
        moment = parse_time(text)
    except FormatError:
        return
    assert format_time(moment) == text


def test_present_can_be_said_in_a_document() -> None:
    now = utc_now()
    assert parse_time(format_time(now)) == now


def test_identities() -> None:
    assert owner_uri("grove", "anna") == "elmgrove://grove/owners/anna"
    assert operator_uri("grove") == "elmgrove://grove/operator"
    assert subject_expert("moss", 3) == "expert/moss@3"
    assert owner_name(owner_uri("grove", "anna"), "grove") == "anna"
    for make in (lambda: owner_uri("Grove", "anna"), lambda: owner_uri("grove", "a/b"), lambda: operator_uri("")):
        with pytest.raises(FormatError, match="lower-case"):
            make()


@pytest.mark.parametrize(
    "uri",
    ["elmgrove://heath/owners/anna", "elmgrove://grove/operator", "elmgrove://grove/owners/anna\n", "elmgrove://grove/owners/", "",
     "xelmgrove://grove/owners/anna"],
)  # fmt: skip
def test_no_owner_of_this_consortium(uri: str) -> None:
    with pytest.raises(FormatError, match="not an owner"):
        owner_name(uri, "grove")
