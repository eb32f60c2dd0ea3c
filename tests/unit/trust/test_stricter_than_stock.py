"""Signed but hostile: every certificate and bundle that the stock OMS tool was seen to take wrongly, beside what it says today.

Each row signs a real package of a tiny consortium, so nothing is wrong but what the row names. ``stock`` is what model-signing 1.1.1
answers; a row whose answer changes with a later version fails and should be corrected. docs/formats.md, 7.5, lists the same places.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.audit.packages import audit_package
from common.errors import CertificateError, DigestError, ElmgroveError, FormatError, LayoutError, RevokedError, SignatureError, SignerError
from common.trust.certificates import TrustRoot, issue_root
from common.trust.envelope import pre_authentication_encoding
from common.trust.keys import generate_signing_key
from common.trust.oms import OMS_PAYLOAD_TYPE
from common.weights.packages import verify_package
from tests.support.stock_tool import stock_verify
from tests.support.tiny_consortium import TinyConsortium
from tests.unit.trust.pki import b64

DAY = timedelta(days=1)
ANNA = "elmgrove://grove/owners/anna"
PART = "part-0000.safetensors"
SIGN, CLIENT, SERVER = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def grove(tmp_path_factory: pytest.TempPathFactory) -> TinyConsortium:
    grove = TinyConsortium(tmp_path_factory.mktemp("grove"))
    grove.admit("anna")
    grove.admit("bert")
    grove.publish_anchor()
    grove.contribute("anna", "law")
    return grove


@pytest.fixture
def package(grove: TinyConsortium, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grove.folder / "packages" / "law-v1", tmp_path / "law-v1"))


# --- signing by hand ----------------------------------------------------------------------------------------------------------------


def honest_statement(folder: Path) -> dict[str, Any]:
    """The statement that an honest signature over the folder carries."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "model.sig")
    files = [(name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in names]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": folder.name, "digest": {"sha256": _root_digest([digest for _, digest in files])}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in files],
        },
    }


def _root_digest(digests: list[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest.replace(" ", "")) for digest in digests)).hexdigest()


def bind(statement: dict[str, Any]) -> None:
    """Give the subject the digest that follows from the resources, so that nothing but the resources is wrong."""
    statement["subject"][0]["digest"]["sha256"] = _root_digest([each["digest"] for each in statement["predicate"]["resources"]])


def bundle_of(payload: bytes, key: Any, *chain: bytes, pae: bytes | None = None) -> dict[str, Any]:
    """A bundle whose signature is right; ``chain`` is the leaf's DER and what follows it."""
    signed = pae if pae is not None else pre_authentication_encoding(OMS_PAYLOAD_TYPE, payload)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        strength = {521: hashes.SHA512(), 384: hashes.SHA384()}.get(key.curve.key_size, hashes.SHA256())
        signature = key.sign(signed, ec.ECDSA(strength))
    else:
        signature = key.sign(signed) if isinstance(key, ed25519.Ed25519PrivateKey) else b"\x00" * 64
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"x509CertificateChain": {"certificates": [{"rawBytes": b64(each)} for each in chain]}, "tlogEntries": []},
        "dsseEnvelope": {"payload": b64(payload), "payloadType": OMS_PAYLOAD_TYPE, "signatures": [{"sig": b64(signature), "keyid": ""}]},
    }


