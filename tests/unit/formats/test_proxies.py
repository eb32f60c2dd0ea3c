"""Lists of proxies: one encoding, capped, every document once."""

from __future__ import annotations

import pytest

from common.errors import FormatError, LimitError
from common.formats.limits import MAX_DOCUMENT_BYTES, MAX_PROXIES
from common.formats.proxies import encode_proxies, parse_proxies, text_digest

DIGESTS = [text_digest(f"document {number}") for number in range(5)]
RAW = encode_proxies("law", "a" * 64, DIGESTS)


def test_a_list_is_read_as_it_was_written() -> None:
    head, digests = parse_proxies(RAW)
    assert (head.expert, head.anchor, head.count, list(digests)) == ("law", "a" * 64, 5, DIGESTS)
    assert RAW.splitlines()[1] == b'{"sha256":"' + DIGESTS[0].encode() + b'"}'


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "whole line"),
        (RAW[:-1], "whole line"),
        (b"".join(RAW.splitlines(keepends=True)[:-1]), "5 distinct"),
        (RAW + RAW.splitlines(keepends=True)[1], "5 distinct"),
        (RAW.replace(DIGESTS[1].encode(), DIGESTS[0].encode()), "5 distinct"),
        (RAW.replace(DIGESTS[1].encode(), b"x"), "sha256"),
        (RAW.replace(b"proxies/v1", b"proxies/v2"), "schema"),
        (RAW.replace(b'"law"', b'"Law"'), "expert"),
        (RAW.replace(b'{"sha256"', b'{"text":"x","sha256"', 1), "text"),
        (RAW + b"\n", "JSON"),
    ],
)
def test_a_malformed_list_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_proxies(raw)


def test_a_list_is_capped() -> None:
    with pytest.raises(FormatError, match="count"):
        encode_proxies("law", "a" * 64, [text_digest(str(number)) for number in range(MAX_PROXIES + 1)])
    with pytest.raises(LimitError):
        parse_proxies(b"\n" * (MAX_DOCUMENT_BYTES + 1))
