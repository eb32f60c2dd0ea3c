"""Evidence that a log's key has signed two histories: one document that anybody can check with the log's public key alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from common.formats.fields import format_time
from common.formats.strictjson import b64encode

__all__ = ["contradiction"]


def contradiction(
    *, consortium: str, log_key: str, older: bytes, newer: bytes, proof: Sequence[bytes], finding: str, found: datetime
) -> dict[str, object]:
    """The document, for JSON.

    Args:
        consortium: whose log.
        log_key: its verifier key.
        older: the signed note that was seen first.
        newer: the signed note that does not continue it.
        proof: the consistency proof that was given or computed and does not connect them; none if the newer tree is not larger.
        finding: what does not hold, for people.
        found: when this was found out.
    """
    return {
        "schema": "elmgrove.log-contradiction/v1",
        "consortium": consortium,
        "log_key": log_key,
        "found": format_time(found),
        "finding": finding,
        "older": older.decode("utf-8", "replace"),
        "newer": newer.decode("utf-8", "replace"),
        "consistency_proof": [b64encode(node) for node in proof],
    }