# --- certificates -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cert:
    """A certificate as a row of the table wants it; the defaults are a leaf as Elmgrove issues them. None leaves an extension out."""

    key: Any = field(default_factory=generate_signing_key)
    subject: str = "anna"
    begin: timedelta = timedelta()
    end: timedelta = 500 * DAY
    ca: bool | None = False
    path_length: int | None = None
    usages: frozenset[str] | None = frozenset({"digital_signature"})
    purposes: tuple[x509.ObjectIdentifier, ...] | None = (SIGN,)
    identity: str | None = ANNA
    identifiers: bool = True
    unknown: bool = False

    def issue(self, now: datetime, issuer: Cert | None = None, signed_by: Any = None) -> x509.Certificate:
        """Signed by ``issuer``, or by itself."""
        by = issuer or self
        builder = x509.CertificateBuilder(
            _name(by.subject), _name(self.subject), self.key.public_key(), x509.random_serial_number(), now + self.begin, now + self.end
        )
        for value, critical in self._extensions(by.key.public_key()):
            builder = builder.add_extension(value, critical=critical)
        return builder.sign(signed_by or by.key, None if isinstance(by.key, ed25519.Ed25519PrivateKey) else hashes.SHA256())

    def _extensions(self, issuer_key: Any) -> list[tuple[x509.ExtensionType, bool]]:
        found: list[tuple[x509.ExtensionType, bool]] = []
        if self.ca is not None:
            found.append((x509.BasicConstraints(ca=self.ca, path_length=self.path_length), True))
        if self.usages is not None:
            found.append((_usage(self.usages), True))
        if self.purposes is not None:
            found.append((x509.ExtendedKeyUsage(self.purposes), False))
        if self.identity is not None:
            found.append((x509.SubjectAlternativeName([x509.UniformResourceIdentifier(self.identity)]), False))
        if self.identifiers:
            found.append((x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False))
            found.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), False))
        if self.unknown:
            found.append((UNKNOWN, True))
        return found


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(wanted: frozenset[str]) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in wanted for name in names})


ISSUES = frozenset({"key_cert_sign", "crl_sign"})
ROOT = Cert(subject="root", end=5000 * DAY, ca=True, path_length=0, usages=ISSUES, purposes=None, identity=None)
MIDDLE = replace(ROOT, subject="middle", key=generate_signing_key())


@dataclass(frozen=True)
class Chain:
    """One row: a leaf, the certificate that issues it, what the bundle embeds after the leaf, and what the verifier is given as root."""

    stock: bool
    error: str | None
    leaf: Cert = field(default_factory=Cert)
    root: Cert = ROOT
    middle: Cert | None = None
    embed: str = "middle"
    trust: str = "root"
    signed_by: Any = None
    at: timedelta = DAY


RSA_CA = rsa.generate_private_key(public_exponent=65537, key_size=3072)
NOT_LEAF, EKU = "not digitalSignature alone", "not issued for signing"
TWO_LEVELS = replace(ROOT, path_length=1)

