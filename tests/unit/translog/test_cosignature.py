"""Cosignatures: a witness's line is over the checkpoint and the time, and stands for nothing else."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FormatError, LogError, SignatureError
from common.translog.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from common.translog.cosignature import cosign, verify_cosignature, with_cosignature, witness_name, witness_vkey
from common.translog.note import encode_vkey, open_note, parse_vkey

LOG, ANNA, BEN = (Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (1, 2, 3))
NOTE = sign_checkpoint(Checkpoint("elmgrove/grove/log", 7, bytes(32)), LOG)
TEXT = NOTE.split(b"\n\n")[0].decode() + "\n"
LOG_VKEY = encode_vkey("elmgrove/grove/log", LOG.public_key())
TIME = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
NAME = witness_name("grove", "anna")
VKEY = witness_vkey(NAME, ANNA)
SIGNED = NOTE + cosign(NOTE, NAME, ANNA, TIME).encode()


def line(name: str, key_id: bytes, blob: bytes) -> str:
    return f"\u2014 {name} {base64.b64encode(key_id + blob).decode()}\n"


def test_bytes_are_those_of_the_specification() -> None:
    raw = ANNA.public_key().public_bytes_raw()
    key_id = hashlib.sha256(NAME.encode() + b"\n\x04" + raw).digest()[:4]
    seconds = 1_777_636_800
    signature = ANNA.sign(b"cosignature/v1\ntime 1777636800\n" + TEXT.encode())
    assert cosign(NOTE, NAME, ANNA, TIME) == line(NAME, key_id, seconds.to_bytes(8, "big") + signature)
    assert f"{NAME}+{key_id.hex()}+{base64.b64encode(bytes([4]) + raw).decode()}" == VKEY


def test_round_trip_beside_other_witnesses() -> None:
    both = with_cosignature(SIGNED, cosign(NOTE, "ben", BEN, TIME), witness_vkey("ben", BEN))
    assert both is not None
    assert both.startswith(SIGNED)
    found = verify_cosignature(both, VKEY)
    assert (found.name, found.time) == (NAME, TIME)
    assert verify_cosignature(both, witness_vkey("ben", BEN)).name == "ben"
    assert verify_checkpoint(both, LOG_VKEY).size == 7


def test_a_cosignature_can_be_made_over_a_cosigned_checkpoint() -> None:
    assert cosign(SIGNED, "ben", BEN, TIME) == cosign(NOTE, "ben", BEN, TIME)


def test_missing_doubled_and_foreign_lines() -> None:
    for note in (NOTE, SIGNED + cosign(NOTE, NAME, ANNA, TIME).encode(), NOTE + cosign(NOTE, NAME, BEN, TIME).encode()):
        with pytest.raises(SignatureError, match="exactly one cosignature"):
            verify_cosignature(note, VKEY)


def test_cosignature_moved_to_another_checkpoint_does_not_hold() -> None:
    other = sign_checkpoint(Checkpoint("elmgrove/grove/log", 8, bytes(32)), LOG)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_cosignature(other + cosign(NOTE, NAME, ANNA, TIME).encode(), VKEY)
    with pytest.raises(SignatureError, match="does not hold"):
        with_cosignature(other, cosign(NOTE, NAME, ANNA, TIME), VKEY)


def test_a_changed_time_does_not_hold() -> None:
    key_id = parse_vkey(VKEY).key_id.to_bytes(4, "big")
    signature = ANNA.sign(b"cosignature/v1\ntime 1777636800\n" + TEXT.encode())
    changed = NOTE + line(NAME, key_id, (1_777_636_801).to_bytes(8, "big") + signature).encode()
    with pytest.raises(SignatureError, match="does not hold"):
        verify_cosignature(changed, VKEY)
    for seconds in (0, 2**64 - 1):
        signature = ANNA.sign(f"cosignature/v1\ntime {seconds}\n{TEXT}".encode())
        with pytest.raises(SignatureError, match="states no time"):
            verify_cosignature(NOTE + line(NAME, key_id, seconds.to_bytes(8, "big") + signature).encode(), VKEY)


def test_a_logs_signature_and_a_witnesses_cannot_stand_for_each_other() -> None:
    with pytest.raises(FormatError, match="not a witness's"):
        verify_cosignature(SIGNED, encode_vkey(NAME, ANNA.public_key()))
    with pytest.raises(SignatureError, match="not signed by the expected key"):
        open_note(SIGNED, [parse_vkey(VKEY)])
    with pytest.raises(LogError):
        verify_checkpoint(SIGNED, VKEY)


def test_only_checkpoints_are_cosigned() -> None:
    for note in (b"", b"hello\n\n" + SIGNED.split(b"\n\n")[1], NOTE[:-1], SIGNED.replace(b"\n7\n", b"\n07\n")):
        with pytest.raises(FormatError):
            cosign(note, NAME, ANNA, TIME)
    with pytest.raises(FormatError, match="1970"):
        cosign(NOTE, NAME, ANNA, datetime(1969, 1, 1, tzinfo=UTC))
    with pytest.raises(FormatError, match="name"):
        cosign(NOTE, "an na", ANNA, TIME)


def test_a_newer_line_of_one_key_takes_the_place_of_the_older() -> None:
    later = cosign(NOTE, NAME, ANNA, TIME + timedelta(hours=1))
    both = with_cosignature(SIGNED, cosign(NOTE, "ben", BEN, TIME), witness_vkey("ben", BEN)) or b""
    newer = with_cosignature(both, later, VKEY) or b""
    assert newer == NOTE + cosign(NOTE, "ben", BEN, TIME).encode() + later.encode()
    assert with_cosignature(newer, cosign(NOTE, NAME, ANNA, TIME), VKEY) == newer
    assert with_cosignature(newer, later, VKEY) == newer


def test_only_the_keys_own_line_is_added_and_only_while_there_is_room() -> None:
    for line in (
        "nonsense\n",
        "",
        cosign(NOTE, NAME, ANNA, TIME) * 2,
        cosign(NOTE, NAME, ANNA, TIME)[:-1],
        f"x{cosign(NOTE, NAME, ANNA, TIME)}",
    ):
        with pytest.raises((FormatError, SignatureError)):
            with_cosignature(NOTE, line, VKEY)
    for line in (cosign(NOTE, "ben", BEN, TIME), cosign(NOTE, NAME, BEN, TIME), cosign(NOTE, "ben", ANNA, TIME)):
        with pytest.raises(SignatureError, match="exactly one"):
            with_cosignature(NOTE, line, VKEY)
    with pytest.raises(FormatError, match="not a witness's"):
        with_cosignature(NOTE, cosign(NOTE, NAME, ANNA, TIME), LOG_VKEY)
    full = NOTE + b"".join(cosign(NOTE, f"w{number}", BEN, TIME).encode() for number in range(99))
    assert with_cosignature(full, cosign(NOTE, NAME, ANNA, TIME), VKEY) is None
    assert with_cosignature(full, cosign(NOTE, "w7", BEN, TIME), witness_vkey("w7", BEN)) is not None


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SIGNED) * 8 - 1))
def test_any_flipped_bit_is_noticed_by_the_log_key_or_the_witness_key(place: int) -> None:
    changed = bytearray(SIGNED)
    changed[place // 8] ^= 1 << place % 8
    with pytest.raises((FormatError, SignatureError, LogError)):
        verify_checkpoint(bytes(changed), LOG_VKEY)
        verify_cosignature(bytes(changed), VKEY)
