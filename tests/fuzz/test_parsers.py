"""Every parser of foreign bytes: whatever comes, it gives a value of which its rules hold, or one of the errors it documents."""

from __future__ import annotations

import contextlib
import json
import math
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import (
    ArchitectureError,
    CertificateError,
    ElmgroveError,
    FormatError,
    InvitationFormatError,
    KeyStoreError,
    LogError,
    SignatureError,
    SignerError,
)
from common.formats.entries import encode_entry, parse_entry
from common.formats.hfconfig import flex_olmo_config, loads_config
from common.formats.invitation import decode_invitation
from common.formats.manifest import AnchorManifest, ExpertManifest, ModelManifest
from common.formats.proxies import parse_proxies
from common.formats.safetensors import PREFIX_BYTES, Header, parse_header, parse_length
from common.formats.statements import STATEMENT_PAYLOAD_TYPE, parse_statement
from common.formats.strictjson import Document, loads_strict, parse_document
from common.translog.checkpoint import encode_checkpoint, parse_checkpoint, verify_checkpoint
from common.translog.cosignature import cosign, verify_cosignature, witness_name, witness_vkey
from common.translog.note import open_note, parse_note, parse_vkey
from common.translog.policy import parse_policy
from common.translog.proof import encode_receipt, parse_receipt, verify_receipt
from common.translog.tiles import encode_entries, parse_entries
from common.trust.certificates import TrustRoot, public_key_from_csr, verify_leaf
from common.trust.envelope import sign_envelope, signing_certificate, verify_envelope
from common.trust.keys import load_private_key
from common.trust.oms import OMS_PAYLOAD_TYPE, verify_bundle
from common.trust.statements import verify_statement
from tests.fuzz.mutations import hostile_bytes, hostile_der, hostile_json
from tests.fuzz.profile import fuzz_settings
from tests.fuzz.samples import Samples, samples

# cryptography warns of certificates with odd but readable fields
pytestmark = pytest.mark.filterwarnings("ignore")

Strategy = Callable[[Sequence[bytes]], st.SearchStrategy[bytes]]
Errors = tuple[type[ElmgroveError], ...]
SIGNED: Errors = (FormatError, CertificateError, SignatureError)


@dataclass(frozen=True)
class Parser:
    """How to call it, what it documents to raise, what to spoil, and what must hold of every value it gives (given the bytes)."""

    parse: Callable[[bytes], Any]
    errors: Errors
    valid: Callable[[Samples], Sequence[bytes]]
    spoil: Strategy = hostile_bytes
    holds: Callable[[Any, bytes], bool] = lambda _value, _raw: True