CERTIFICATES: dict[str, Chain] = {
    "as Elmgrove issues them": Chain(True, None),
    "leaf without key identifiers": Chain(True, None, Cert(identifiers=False)),
    "leaf without EKU": Chain(True, "lacks the extension ExtendedKeyUsage", Cert(purposes=None)),
    "leaf for servers": Chain(True, EKU, Cert(purposes=(SERVER,))),
    "leaf for clients: an mTLS certificate": Chain(True, EKU, Cert(purposes=(CLIENT,))),
    "leaf for any purpose": Chain(True, EKU, Cert(purposes=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,))),
    "leaf for time stamps": Chain(True, EKU, Cert(purposes=(ExtendedKeyUsageOID.TIME_STAMPING,))),
    "leaf for code signing and clients": Chain(True, EKU, Cert(purposes=(SIGN, CLIENT))),
    "leaf without key usage, for code signing": Chain(True, "lacks the extension KeyUsage", Cert(usages=None)),
    "leaf usage keyAgreement, for code signing": Chain(True, NOT_LEAF, Cert(usages=frozenset({"key_agreement"}))),
    "leaf without key usage and EKU": Chain(False, "lacks the extension KeyUsage", Cert(usages=None, purposes=None)),
    "leaf usage keyCertSign only": Chain(False, NOT_LEAF, Cert(usages=frozenset({"key_cert_sign"}), purposes=None)),
    "leaf usage digitalSignature and keyCertSign": Chain(True, NOT_LEAF, Cert(usages=frozenset({"digital_signature", "key_cert_sign"}))),
    "leaf that is a CA": Chain(True, "a certification authority's, not a leaf", Cert(ca=True)),
    "leaf without basic constraints": Chain(True, "lacks the extension BasicConstraints", Cert(ca=None)),
    "leaf without SAN": Chain(True, "lacks the extension SubjectAlternativeName", Cert(identity=None)),
    "leaf of another owner": Chain(True, "must be signed by", Cert(identity="elmgrove://grove/owners/bert")),
    "leaf of another consortium": Chain(True, "must be signed by", Cert(identity="elmgrove://heath/owners/anna")),
    "leaf with an unknown critical extension": Chain(False, "unknown critical extension", Cert(unknown=True)),
    "leaf on secp256k1": Chain(True, "not P-256", Cert(key=ec.generate_private_key(ec.SECP256K1()))),
    "leaf on brainpoolP256r1": Chain(True, "not P-256", Cert(key=ec.generate_private_key(ec.BrainpoolP256R1()))),
    "leaf on P-384": Chain(True, "not P-256", Cert(key=ec.generate_private_key(ec.SECP384R1()))),
    "leaf on P-521": Chain(True, "not P-256", Cert(key=ec.generate_private_key(ec.SECP521R1()))),
    "leaf with an Ed25519 key": Chain(False, "not P-256", Cert(key=ed25519.Ed25519PrivateKey.generate())),
    "leaf with an RSA key": Chain(False, "not P-256", Cert(key=rsa.generate_private_key(public_exponent=65537, key_size=2048))),
    "self-signed leaf as its own root": Chain(True, "not a certification authority", trust="leaf", signed_by="leaf"),
    "self-signed leaf under our root": Chain(False, "not issued by this consortium's root", signed_by="leaf"),
    "issuer's name but another key": Chain(False, "not issued by this consortium's root", signed_by=generate_signing_key()),
    "leaf expired": Chain(True, "certificate had expired", Cert(end=2 * DAY), at=3 * DAY),
    "leaf not yet valid": Chain(True, "certificate is not yet valid", Cert(begin=400 * DAY)),
    "root expired": Chain(True, "root certificate had expired", root=replace(ROOT, end=2 * DAY), at=3 * DAY),
    "back-dated leaf under an expired root": Chain(
        True, "root certificate had expired", Cert(begin=DAY, end=500 * DAY), replace(ROOT, end=2 * DAY), at=3 * DAY
    ),
    "leaf begins before its root": Chain(False, "begins before that of the root", Cert(begin=-DAY)),
    "root without key usage": Chain(True, "lacks the extension KeyUsage", root=replace(ROOT, usages=None)),
    "root without basic constraints": Chain(True, "lacks the extension BasicConstraints", root=replace(ROOT, ca=None)),
    "root for servers": Chain(True, "restricted to some extended key usage", root=replace(ROOT, purposes=(SERVER,))),
    "root usage cRLSign only": Chain(False, "not a certification authority", root=replace(ROOT, usages=frozenset({"crl_sign"}))),
    "root that is no CA": Chain(False, "not a certification authority", root=replace(ROOT, ca=False, path_length=None)),
    "root with path length 1": Chain(True, "not a certification authority", root=TWO_LEVELS),
    "root on P-384": Chain(True, "not P-256", root=replace(ROOT, key=ec.generate_private_key(ec.SECP384R1()))),
    "root with an RSA key": Chain(True, "not P-256", root=replace(ROOT, key=RSA_CA)),
    "root with an Ed25519 key": Chain(True, "not P-256", root=replace(ROOT, key=ed25519.Ed25519PrivateKey.generate())),
    "intermediate": Chain(True, "not a certification authority", root=TWO_LEVELS, middle=MIDDLE),
    "intermediate under a root of path length 0": Chain(False, "not issued by this consortium's root", middle=MIDDLE),
    "intermediate missing": Chain(False, "not issued by this consortium's root", middle=MIDDLE, embed=""),
    "only the intermediate as root": Chain(False, "not issued by", root=TWO_LEVELS, middle=MIDDLE, embed="", trust="middle"),
    "intermediate before the leaf": Chain(False, "a certification authority's, not a leaf", middle=MIDDLE, embed="first"),
}  # fmt: skip


