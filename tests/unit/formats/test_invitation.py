"""Invitations: a lost or changed character is noticed before anything is sent."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvitationFormatError
from common.formats.invitation import Invitation, decode_invitation, encode_invitation

INVITATION = Invitation(
    consortium="grove", owner="anna", host="grove.example", enrol_port=7070, port=7071, root_sha256="a" * 64, token="-_" * 21 + "x",
    expires="2026-01-31T08:00:00Z",
)  # fmt: skip
TEXT = encode_invitation(INVITATION)


def spell(fields: Any) -> str:
    raw = json.dumps(fields).encode()
    return f"elmgrove1-{base64.urlsafe_b64encode(raw).decode().rstrip('=')}-{hashlib.sha256(raw).hexdigest()[:8]}"


def test_round_trip_also_with_white_space_from_a_mail() -> None:
    assert decode_invitation(TEXT) == INVITATION
    assert decode_invitation(f"  {TEXT}\n") == INVITATION
    assert len(TEXT.split()) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "::1", "a-b.example", "localhost"])
def test_hosts(host: str) -> None:
    changed = INVITATION.model_copy(update={"host": host})
    assert decode_invitation(encode_invitation(changed)).host == host


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("abcXYZ019-_=+/ é"))
def test_a_changed_character_is_noticed(place: int, character: str) -> None:
    changed = TEXT[:place] + character + TEXT[place + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(InvitationFormatError):
        decode_invitation(changed)


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 20))
def test_lost_characters_are_noticed(place: int, count: int) -> None:
    with pytest.raises(InvitationFormatError):
        decode_invitation(TEXT[:place] + TEXT[place + count :])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": "7071"}, "port"),
        ({"host": "grove.example/x"}, "host"),
        ({"host": "user@grove"}, "host"),
        ({"host": ""}, "host"),
        ({"token": "short"}, "token"),
        ({"root_sha256": "A" * 64}, "root_sha256"),
        ({"owner": "../anna"}, "owner"),
        ({"expires": "soon"}, "expires"),
        ({"admin": 1}, "admin"),
    ],
)
def test_well_spelled_invitation_with_a_wrong_field(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvitationFormatError, match=f"malformed: Invitation: {reason}"):
        decode_invitation(spell(INVITATION.model_dump(mode="json") | change))


def test_huge_text_is_refused_unread() -> None:
    with pytest.raises(InvitationFormatError, match="not an invitation"):
        decode_invitation("elmgrove1-" + "A" * 1_000_000 + "-00000000")
