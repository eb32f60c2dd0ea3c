"""Envelopes, OMS bundles and statements: what is made verifies, and every correctly signed trick is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import CertificateError, ElmgroveError, FormatError, LimitError, SignatureError, SignerError
from common.formats.limits import MAX_FILES
from common.formats.statements import STATEMENT_PAYLOAD_TYPE, OwnerRevoked
from common.formats.strictjson import canonical_bytes
from common.trust.certificates import issue_leaf
from common.trust.envelope import pre_authentication_encoding, sign_envelope, signing_certificate, verify_envelope
from common.trust.keys import generate_signing_key
from common.trust.oms import OMS_PAYLOAD_TYPE, sign_resources, statement_payload, verify_bundle
from common.trust.statements import sign_statement, verify_statement
from tests.unit.trust.pki import DAY, NOW, URI, Shape, b64, der, make, pki, wrap

KIND = "application/vnd.example+json"
FILES = {"config.json": "a" * 64, "manifest.json": "b" * 64, "part-0000.safetensors": "c" * 64}
REVOKED = OwnerRevoked(
    schema="elmgrove.owner-revoked/v1", consortium="grove", created="2026-05-01T12:00:00Z", owner="elmgrove://grove/owners/ben", reason=""
)


def honest() -> dict[str, Any]:
    """The statement that an honest signature over ``FILES`` carries."""
    value: dict[str, Any] = json.loads(statement_payload(FILES, "moss"))
    return value


def root_digest(resources: list[dict[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()


# --- the envelope ------------------------------------------------------------------------------------------------------------------


def test_pae_is_that_of_the_dsse_specification() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == expected
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_envelope_round_trip_and_the_same_bytes_every_time() -> None:
    world = pki()
    raw = sign_envelope(b'{"a":1}', KIND, world.key, world.leaf)
    assert raw == sign_envelope(b'{"a":1}', KIND, world.key, world.leaf)
    verified = verify_envelope(raw, world.root, payload_type=KIND, at=NOW)
    assert (verified.payload, verified.signer.uri, verified.digest) == (b'{"a":1}', URI, hashlib.sha256(raw).hexdigest())
    assert signing_certificate(raw) == der(world.leaf)


def test_signing_with_another_key_than_the_certificates_is_refused() -> None:
    with pytest.raises(SignatureError, match="does not belong"):
        sign_envelope(b"x", KIND, generate_signing_key(), pki().leaf)


def test_certificate_is_judged_at_the_time_asked_about() -> None:
    raw = wrap(b"{}", KIND)
    with pytest.raises(CertificateError, match="had expired"):
        verify_envelope(raw, pki().root, payload_type=KIND, at=NOW + 731 * DAY)


def _certificates(bundle: dict[str, Any]) -> list[dict[str, str]]:
    chain: list[dict[str, str]] = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return chain


def _signatures(bundle: dict[str, Any]) -> list[dict[str, Any]]:
    signatures: list[dict[str, Any]] = bundle["dsseEnvelope"]["signatures"]
    return signatures


def _add_certificates(*ders: bytes) -> Callable[[dict[str, Any]], object]:
    return lambda bundle: _certificates(bundle).extend({"rawBytes": b64(each)} for each in ders)


def _transport_leaf() -> bytes:
    world = pki()
    return der(issue_leaf(world.root, world.root_key, world.key.public_key(), "transport", URI, NOW))


def _set(*path: str | int, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(bundle: dict[str, Any]) -> None:
        place: Any = bundle
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def _edit(*path: str | int, by: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    def change(bundle: dict[str, Any]) -> None:
        place: Any = bundle
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = by(place[path[-1]])

    return change


def _drop(*path: str | int) -> Callable[[dict[str, Any]], object]:
    def change(bundle: dict[str, Any]) -> None:
        place: Any = bundle
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


LEAF = ("verificationMaterial", "x509CertificateChain", "certificates", 0, "rawBytes")
OTHER_LEAF = make(Shape(public_key=generate_signing_key().public_key()))
SIG = ("dsseEnvelope", "signatures", 0, "sig")

ENVELOPES_TAKEN = [
    ("as signed", lambda _: None),
    ("root embedded after the leaf, as the stock tool does", _add_certificates(pki().root.der)),
    ("no keyid", _drop("dsseEnvelope", "signatures", 0, "keyid")),
    ("keyid null", _set("dsseEnvelope", "signatures", 0, "keyid", value=None)),
    ("no tlogEntries", _drop("verificationMaterial", "tlogEntries")),
]


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in ENVELOPES_TAKEN])
def test_envelope_taken(change: Callable[[dict[str, Any]], object]) -> None:
    assert verify_envelope(wrap(b"{}", KIND, change), pki().root, payload_type=KIND, at=NOW).payload == b"{}"


ENVELOPES_REFUSED: list[tuple[str, Callable[[dict[str, Any]], object], type[ElmgroveError], str]] = [
    ("payload type", _set("dsseEnvelope", "payloadType", value="text/plain"), SignatureError, "The envelope holds"),
    ("payload", _set("dsseEnvelope", "payload", value=b64(b"[]")), SignatureError, "does not hold"),
    ("second signature", lambda b: _signatures(b).append(_signatures(b)[0]), FormatError, "signatures"),
    ("no signature", lambda b: _signatures(b).clear(), FormatError, "signatures"),
    ("no certificate", lambda b: _certificates(b).clear(), FormatError, "certificates"),
    ("leaf twice", _add_certificates(der(pki().leaf)), CertificateError, "not this consortium's root"),
    ("root first", lambda b: _certificates(b).insert(0, {"rawBytes": b64(pki().root.der)}), CertificateError, "certification authority"),
    ("foreign certificate in the chain", _add_certificates(make(Shape(ca=True))), CertificateError, "not this consortium's root"),
    ("junk in the chain", _add_certificates(b"junk"), CertificateError, "not this consortium's root"),
    ("three certificates", _add_certificates(pki().root.der, pki().root.der), FormatError, "certificates"),
    ("transport certificate", _set(*LEAF, value=b64(_transport_leaf())), CertificateError, "not issued for signing"),
    ("foreign key, our name", _set(*LEAF, value=b64(make(Shape(issuer_key=generate_signing_key())))), CertificateError, "not issued by"),
    ("another certificate of ours", _set(*LEAF, value=b64(OTHER_LEAF)), SignatureError, "does not hold"),
    ("white space in base64", _edit(*SIG, by=lambda text: text[:4] + "\n" + text[4:]), FormatError, "base64"),
    ("junk in base64", _edit(*SIG, by=lambda text: text[:4] + "!?" + text[4:]), FormatError, "base64"),
    ("unpadded base64", _edit("dsseEnvelope", "payload", by=lambda text: text.rstrip("=")), FormatError, "payload"),
    ("surplus padding", _edit("dsseEnvelope", "payload", by=lambda text: text + "===="), FormatError, "base64"),
    ("trailing bits in base64", _set("dsseEnvelope", "payload", value="e31="), FormatError, "canonical"),
    ("URL-safe base64", _edit(*SIG, by=lambda text: "-_-_" + text[4:]), FormatError, "base64"),
    ("media type", _set("mediaType", value="application/vnd.dev.sigstore.bundle.v0.2+json"), FormatError, "mediaType"),
    ("no media type", _drop("mediaType"), FormatError, "mediaType"),
    ("keyid", _set("dsseEnvelope", "signatures", 0, "keyid", value="ben"), FormatError, "keyid"),
    ("transparency entry", _set("verificationMaterial", "tlogEntries", value=["x"]), FormatError, "tlogEntries"),
    ("public key as well", _set("verificationMaterial", "publicKey", value={"hint": "x"}), FormatError, "publicKey"),
    ("unknown field in the bundle", _set("extra", value=1), FormatError, "extra"),
    ("unknown field in the envelope", _set("dsseEnvelope", "extra", value=1), FormatError, "extra"),
    ("unknown field in the signature", _set("dsseEnvelope", "signatures", 0, "extra", value=1), FormatError, "extra"),
    ("signature of raw r and s", _set(*SIG, value=b64(b"\x01" * 64)), SignatureError, "does not hold"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "reason"), [pytest.param(c, e, r, id=name) for name, c, e, r in ENVELOPES_REFUSED])
def test_envelope_refused(change: Callable[[dict[str, Any]], object], error: type[ElmgroveError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        verify_envelope(wrap(b"{}", KIND, change), pki().root, payload_type=KIND, at=NOW)


def _duplicate_envelope(raw: bytes) -> bytes:
    envelope = json.loads(raw)["dsseEnvelope"]
    return raw[:-1] + b', "dsseEnvelope": ' + json.dumps(envelope).encode() + b"}"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_duplicate_envelope, id="duplicate key"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="byte-order mark"),
        pytest.param(lambda raw: raw.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda raw: raw + b"{}", id="second document"),
        pytest.param(lambda raw: raw.replace(b'"tlogEntries": []', b'"tlogEntries": NaN'), id="NaN"),
        pytest.param(lambda raw: b"[" + raw + b"]", id="array"),
        pytest.param(lambda raw: raw[:-1], id="cut"),
        pytest.param(lambda raw: raw + b" " * (4 << 20), id="too large"),
    ],
)
def test_bundle_that_is_not_strict_json_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    spoiled = spoil(wrap(b"{}", KIND))
    with pytest.raises(FormatError):
        verify_envelope(spoiled, pki().root, payload_type=KIND, at=NOW)
    with pytest.raises(FormatError):
        signing_certificate(spoiled)


@pytest.mark.parametrize("pae", [b"DSSEV1 28 %b 2 {}", b"DSSEv1 %b {}"])
def test_legacy_pre_authentication_encodings_are_refused(pae: bytes) -> None:
    signature = pki().key.sign(pae % OMS_PAYLOAD_TYPE.encode(), ec.ECDSA(hashes.SHA256()))
    raw = wrap(b"{}", OMS_PAYLOAD_TYPE, _set(*SIG, value=b64(signature)))
    with pytest.raises(SignatureError, match="does not hold"):
        verify_envelope(raw, pki().root, payload_type=OMS_PAYLOAD_TYPE, at=NOW)


# --- OMS ---------------------------------------------------------------------------------------------------------------------------


def test_bundle_round_trip() -> None:
    raw = sign_resources(FILES, "moss", pki().key, pki().leaf)
    verified = verify_bundle(raw, pki().root, at=NOW)
    assert (dict(verified.resources), verified.signer.uri, verified.digest) == (FILES, URI, hashlib.sha256(raw).hexdigest())


def _resources(*changed: dict[str, str]) -> Callable[[dict[str, Any]], object]:
    """Other resources with the subject that follows from them, so that nothing but the resources is wrong."""

    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"] = list(changed)
        digests = [each["digest"].replace(" ", "") for each in changed if len(each["digest"].replace(" ", "")) == 64]
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()

    return change


def _file(name: str, digit: str = "a", **change: str) -> dict[str, str]:
    return {"name": name, "algorithm": "sha256", "digest": digit * 64} | change


SERIAL = ("predicate", "serialization")
TRICKS: list[tuple[str, Callable[[dict[str, Any]], object], type[ElmgroveError], str]] = [
    ("everything ignored", lambda s: (_resources()(s), _set(*SERIAL, "ignore_paths", value=["."])(s)), FormatError, "resources"),
    ("no resources", _resources(), FormatError, "resources"),
    ("too many resources", _resources(*(_file(f"f{at:05d}") for at in range(MAX_FILES + 1))), FormatError, "resources"),
    ("folder ignored", _set(*SERIAL, "ignore_paths", value=["."]), SignatureError, "leaves out files"),
    ("weights ignored", _set(*SERIAL, "ignore_paths", value=["part-0000.safetensors"]), SignatureError, "leaves out files"),
    ("weights ignored among honest names", _set(*SERIAL, "ignore_paths", value=[".git", "./manifest.json"]), SignatureError, "leaves out"),
    ("name twice, wrong digest first", _resources(_file("a", "0"), _file("a")), SignatureError, "ascending order"),
    ("same line twice", _resources(_file("a"), _file("a")), SignatureError, "ascending order"),
    ("case twins", _resources(_file("A.bin"), _file("a.bin")), SignatureError, "distinct names"),
    ("reversed order", _resources(_file("b"), _file("a")), SignatureError, "ascending order"),
    ("alias ./", _resources(_file("./a")), FormatError, "name"),
    ("alias with trailing slash", _resources(_file("a/")), FormatError, "name"),
    ("alias //", _resources(_file("a//b")), FormatError, "name"),
    ("alias /./", _resources(_file("a/./b")), FormatError, "name"),
    ("parent", _resources(_file("../leaf.pem")), FormatError, "name"),
    ("absolute", _resources(_file("/etc/passwd")), FormatError, "name"),
    ("nested", _resources(_file("sub/a")), FormatError, "name"),
    ("hidden", _resources(_file(".git")), FormatError, "name"),
    ("line feed at the end", _resources(_file("a\n")), FormatError, "name"),
    ("not ASCII", _resources(_file("ä")), FormatError, "name"),
    ("itself", _resources(_file("model.sig")), SignatureError, "lists itself"),
    ("upper-case hex", _resources(_file("a", "A")), FormatError, "digest"),
    ("hex with spaces", _resources(_file("a", digest=" ".join(["aa"] * 32))), FormatError, "digest"),
    ("short digest", _resources(_file("a", digest="aa")), FormatError, "digest"),
    ("other algorithm", _resources(_file("a", algorithm="blake2b")), FormatError, "algorithm"),
    ("unknown field in a resource", _resources(_file("a", size="3")), FormatError, "size"),
    ("legacy predicate", _set("predicateType", value="https://model_signing/Digests/v0.1"), FormatError, "predicateType"),
    ("statement type", _set("_type", value="https://in-toto.io/Statement/v0.1"), FormatError, "_type"),
    ("wrong subject digest", _set("subject", 0, "digest", "sha256", value="0" * 64), SignatureError, "subject"),
    ("upper-case subject digest", _edit("subject", 0, "digest", "sha256", by=str.upper), FormatError, "subject"),
    ("further subject digest", _set("subject", 0, "digest", "sha512", value="0" * 128), FormatError, "subject"),
    ("two subjects", lambda s: s["subject"].append(s["subject"][0]), FormatError, "subject"),
    ("no subject", lambda s: s["subject"].clear(), FormatError, "subject"),
    ("unknown field in the statement", _set("owner", value="ben"), FormatError, "owner"),
    ("unknown field in the predicate", _set("predicate", "owner", value="ben"), FormatError, "owner"),
    ("shards", _set(*SERIAL, "method", value="shards"), FormatError, "method"),
    ("md5 label", _set(*SERIAL, "hash_type", value="md5"), FormatError, "hash_type"),
    ("links allowed", _set(*SERIAL, "allow_symlinks", value=True), FormatError, "allow_symlinks"),
    ("links as text", _set(*SERIAL, "allow_symlinks", value="false"), FormatError, "allow_symlinks"),
    ("links as zero", _set(*SERIAL, "allow_symlinks", value=0), FormatError, "allow_symlinks"),
    ("links as number", _set(*SERIAL, "allow_symlinks", value=1), FormatError, "allow_symlinks"),
    ("no serialization", _drop(*SERIAL), FormatError, "serialization"),
    ("shard size", _set(*SERIAL, "shard_size", value=10), FormatError, "shard_size"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "reason"), [pytest.param(c, e, r, id=name) for name, c, e, r in TRICKS])
def test_correctly_signed_trick_is_refused(change: Callable[[dict[str, Any]], object], error: type[ElmgroveError], reason: str) -> None:
    statement = honest()
    change(statement)
    with pytest.raises(error, match=reason):
        verify_bundle(wrap(json.dumps(statement).encode(), OMS_PAYLOAD_TYPE), pki().root, at=NOW)


@pytest.mark.parametrize("ignored", [[], [".gitignore", ".git", ".github", ".gitattributes"], ["model.sig", ".git"]])
def test_what_the_stock_tool_ignores_is_harmless(ignored: list[str]) -> None:
    statement = honest()
    statement["predicate"]["serialization"]["ignore_paths"] = ignored
    raw = wrap(json.dumps(statement, indent=2).encode(), OMS_PAYLOAD_TYPE)
    assert verify_bundle(raw, pki().root, at=NOW).resources == FILES


def test_helper_recomputes_the_subject_so_that_only_the_named_fault_is_there() -> None:
    statement = honest()
    _resources(_file("a"), _file("b", "1"))(statement)
    assert statement["subject"][0]["digest"]["sha256"] == root_digest(statement["predicate"]["resources"])
    raw = wrap(json.dumps(statement).encode(), OMS_PAYLOAD_TYPE)
    assert verify_bundle(raw, pki().root, at=NOW).resources == {"a": "a" * 64, "b": "1" * 64}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda raw: raw.replace(b'{"_type"', b'{"_type":"x","_type"', 1), id="duplicate key, good one last"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="byte-order mark"),
        pytest.param(lambda raw: raw.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(lambda raw: raw + raw, id="twice"),
        pytest.param(lambda raw: raw.replace(b"false", b"NaN"), id="NaN"),
    ],
)
def test_signed_payload_that_is_not_strict_json_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    spoiled = spoil(statement_payload(FILES, "moss"))
    assert spoiled != statement_payload(FILES, "moss")
    with pytest.raises(FormatError):
        verify_bundle(wrap(spoiled, OMS_PAYLOAD_TYPE), pki().root, at=NOW)


def test_a_hundred_thousand_resources_are_refused_in_time() -> None:
    statement = honest()
    _resources(*(_file(f"f{number:05d}") for number in range(4097)))(statement)
    with pytest.raises(FormatError, match="resources"):
        verify_bundle(wrap(json.dumps(statement).encode(), OMS_PAYLOAD_TYPE), pki().root, at=NOW)
    with pytest.raises(LimitError):
        verify_bundle(wrap(b"[" * 100_000, OMS_PAYLOAD_TYPE), pki().root, at=NOW)


# --- statements --------------------------------------------------------------------------------------------------------------------


def test_statement_round_trip() -> None:
    raw = sign_statement(REVOKED, pki().key, pki().leaf)
    verified = verify_statement(raw, pki().root, at=NOW)
    assert (verified.statement, verified.signer.uri, verified.digest) == (REVOKED, URI, hashlib.sha256(raw).hexdigest())


def test_statement_about_another_consortium_than_its_signers() -> None:
    for name in ("heath", "grov", "grove-2"):
        other = REVOKED.model_copy(update={"consortium": name})
        with pytest.raises(SignerError, match="another consortium"):
            verify_statement(sign_statement(other, pki().key, pki().leaf), pki().root, at=NOW)


def test_statement_and_bundle_cannot_stand_for_each_other() -> None:
    with pytest.raises(SignatureError, match="The envelope holds"):
        verify_statement(sign_resources(FILES, "moss", pki().key, pki().leaf), pki().root, at=NOW)
    with pytest.raises(SignatureError, match="The envelope holds"):
        verify_bundle(sign_statement(REVOKED, pki().key, pki().leaf), pki().root, at=NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": "elmgrove.owner-revoked/v2"}, "tag"),
        ({"schema": "elmgrove.founded/v1"}, "owner|root"),
        ({"owner": "elmgrove://grove/owners/Ben"}, "owner"),
        ({"reason": "\x07"}, "reason"),
        ({"reason": None}, "reason"),
        ({"created": "2026-05-01T12:00:00+00:00"}, "created"),
        ({"extra": 1}, "extra"),
    ],
)
def test_signed_statement_with_a_wrong_field_is_refused(change: dict[str, Any], reason: str) -> None:
    payload = json.dumps(json.loads(canonical_bytes(REVOKED)) | change).encode()
    with pytest.raises(FormatError, match=reason):
        verify_statement(wrap(payload, STATEMENT_PAYLOAD_TYPE), pki().root, at=NOW)