@pytest.mark.parametrize("chain", [pytest.param(chain, id=name) for name, chain in CERTIFICATES.items()])
def test_certificate(grove: TinyConsortium, package: Path, chain: Chain) -> None:
    now = grove.now
    root = chain.root.issue(now)
    middle = chain.middle.issue(now, chain.root) if chain.middle is not None else None
    issuer = chain.leaf if chain.trust == "leaf" else chain.middle or chain.root
    leaf = chain.leaf.issue(now, issuer, chain.leaf.key if chain.signed_by == "leaf" else chain.signed_by)
    ders = {name: each.public_bytes(Encoding.DER) for name, each in {"leaf": leaf, "middle": middle, "root": root}.items() if each}
    embedded = [ders["leaf"], *([ders["middle"]] if middle is not None and chain.embed else [])]
    payload = json.dumps(honest_statement(package)).encode()
    bundle = bundle_of(payload, chain.leaf.key, *(reversed(embedded) if chain.embed == "first" else embedded))
    (package / "model.sig").write_text(json.dumps(bundle))
    pem = package.parent / "chain.pem"
    pem.write_bytes(x509.load_der_x509_certificate(ders[chain.trust]).public_bytes(Encoding.PEM))

    verdict = stock_verify(package, pem)
    assert verdict.accepted == chain.stock, verdict.text

    def ours() -> None:
        verify_package(package, TrustRoot.from_der(ders[chain.trust]), at=now + chain.at)

    if chain.error is None:
        ours()
        return
    with pytest.raises((CertificateError, SignerError), match=chain.error):
        ours()


def test_revoked_certificate(tmp_path: Path) -> None:
    grove = TinyConsortium(tmp_path)
    grove.admit("anna")
    grove.publish_anchor()
    law = grove.contribute("anna", "law")
    assert audit_package(law, grove.root, log=grove.log).faults == []
    grove.revoke("anna")
    assert stock_verify(law, grove.root_pem).accepted
    faults = audit_package(law, grove.root, log=grove.log).faults
    assert [type(fault) for fault in faults] == [RevokedError]
    assert "owner was revoked" in str(faults[0])


# --- bundles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trick:
    """One row: how the statement, the bundle or the folder deviates, and what both say."""

    stock: bool
    kind: type[ElmgroveError] | None
    reason: str
    statement: Callable[[dict[str, Any]], object] = lambda _: None
    payload: Callable[[bytes], bytes] = lambda raw: raw
    bundle: Callable[[dict[str, Any]], object] = lambda _: None
    raw: Callable[[bytes], bytes] = lambda raw: raw
    folder: Callable[[Path], object] = lambda _: None
    pae: Callable[[bytes], bytes] | None = None
    options: tuple[str, ...] = ()


