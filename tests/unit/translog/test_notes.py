"""Signed notes, verifier keys, checkpoints and receipts, from the specification's own example to random bytes."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FormatError, LimitError, LogError, SignatureError
from common.formats.strictjson import b64decode_canonical, b64encode
from common.translog.checkpoint import Checkpoint, encode_checkpoint, log_origin, parse_checkpoint, sign_checkpoint, verify_checkpoint
from common.translog.merkle import inclusion_proof, leaf_hash, nodes_of, root_hash
from common.translog.note import ALG_COSIGNATURE, encode_vkey, open_note, parse_note, parse_vkey, sign_note
from common.translog.proof import encode_receipt, parse_receipt, verify_receipt

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
NAME = log_origin("grove")
VKEY = encode_vkey(NAME, KEY.public_key())
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
# The key and note of Go's sumdb/note package documentation.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    f"{TEXT}\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()


def lines_of(raw: bytes) -> list[bytes]:
    return raw.split(b"\n\n")[-1].splitlines(keepends=True)


# --- verifier keys -----------------------------------------------------------------------------------------------------------------


def test_verifier_key_round_trip() -> None:
    key = parse_vkey(VKEY)
    assert (key.name, key.public_bytes) == (NAME, KEY.public_key().public_bytes_raw())
    assert encode_vkey(key.name, key.public_key()) == VKEY
    assert encode_vkey(NAME, KEY.public_key(), algorithm=ALG_COSIGNATURE) != VKEY


def test_verifier_key_of_the_go_implementation() -> None:
    assert f"{parse_vkey(GO_VKEY).key_id:08x}" == "c74f20a3"


def test_every_mangled_verifier_key_is_refused() -> None:
    for place in range(len(VKEY)):
        for character in {"+", " ", "A", "0", "\n", "\u00e9", ""} - {VKEY[place]}:
            mangled = VKEY[:place] + character + VKEY[place + 1 :]
            with pytest.raises(FormatError):
                parse_vkey(mangled)
    for wrong in ("", "+", "++", VKEY + "\n", " " + VKEY, VKEY.upper(), VKEY.replace("+", "+0", 1), VKEY + "=", "\ud800" + VKEY):
        with pytest.raises(FormatError):
            parse_vkey(wrong)


def test_verifier_key_of_an_unknown_algorithm_is_refused() -> None:
    public = KEY.public_key().public_bytes_raw()
    for blob in (b"\x06" + public, b"\x01" + public[:31], b"\x01" + public + b"\x00", b"\x01", b""):
        key_id = hashlib.sha256(NAME.encode() + b"\n" + blob).hexdigest()[:8]
        with pytest.raises(FormatError, match="unknown kind"):
            parse_vkey(f"{NAME}+{key_id}+{b64encode(blob)}")


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\x00b", "a\x7fb", "\ud800", "n" * 256])
def test_names_no_key_may_have(name: str) -> None:
    with pytest.raises(FormatError):
        encode_vkey(name, KEY.public_key())


# --- notes -------------------------------------------------------------------------------------------------------------------------


def test_note_of_the_go_implementation() -> None:
    assert open_note(GO_NOTE, [parse_vkey(GO_VKEY)]).text == TEXT


def test_note_round_trip() -> None:
    raw = sign_note(TEXT, NAME, KEY)
    note = open_note(raw, [parse_vkey(VKEY)])
    assert (note.text, note.signers) == (TEXT, (NAME,))
    assert raw == sign_note(TEXT, NAME, KEY)


def test_text_with_blank_lines_ends_at_the_last_one() -> None:
    text = "one\n\ntwo\n\n\u2014 not a signature\n"
    assert open_note(sign_note(text, NAME, KEY), [parse_vkey(VKEY)]).text == text


def test_signatures_of_unknown_keys_are_ignored_wherever_they_stand() -> None:
    ours, theirs = sign_note(TEXT, NAME, KEY), sign_note(TEXT, "witness", OTHER)
    same_name = sign_note(TEXT, NAME, OTHER)
    for extra in (theirs, same_name):
        for raw in (ours + lines_of(extra)[0], TEXT.encode() + b"\n" + lines_of(extra)[0] + lines_of(ours)[0]):
            assert open_note(raw, [parse_vkey(VKEY)]).signers == (NAME,)


def test_two_known_keys_of_one_name_both_count() -> None:
    raw = sign_note(TEXT, NAME, KEY) + lines_of(sign_note(TEXT, NAME, OTHER))[0]
    keys = [parse_vkey(VKEY), parse_vkey(encode_vkey(NAME, OTHER.public_key()))]
    assert open_note(raw, keys).signers == (NAME, NAME)


def test_two_signatures_of_one_key_are_refused() -> None:
    raw = sign_note(TEXT, NAME, KEY)
    with pytest.raises(SignatureError, match="two signatures"):
        open_note(raw + lines_of(raw)[0], [parse_vkey(VKEY)])


def test_no_known_signature_and_a_broken_known_signature() -> None:
    with pytest.raises(SignatureError, match="not signed by the expected key"):
        open_note(sign_note(TEXT, "witness", OTHER), [parse_vkey(VKEY)])
    with pytest.raises(SignatureError, match="does not hold"):
        open_note(sign_note(TEXT, NAME, KEY).replace(b"problem", b"PROBLEM", 1), [parse_vkey(VKEY)])
    with pytest.raises(SignatureError, match="not signed"):
        open_note(sign_note(TEXT, NAME, KEY), [])


def test_cosignature_keys_do_not_open_notes() -> None:
    cosigner = encode_vkey(NAME, KEY.public_key(), algorithm=ALG_COSIGNATURE)
    with pytest.raises(SignatureError, match="not signed"):
        open_note(sign_note(TEXT, NAME, KEY), [parse_vkey(cosigner)])


def test_signature_is_over_the_whole_text_to_the_byte() -> None:
    raw = sign_note(TEXT, NAME, KEY)
    for place in range(len(TEXT.encode()) - 1):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises((SignatureError, FormatError)):
            open_note(changed, [parse_vkey(VKEY)])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda raw: raw.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda raw: raw.replace(b"you", b"y\x00u", 1), id="NUL in the text"),
        pytest.param(lambda raw: raw.replace(b"you", b"y\tu", 1), id="tab in the text"),
        pytest.param(lambda raw: raw.replace(b"you", b"y\xffu", 1), id="not UTF-8"),
        pytest.param(lambda raw: raw.replace(b"elmgrove", b"elm\x01rove", 1), id="control character in a signer's name"),
        pytest.param(lambda raw: raw[:-1], id="no line feed at the end"),
        pytest.param(lambda raw: raw + b"\n", id="blank line at the end"),
        pytest.param(lambda raw: raw.replace("\u2014".encode(), b"-"), id="hyphen for a dash"),
        pytest.param(lambda raw: raw.replace("\u2014 ".encode(), "\u2014  ".encode()), id="two blanks"),
        pytest.param(lambda raw: raw.replace(b"=\n", b"\n"), id="no padding"),
        pytest.param(lambda raw: raw.replace(b"\n\n", b"\n"), id="no blank line"),
        pytest.param(lambda _: TEXT.encode() + b"\n", id="no signature"),
        pytest.param(lambda _: b"", id="nothing"),
        pytest.param(lambda _: b"\n\n", id="two line feeds"),
        pytest.param(lambda _: f"{TEXT}\n\u2014 {NAME} AAAA\n".encode(), id="signature too short"),
    ],
)
def test_malformed_note(spoil: object) -> None:
    assert callable(spoil)
    raw = sign_note(TEXT, NAME, KEY)
    spoiled = spoil(raw)
    assert spoiled != raw
    with pytest.raises(FormatError):
        open_note(spoiled, [parse_vkey(VKEY)])


def test_note_limits() -> None:
    line = lines_of(sign_note(TEXT, "witness", OTHER))[0]
    assert len(parse_note(sign_note(TEXT, NAME, KEY) + line * 99)[1]) == 100
    with pytest.raises(LimitError):
        parse_note(sign_note(TEXT, NAME, KEY) + line * 100)
    with pytest.raises(LimitError):
        parse_note(b"x" * 70_000)


@pytest.mark.parametrize("text", ["no line feed", "tab\t\n", "bell\x07\n", "\x7f\n", "\ud800\n"])
def test_text_that_cannot_be_signed(text: str) -> None:
    with pytest.raises(FormatError):
        sign_note(text, NAME, KEY)


# --- checkpoints -------------------------------------------------------------------------------------------------------------------

ENTRIES = [b"entry %d" % number for number in range(11)]
HASHES = [leaf_hash(entry) for entry in ENTRIES]
TREE = Checkpoint(origin=NAME, size=11, root=root_hash(HASHES))
NOTE = sign_checkpoint(TREE, KEY)


def test_checkpoint_round_trip() -> None:
    assert verify_checkpoint(NOTE, VKEY) == TREE
    assert NOTE.startswith(b"elmgrove/grove/log\n11\n")
    assert parse_checkpoint(encode_checkpoint(TREE)) == TREE


def test_checkpoint_by_another_key_or_of_another_log() -> None:
    with pytest.raises(LogError, match="not signed"):
        verify_checkpoint(sign_checkpoint(TREE, OTHER), VKEY)
    relabelled = sign_note(encode_checkpoint(Checkpoint("elmgrove/heath/log", 11, TREE.root)), NAME, KEY)
    with pytest.raises(LogError, match="of another log"):
        verify_checkpoint(relabelled, VKEY)


ROOT = b64encode(TREE.root)
BAD_CHECKPOINTS = {
    "leading zero": f"o\n011\n{ROOT}\n", "sign": f"o\n+11\n{ROOT}\n", "negative": f"o\n-1\n{ROOT}\n", "float": f"o\n1.0\n{ROOT}\n",
    "other digits": f"o\n\u0661\u0661\n{ROOT}\n", "too big": f"o\n{2**63}\n{ROOT}\n", "huge": f"o\n{'9' * 5000}\n{ROOT}\n",
    "no origin": f"\n11\n{ROOT}\n", "extension": f"o\n11\n{ROOT}\nextension\n", "no root": "o\n11\n", "empty root": "o\n11\n\n",
    "short root": f"o\n11\n{b64encode(TREE.root[:31])}\n", "long root": f"o\n11\n{b64encode(TREE.root + b'x')}\n",
    "hexadecimal root": f"o\n11\n{TREE.root.hex()}\n", "URL-safe root": "o\n11\n" + "-" + ROOT[1:] + "\n", "no end": f"o\n11\n{ROOT}",
    "blank": f"o\n11 \n{ROOT}\n", "tail": f"o\n11\n{ROOT}\ntail", "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_malformed_checkpoint(name: str) -> None:
    with pytest.raises(FormatError):
        parse_checkpoint(BAD_CHECKPOINTS[name])


def test_checkpoint_sizes_at_their_bounds() -> None:
    for size in (0, 1, 2**63 - 1):
        assert parse_checkpoint(f"o\n{size}\n{ROOT}\n").size == size


# --- receipts ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(11))
def test_receipt_of_every_entry(index: int) -> None:
    proof = inclusion_proof(index, 11, nodes_of(HASHES))
    raw = encode_receipt(index, proof, NOTE)
    assert parse_receipt(raw).proof == tuple(proof)
    verified = verify_receipt(raw, ENTRIES[index], VKEY)
    assert (verified.index, verified.checkpoint) == (index, TREE)
    for other in (ENTRIES[(index + 1) % 11], b"", ENTRIES[index] + b" "):
        with pytest.raises(LogError, match="does not lead"):
            verify_receipt(raw, other, VKEY)
    with pytest.raises(LogError):
        verify_receipt(encode_receipt((index + 1) % 11, proof, NOTE), ENTRIES[index], VKEY)


def test_receipt_of_the_only_entry_has_no_hashes() -> None:
    note = sign_checkpoint(Checkpoint(NAME, 1, HASHES[0]), KEY)
    raw = encode_receipt(0, [], note)
    assert parse_receipt(raw).proof == ()
    assert verify_receipt(raw, ENTRIES[0], VKEY).index == 0


def test_receipt_under_a_checkpoint_of_another_key() -> None:
    raw = encode_receipt(3, inclusion_proof(3, 11, nodes_of(HASHES)), sign_checkpoint(TREE, OTHER))
    with pytest.raises(LogError, match="not signed"):
        verify_receipt(raw, ENTRIES[3], VKEY)


RECEIPT = encode_receipt(3, inclusion_proof(3, 11, nodes_of(HASHES)), NOTE)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(RECEIPT.replace(b"@v1", b"@v2", 1), id="version"),
        pytest.param(RECEIPT.replace(b"index 3", b"index 03", 1), id="leading zero"),
        pytest.param(RECEIPT.replace(b"index 3", b"index -3", 1), id="negative"),
        pytest.param(RECEIPT.replace(b"index 3\n", b"", 1), id="no index"),
        pytest.param(RECEIPT.replace(b"index 3\n", b"index 3\nAAAA\n", 1), id="short hash"),
        pytest.param(RECEIPT.replace(b"index 3\n", b"index 3\n" + RECEIPT.split(b"\n")[2] + b"\n" * 1 + b"!\n", 1), id="no base64"),
        pytest.param(RECEIPT.replace(b"index 3\n", b"index 3\n" + (b64encode(bytes(32)).encode() + b"\n") * 64, 1), id="too many hashes"),
        pytest.param(RECEIPT.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(RECEIPT.split(b"\n\n")[0], id="no checkpoint"),
        pytest.param(RECEIPT + b"x" * 70_000, id="too large"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_malformed_receipt(raw: bytes) -> None:
    with pytest.raises(FormatError):
        verify_receipt(raw, ENTRIES[3], VKEY)


def test_every_flipped_bit_of_a_receipt_is_refused() -> None:
    for place in range(len(RECEIPT) * 8):
        changed = bytearray(RECEIPT)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((FormatError, LogError)):
            verify_receipt(bytes(changed), ENTRIES[3], VKEY)


# --- fuzzing -----------------------------------------------------------------------------------------------------------------------

NOTE_PIECES = [b"\n", b"\n\n", "\u2014 ".encode(), NAME.encode(), b" ", b"AAAAAAAA", b"=", b"\xff", b"x\n"]
NOTE_LIKE = st.lists(st.sampled_from(NOTE_PIECES), max_size=20).map(b"".join)
VKEY_LIKE = st.lists(st.sampled_from(["+", NAME, "00000000", "AQ", "A" * 44, "=", " ", "\ud800"]), max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200) | NOTE_LIKE)
def test_random_notes(raw: bytes) -> None:
    try:
        text, lines = parse_note(raw)
    except FormatError:
        return
    assert text.endswith("\n")
    assert lines
    rebuilt = [f"\u2014 {line.name} {b64encode(line.key_id.to_bytes(4, 'big') + line.signature)}\n" for line in lines]
    assert (text + "\n" + "".join(rebuilt)).encode() == raw


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=100) | VKEY_LIKE)
def test_random_verifier_keys(text: str) -> None:
    with pytest.raises(FormatError):
        parse_vkey(text)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(max_size=100) | st.builds("{}\n{}\n{}\n".format, st.text(max_size=5), st.integers(), st.just(ROOT) | st.text(max_size=50))
)
def test_random_checkpoints(text: str) -> None:
    try:
        checkpoint = parse_checkpoint(text)
    except FormatError:
        return
    assert encode_checkpoint(checkpoint) == text


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=200) | st.builds(lambda head, tail: b"c2sp.org/tlog-proof@v1\n" + head + b"\n\n" + tail, NOTE_LIKE, NOTE_LIKE)
)
def test_random_receipts(raw: bytes) -> None:
    with pytest.raises((FormatError, LogError)):
        verify_receipt(raw, b"entry", VKEY)


def test_canonical_base64_is_what_the_line_formats_rest_on() -> None:
    assert b64decode_canonical(ROOT) == TREE.root