def _text(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda raw: parse(raw.decode("utf-8", "surrogateescape"))


def _document(kind: type[Document]) -> Callable[[bytes], Document]:
    return lambda raw: parse_document(kind, raw)


def _safetensors(raw: bytes) -> Header:
    length = parse_length(raw[:PREFIX_BYTES], len(raw))
    return parse_header(raw[PREFIX_BYTES : PREFIX_BYTES + length], len(raw))


def _config(raw: bytes) -> dict[str, Any]:
    config = loads_config(raw)
    flex_olmo_config(config, num_experts=2, top_k=1)
    return config


def _finite(value: Any, _raw: bytes = b"") -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not (isinstance(value, float) and not math.isfinite(value)) and all(map(_finite, inner))


def _moment() -> Any:
    return samples().world.now


def _leaf(raw: bytes) -> Any:
    return verify_leaf(raw, samples().world.root, "signing", _moment())


def _vkey() -> str:
    return samples().world.vkey


PARSERS: dict[str, Parser] = {
    "strict JSON": Parser(
        loads_strict, (FormatError,), lambda s: [*s.entries, *s.manifests["expert"]], hostile_json,
        lambda value, raw: value == json.loads(raw),
    ),
    "anchor manifest": Parser(_document(AnchorManifest), (FormatError,), lambda s: s.manifests["anchor"], hostile_json),
    "expert manifest": Parser(_document(ExpertManifest), (FormatError,), lambda s: s.manifests["expert"], hostile_json),
    "model manifest": Parser(_document(ModelManifest), (FormatError,), lambda s: s.manifests["model"], hostile_json),
    "log entry": Parser(parse_entry, (FormatError,), lambda s: s.entries, hostile_json, lambda value, raw: encode_entry(value) == raw),
    "proxies": Parser(parse_proxies, (FormatError,), lambda s: s.proxies),
    "invitation": Parser(_text(decode_invitation), (InvitationFormatError,), lambda s: s.invitations),
    "Hugging Face config": Parser(_config, (FormatError, ArchitectureError), lambda s: s.configs, hostile_json),
    "Hugging Face JSON": Parser(loads_config, (FormatError,), lambda s: s.configs, hostile_json, _finite),
    "safetensors": Parser(
        _safetensors, (FormatError,), lambda s: s.headers,
        holds=lambda value, raw: sum(span.end - span.start for span in value.tensors) == len(raw) - value.data_start,
    ),
    "envelope": Parser(
        lambda raw: verify_envelope(raw, samples().world.root, payload_type=STATEMENT_PAYLOAD_TYPE, at=_moment()),
        SIGNED, lambda s: s.statements, hostile_json, lambda value, _: value.payload in _payloads(),
    ),
    "statement": Parser(
        lambda raw: verify_statement(raw, samples().world.root, at=_moment()), (*SIGNED, SignerError), lambda s: s.statements, hostile_json
    ),
    "OMS bundle": Parser(
        lambda raw: verify_bundle(raw, samples().world.root, at=_moment()), SIGNED, lambda s: s.bundles, hostile_json,
        lambda value, _: dict(value.resources) in _signed_resources(),
    ),
    "certificate of a bundle": Parser(signing_certificate, (FormatError,), lambda s: s.bundles, hostile_json),
    "leaf certificate": Parser(
        _leaf, (CertificateError,), lambda s: s.certificates, hostile_der,
        lambda value, _: _said(value.der) in map(_said, samples().certificates),
    ),
    "root certificate": Parser(TrustRoot.from_der, (CertificateError,), lambda s: s.certificates[:1], hostile_der),
    "root certificate file": Parser(TrustRoot.from_pem, (CertificateError,), lambda s: s.root_files),
    "certificate request": Parser(public_key_from_csr, (FormatError,), lambda s: s.requests, hostile_der),
    "private key": Parser(lambda raw: load_private_key(raw, None), (KeyStoreError,), lambda s: s.keys),
    "note": Parser(parse_note, (FormatError,), lambda s: s.notes),
    "signed note": Parser(lambda raw: open_note(raw, [parse_vkey(_vkey())]), (FormatError, SignatureError), lambda s: s.notes),
    "verifier key": Parser(_text(parse_vkey), (FormatError,), lambda s: [s.world.vkey.encode()]),
    "checkpoint": Parser(
        _text(parse_checkpoint), (FormatError,), lambda s: s.checkpoints,
        holds=lambda value, raw: encode_checkpoint(value) == raw.decode("utf-8", "surrogateescape"),
    ),
    "signed checkpoint": Parser(
        lambda raw: verify_checkpoint(raw, _vkey()), (FormatError, LogError), lambda s: s.notes,
        holds=lambda value, _: encode_checkpoint(value).encode() in samples().checkpoints,
    ),
    "receipt": Parser(
        parse_receipt, (FormatError,), lambda s: s.receipts,
        holds=lambda value, raw: encode_receipt(value.index, value.proof, value.checkpoint) == raw,
    ),
    "verified receipt": Parser(
        lambda raw: verify_receipt(raw, samples().entries[3], _vkey()), (FormatError, LogError), lambda s: s.receipts,
        holds=lambda value, _: value.index == 3,
    ),
    "cosigned checkpoint": Parser(
        lambda raw: verify_cosignature(raw, _witness().vkey), (FormatError, SignatureError), lambda s: [*map(_cosigned, s.notes)],
        holds=lambda value, _: (value.name, value.time) == (_witness().name, _moment()),
    ),
    "witness policy": Parser(parse_policy, (FormatError,), lambda _: [_policy()]),
    "entry bundle": Parser(
        parse_entries, (FormatError,), lambda s: s.entry_bundles, holds=lambda value, raw: encode_entries(value) == raw
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Witness:
    name: str
    key: Ed25519PrivateKey
    vkey: str


@cache
def _witness() -> _Witness:
    name, key = witness_name("grove", "anna"), Ed25519PrivateKey.generate()
    return _Witness(name, key, witness_vkey(name, key))


def _cosigned(note: bytes) -> bytes:
    witness = _witness()
    return note + cosign(note, witness.name, witness.key, _moment()).encode()


def _policy() -> bytes:
    return f"# owners\nlog {_vkey()}\nwitness anna {_witness().vkey}\ngroup owners 1 anna\nquorum owners\n".encode()


def _payload(raw: bytes) -> bytes:
    return b64decode(json.loads(raw)["dsseEnvelope"]["payload"])


def _payloads() -> list[bytes]:
    return [_payload(raw) for raw in samples().statements]


def _signed_resources() -> list[dict[str, str]]:
    world = samples().world
    return [dict(verify_bundle(raw, world.root, at=world.now).resources) for raw in samples().bundles]


def _said(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


@pytest.mark.parametrize("name", PARSERS)
def test_valid_bytes_are_taken(name: str) -> None:
    """So that the cases below are changes of what is taken, not more of what is refused anyway."""
    parser, taken = PARSERS[name], 0
    for raw in parser.valid(samples()):
        try:
            value = parser.parse(raw)
        except parser.errors:
            continue
        taken += parser.holds(value, raw)
    assert taken


@pytest.mark.parametrize("name", PARSERS)
@fuzz_settings()
@given(data=st.data())
def test_any_bytes_give_a_value_or_a_documented_error(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    raw = data.draw(parser.spoil(parser.valid(samples())))
    message = "read"
    try:
        assert parser.holds(parser.parse(raw), raw)
    except parser.errors as error:
        message = str(error)
    assert message.isprintable(), "what a stranger chose must not reach a terminal as it is"
    assert 0 < len(message) < 1000


@pytest.mark.parametrize("kind", [OMS_PAYLOAD_TYPE, STATEMENT_PAYLOAD_TYPE])
@fuzz_settings()
@given(data=st.data())
def test_any_payload_that_an_owner_signs_gives_a_value_or_a_documented_error(kind: str, data: st.DataObject) -> None:
    """Past the signature: an owner with a good certificate signs whatever it likes."""
    anna = samples().world.owners["anna"]
    envelopes = samples().bundles if kind == OMS_PAYLOAD_TYPE else samples().statements
    payload = data.draw(hostile_json([_payload(raw) for raw in envelopes]))
    raw = sign_envelope(payload, kind, anna.key, anna.certificate)
    verify = verify_bundle if kind == OMS_PAYLOAD_TYPE else verify_statement
    try:
        verify(raw, samples().world.root, at=_moment())
    except (FormatError, SignatureError, SignerError):
        return
    if kind == STATEMENT_PAYLOAD_TYPE:
        assert parse_statement(payload).consortium == "grove"


@fuzz_settings()
@given(seconds=st.integers(-(2**40), 2**40))
def test_any_time_gives_a_verdict(seconds: int) -> None:
    """A time far outside is a time at which nothing is valid, not a crash."""
    try:
        moment = _moment() + timedelta(seconds=seconds)
    except OverflowError:
        return
    with contextlib.suppress(CertificateError):
        verified = verify_leaf(samples().certificates[1], samples().world.root, "signing", moment)
        assert verified.certificate.not_valid_before_utc <= moment <= verified.certificate.not_valid_after_utc