def _resources(statement: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = statement["predicate"]["resources"]
    return found


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        for each in _resources(statement):
            each["name"] = new if each["name"] == old else each["name"]

    return change


def _insert(name: str, **fields: str) -> Callable[[dict[str, Any]], None]:
    """A further resource before all others, with a digest of zeros unless ``fields`` say otherwise."""

    def change(statement: dict[str, Any]) -> None:
        _resources(statement).insert(0, {"name": name, "algorithm": "sha256", "digest": "0" * 64} | fields)
        bind(statement)

    return change


def _ignore(*paths: str, keep: bool = False) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["ignore_paths"] = list(paths)
        if not keep:
            statement["predicate"]["resources"] = [each for each in _resources(statement) if each["name"] not in paths]
            if "." in paths:
                statement["predicate"]["resources"] = []
            bind(statement)

    return change


def _serialization(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["serialization"].update(fields)


def _digests(spell: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        for each in _resources(statement):
            each["digest"] = spell(each["digest"])

    return change


def _reverse(statement: dict[str, Any]) -> None:
    _resources(statement).reverse()
    bind(statement)


def _other_weights(folder: Path) -> None:
    (folder / PART).write_bytes(b"other weights")


def _flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        honest = (folder / name).read_bytes()
        (folder / name).write_bytes(honest[:-3] + bytes([honest[-3] ^ 1]) + honest[-2:])

    return change


def _place(*path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder.joinpath(*path)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"payload")

    return change


def _twin_key(key: bytes) -> Callable[[bytes], bytes]:
    """The same key once more, at the beginning and with a false value, so that the last one wins."""
    return lambda raw: raw.replace(b"{", b'{"%b": {"false": "value"}, ' % key, 1)


def _junk_in_base64(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(bundle: dict[str, Any]) -> None:
        place: Any = bundle
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = place[path[-1]][:8] + "!*\n" + place[path[-1]][8:]

    return change


def _legacy(statement: dict[str, Any]) -> None:
    """The predicate of model-signing before 0.2: resources as descriptors without a serialization."""
    statement["predicateType"] = "https://model_signing/Digests/v0.1"
    statement["subject"] = [{"name": each["name"], "digest": {"sha256": each["digest"]}} for each in _resources(statement)]
    statement["predicate"] = {"unused": "Unused, just passed due to API requirements"}


def _nan(raw: bytes) -> bytes:
    return raw.replace(b'"allow_symlinks": false', b'"allow_symlinks": false, "extra": NaN')


SIG = ("dsseEnvelope", "signatures", 0, "sig")
BUNDLES: dict[str, Trick] = {
    "honest": Trick(True, None, ""),
    "another subject name: a renamed folder": Trick(True, None, "", lambda s: s["subject"][0].update(name="elsewhere")),
    # what is left out
    "everything ignored, other weights": Trick(True, FormatError, "resources", _ignore("."), folder=_other_weights),
    "weights ignored, other weights": Trick(True, SignatureError, "leaves out files", _ignore(PART), folder=_other_weights),
    "weights ignored and listed": Trick(False, SignatureError, "leaves out files", _ignore(PART, keep=True)),
    "manifest ignored": Trick(True, SignatureError, "leaves out files", _ignore("manifest.json")),
    "an ignored name that aliases": Trick(True, SignatureError, "leaves out files", _ignore("./.git")),
    "extra file under .git": Trick(True, LayoutError, "not a regular file", _ignore(".git"), folder=_place(".git", "hook")),
    "extra file under .github": Trick(True, LayoutError, "not a regular file", _ignore(".github"), folder=_place(".github", "x")),
    "extra .gitattributes": Trick(True, LayoutError, "not allowed", _ignore(".gitattributes"), folder=_place(".gitattributes")),
    "extra file, stock told to ignore": Trick(
        True, LayoutError, "holds extra.bin", folder=_place("extra.bin"), options=("--ignore_unsigned_files",)
    ),
    # names
    "name twice, wrong digest first": Trick(True, SignatureError, "ascending order", _insert("manifest.json")),
    "alias ./ with a wrong digest first": Trick(True, FormatError, "resources.0.name", _insert("./manifest.json")),
    "name ./a": Trick(True, FormatError, "name", _rename(PART, f"./{PART}")),
    "name a/": Trick(True, FormatError, "name", _rename(PART, f"{PART}/")),
    "name a//b": Trick(True, FormatError, "name", _insert("manifest.json//.")),
    "name a/./b": Trick(True, FormatError, "name", _insert("./././manifest.json")),
    "name ../x, read outside the folder": Trick(
        True, FormatError, "name", _insert("../outside.pem", digest=hashlib.sha256(b"outside").hexdigest()),
        folder=lambda f: (f.parent / "outside.pem").write_bytes(b"outside"), options=("--ignore_unsigned_files",)),
    "name sub/../x": Trick(False, FormatError, "name", _rename(PART, f"sub/../{PART}")),
    "absolute name": Trick(False, FormatError, "name", _rename(PART, f"/{PART}")),
    "order reversed": Trick(True, SignatureError, "ascending order", _reverse),
    # digests
    "upper-case digests": Trick(True, FormatError, "digest", _digests(str.upper)),
    "digests with spaces": Trick(True, FormatError, "digest", _digests(lambda text: " ".join([text[:32], text[32:]]))),
    "hash type md5": Trick(True, FormatError, "hash_type", _serialization(hash_type="md5")),
    "allow_symlinks as text": Trick(True, FormatError, "allow_symlinks", _serialization(allow_symlinks="false")),
    "further subject digest": Trick(True, FormatError, "sha512", lambda s: s["subject"][0]["digest"].update(sha512="0" * 128)),
    "wrong subject digest": Trick(False, SignatureError, "subject", lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)),
    "two subjects": Trick(False, FormatError, "subject", lambda s: s["subject"].append(s["subject"][0])),
    "unknown field in the statement": Trick(True, FormatError, "owner", lambda s: s.update(owner="bert")),
    "unknown field in the predicate": Trick(True, FormatError, "owner", lambda s: s["predicate"].update(owner="bert")),
    # JSON, twice readable
    "statement key twice": Trick(True, FormatError, "same key twice", payload=_twin_key(b"predicate")),
    "envelope twice in the bundle": Trick(True, FormatError, "same key twice", raw=_twin_key(b"dsseEnvelope")),
    "NaN in the statement": Trick(True, FormatError, "NaN", payload=_nan),
    "byte-order mark in the statement": Trick(True, FormatError, "byte-order mark", payload=lambda raw: b"\xef\xbb\xbf" + raw),
    "statement in UTF-16": Trick(True, FormatError, "not UTF-8", payload=lambda raw: raw.decode().encode("utf-16")),
    "junk inside the payload's base64": Trick(True, FormatError, "base64", bundle=_junk_in_base64("dsseEnvelope", "payload")),
    "junk inside the signature's base64": Trick(True, FormatError, "base64", bundle=_junk_in_base64(*SIG)),
    "second signature": Trick(True, FormatError, "signatures",
        bundle=lambda b: b["dsseEnvelope"]["signatures"].append({"sig": b64(b"forged"), "keyid": ""})),
    "a key ID": Trick(True, FormatError, "keyid", bundle=lambda b: b["dsseEnvelope"]["signatures"][0].update(keyid="bert")),
    "legacy predicate": Trick(True, FormatError, "subject: Tuple should have at most 1 item", _legacy),
    "legacy pre-authentication encoding": Trick(True, SignatureError, "does not hold",
        pae=lambda payload: f"DSSEV1 28 {OMS_PAYLOAD_TYPE} {len(payload)} {payload!r}".encode()),
    # what the stock tool refuses too
    "extra file": Trick(False, LayoutError, "holds extra.bin", folder=_place("extra.bin")),
    "missing file": Trick(False, LayoutError, "lacks privacy.json", folder=lambda f: (f / "privacy.json").unlink()),
    "changed byte": Trick(False, DigestError, "privacy.json differs", folder=_flip("privacy.json")),
    "payload type": Trick(False, SignatureError, "The envelope holds", bundle=lambda b: b["dsseEnvelope"].update(payloadType="text/plain")),
    "trailing garbage": Trick(False, FormatError, "malformed", raw=lambda raw: raw + b"}"),
    "unknown field in the bundle": Trick(False, FormatError, "extra", bundle=lambda b: b.update(extra=1)),
}  # fmt: skip


@pytest.mark.parametrize("trick", [pytest.param(trick, id=name) for name, trick in BUNDLES.items()])
def test_bundle(grove: TinyConsortium, package: Path, trick: Trick) -> None:
    anna = grove.owners["anna"]
    statement = honest_statement(package)
    trick.statement(statement)
    payload = trick.payload(json.dumps(statement).encode())
    pae = trick.pae(payload) if trick.pae is not None else None
    bundle = bundle_of(payload, anna.key, anna.certificate.public_bytes(Encoding.DER), pae=pae)
    trick.bundle(bundle)
    (package / "model.sig").write_bytes(trick.raw(json.dumps(bundle).encode()))
    trick.folder(package)

    verdict = stock_verify(package, grove.root_pem, *trick.options)
    assert verdict.accepted == trick.stock, verdict.text
    if trick.kind is None:
        verify_package(package, grove.root, at=grove.now, owner=ANNA)
        return
    with pytest.raises(trick.kind, match=trick.reason):
        verify_package(package, grove.root, at=grove.now, owner=ANNA)


def test_linked_folder(grove: TinyConsortium, package: Path) -> None:
    """With --allow_symlinks the stock tool leaves a folder behind a link uncovered; here a link is refused where it stands."""
    (package.parent / "elsewhere").mkdir()
    (package / "sub").symlink_to(package.parent / "elsewhere")
    with pytest.raises(LayoutError, match="'sub', which is not a regular file"):
        verify_package(package, grove.root, at=grove.now)


def test_another_consortiums_root(grove: TinyConsortium, package: Path, tmp_path: Path) -> None:
    other = issue_root("grove", generate_signing_key(), grove.now)
    (tmp_path / "other.pem").write_bytes(other.public_bytes(Encoding.PEM))
    assert not stock_verify(package, tmp_path / "other.pem").accepted
    with pytest.raises(CertificateError, match="not issued by this consortium's root"):
        verify_package(package, TrustRoot.from_der(other.public_bytes(Encoding.DER)), at=grove.now)
