"""Policies: the specification's example, every kind of malformed line, and what counts as a quorum."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ElmgroveError, FormatError, LimitError, LogError, QuorumError, SignatureError
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.cosignature import cosign, witness_vkey
from common.translog.note import encode_vkey
from common.translog.policy import parse_policy, verify_policy

KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number, name in enumerate(("log", "X1", "X2", "X3", "Y1", "Y2"))
}
ORIGIN = "elmgrove/grove/log"
LOG = encode_vkey(ORIGIN, KEYS["log"].public_key())
VKEYS = {name: witness_vkey(f"w.example/{name}", key) for name, key in KEYS.items()}
NOTE = sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)), KEYS["log"])
TIME = datetime(2026, 5, 1, tzinfo=UTC)
# The example of the specification, with real keys and one witness less.
EXAMPLE = f"""
log {LOG}

# two parties
witness X1 {VKEYS["X1"]}
witness X2 {VKEYS["X2"]} https://example.com/x2
\twitness  X3\t{VKEYS["X3"]}
group X-witnesses 2 X1 X2 X3

witness Y1 {VKEYS["Y1"]}
witness Y2 {VKEYS["Y2"]}
  # either will do
group Y-witnesses any Y1 Y2

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def cosigned(*names: str) -> bytes:
    return NOTE + "".join(cosign(NOTE, f"w.example/{name}", KEYS[name], TIME) for name in names).encode()


def test_every_subset_of_the_example() -> None:
    policy = parse_policy(EXAMPLE.encode())
    names = ("X1", "X2", "X3", "Y1", "Y2")
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            verdict = verify_policy(cosigned(*chosen), policy, LOG)
            right = len({"X1", "X2", "X3"} & set(chosen)) >= 2 and bool({"Y1", "Y2"} & set(chosen))
            assert verdict.holds == right
            assert [each.name for each in verdict.cosigned] == list(chosen)
            assert set(verdict.missing) == set(names) - set(chosen)
            assert verdict.checkpoint.size == 7
            if right:
                verdict.require_quorum()
            else:
                with pytest.raises(QuorumError, match="missing: "):
                    verdict.require_quorum()


def test_quorum_of_one_witness_and_of_none() -> None:
    one = parse_policy(f"witness Y1 {VKEYS['Y1']}\nquorum Y1\n".encode())
    assert verify_policy(cosigned("Y1"), one, LOG).holds
    assert verify_policy(cosigned("Y1"), one, LOG).cosigned[0].time == TIME
    assert not verify_policy(cosigned("X1"), one, LOG).holds
    assert verify_policy(NOTE, parse_policy(b"quorum none\n"), LOG).holds


def test_a_witness_counts_once_and_only_with_a_line_that_holds() -> None:
    policy = parse_policy(EXAMPLE.encode())
    other = sign_checkpoint(Checkpoint(ORIGIN, 8, bytes(32)), KEYS["log"])
    moved = other + cosigned("X1").removeprefix(NOTE)
    repeated = cosigned("X1", "X1")
    for note in (moved, repeated):
        with pytest.raises(SignatureError):
            verify_policy(note, policy, LOG)
    renamed = NOTE + cosign(NOTE, "w.example/X2", KEYS["X1"], TIME).encode()
    assert verify_policy(renamed, policy, LOG).cosigned == (), "a line of an unknown key is ignored"


def test_the_log_must_be_the_policys() -> None:
    foreign = parse_policy(f"log {encode_vkey(ORIGIN, KEYS['X1'].public_key())}\nquorum none\n".encode())
    with pytest.raises(LogError, match="does not list the key of this log"):
        verify_policy(NOTE, foreign, LOG)
    with pytest.raises(LogError, match="does not hold"):
        verify_policy(NOTE, parse_policy(b"quorum none\n"), encode_vkey(ORIGIN, KEYS["X1"].public_key()))


W1, W2 = f"witness a {VKEYS['X1']}\n", f"witness b {VKEYS['X2']}\n"
SAME_KEY = witness_vkey("another.name", KEYS["X1"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no quorum"),
        (W1, "no quorum"),
        ("quorum a\n", "line 1: a name is not defined"),
        (f"quorum a\n{W1}", "line 1: a name is not defined"),
        (f"{W1}quorum a\nquorum a\n", "line 3: there is a second quorum"),
        (f"{W1}quorum a b\n", "a quorum is one name"),
        (f"{W1}{W1.replace('witness a', 'witness b')}quorum a\n", "line 2: its key was listed before"),
        (f"{W1}witness b {SAME_KEY}\nquorum a\n", "line 2: its key was listed before"),
        (f"log {LOG}\nlog {LOG}\nquorum none\n", "line 2: its key was listed before"),
        (f"log {LOG}\nwitness a {witness_vkey('a', KEYS['log'])}\nquorum none\n", "line 2: its key was listed before"),
        (f"{W1}{W2.replace('witness b', 'witness a')}quorum a\n", "line 2: its name is taken"),
        (f"witness none {VKEYS['X1']}\nquorum none\n", "its name is taken"),
        (f"witness a {encode_vkey('a', KEYS['X1'].public_key())}\nquorum a\n", "of the wrong kind"),
        (f"log {VKEYS['X1']}\nquorum none\n", "of the wrong kind"),
        ("witness a\nquorum a\n", "a witness has"),
        ("witness a nonsense\nquorum a\n", "line 1: The verifier key is malformed"),
        (f"{W1}group g 1 a\ngroup g 1 a\nquorum g\n", "its name is taken"),
        (f"{W1}group g 1 a\ngroup h 1 a\nquorum g\n", "a member of a group already"),
        (f"{W1}group g 1 a a\nquorum g\n", "a member of a group already"),
        (f"{W1}group g 1 g\nquorum g\n", "not defined above"),
        (f"{W1}group g 1 none\nquorum g\n", "not defined above"),
        (f"{W1}group g any\nquorum g\n", "a group has"),
        (f"{W1}group g 2 a\nquorum g\n", "exceeds its members"),
        (f"{W1}group g 0 a\nquorum g\n", "decimal number"),
        (f"{W1}group g 01 a\nquorum g\n", "decimal number"),
        (f"{W1}group g some a\nquorum g\n", "decimal number"),
        (f"{W1}quorum a", "does not end with a line feed"),
        (f"{W1}quorum a\r\n", "control character"),
        ("Quorum none\n", "does not begin with"),
        (f"{W1} quorum\u00a0a\n", "does not begin with"),
    ],
)
def test_a_malformed_policy_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        parse_policy(text.encode())


def test_limits() -> None:
    for raw in (b"#" * 70_000 + b"\n", b"\n" * 1000):
        with pytest.raises(LimitError):
            parse_policy(raw)


WORDS = st.sampled_from(
    [b"log", b"witness", b"group", b"quorum", b"none", b"a", b"any", b"2", b"\n", b" ", b"\xff", VKEYS["X1"].encode(), b"#"]
)


@given(st.lists(WORDS, max_size=40).map(b" ".join))
def test_random_words_raise_only_our_errors(raw: bytes) -> None:
    try:
        policy = parse_policy(raw)
        verify_policy(NOTE, policy, LOG)
    except ElmgroveError:
        return
