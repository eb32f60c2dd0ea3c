"""The stock tool, model-signing 1.1.1, as oracle: what we sign it accepts, and what it signs we accept.

What only it accepts is in ``test_stricter_than_stock.py``.

It runs as a program, from this interpreter or, if that lacks it, from the one named by ``ELMGROVE_MODEL_SIGNING``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import CertificateError, SignatureError
from common.formats.fields import utc_now
from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_signing_key, private_key_pem
from common.trust.oms import sign_resources, verify_bundle
from coordinator.usecases.assemble import assemble_model
from tests.support.coordinator_world import Grove
from tests.support.signing import sign_folder
from tests.support.stock_tool import stock_verify
from tests.unit.trust.pki import der


def _interpreter() -> str | None:
    if importlib.util.find_spec("model_signing") and importlib.util.find_spec("OpenSSL"):
        return sys.executable
    return os.environ.get("ELMGROVE_MODEL_SIGNING")


pytestmark = pytest.mark.skipif(_interpreter() is None, reason="model-signing is not installed, and ELMGROVE_MODEL_SIGNING names no python")


class Package:
    """A flat folder to sign, its signer's key and certificate, and the root, as files of the stock tool and as ours."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder, self.signature = base, base / "moss", base / "moss" / "model.sig"
        now = utc_now()
        root_key, self.key = generate_signing_key(), generate_signing_key()
        self.root = TrustRoot.from_der(der(issue_root("grove", root_key, now)))
        self.leaf = issue_leaf(self.root, root_key, self.key.public_key(), "signing", "elmgrove://grove/owners/anna", now)
        self.now = now
        self.folder.mkdir()
        for name, content in {"manifest.json": b"{}", "part-0000.safetensors": bytes(1000), "a-b": b"1", "a.b": b"", "Z": b"2"}.items():
            (self.folder / name).write_bytes(content)
        self._write("root.pem", self.root.certificate.public_bytes(Encoding.PEM))
        self._write("leaf.pem", self.leaf.public_bytes(Encoding.PEM))
        self._write("key.pem", private_key_pem(self.key, None))

    def _write(self, name: str, content: bytes) -> None:
        (self.base / name).write_bytes(content)

    @property
    def digests(self) -> dict[str, str]:
        files = (path for path in self.folder.iterdir() if path != self.signature)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def tool(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the stock command line."""
        command = [str(_interpreter()), "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
        return subprocess.run(command, cwd=self.base, capture_output=True, text=True, timeout=120, check=False)

    def stock_sign(self, *, chain: str = "root.pem", signature: Path | None = None, options: tuple[str, ...] = ()) -> bytes:
        target = signature or self.signature
        done = self.tool(
            "sign", "certificate", self.folder, "--signature", target, "--private_key", "key.pem", "--signing_certificate", "leaf.pem",
            "--certificate_chain", chain, *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return target.read_bytes()

    def stock_accepts(self, *options: str) -> bool:
        done = self.tool("verify", "certificate", self.folder, "--signature", self.signature, "--certificate_chain", "root.pem", *options)
        assert "Verification succeeded" in done.stdout or "Verification failed" in done.stderr, done.stderr
        return done.returncode == 0


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


def test_what_we_sign_the_stock_tool_accepts_and_a_changed_file_it_refuses(package: Package) -> None:
    package.signature.write_bytes(sign_folder(package.folder, package.key, package.leaf))
    assert package.stock_accepts()
    weights = package.folder / "part-0000.safetensors"
    weights.write_bytes(bytes(999) + b"\x01")
    assert not package.stock_accepts()


@pytest.mark.parametrize("options", [(), ("--no-ignore-git-paths",)])
def test_what_the_stock_tool_signs_in_the_folder_we_accept(package: Package, options: tuple[str, ...]) -> None:
    verified = verify_bundle(package.stock_sign(options=options), package.root, at=package.now)
    assert verified.resources == package.digests
    assert verified.signer.uri == "elmgrove://grove/owners/anna"


def test_what_the_stock_tool_signs_beside_the_folder_we_accept(package: Package) -> None:
    raw = package.stock_sign(signature=package.base / "beside.sig")
    assert verify_bundle(raw, package.root, at=package.now).resources == package.digests


def test_stock_signature_changed_by_one_digest_is_refused(package: Package) -> None:
    raw = json.loads(package.stock_sign())
    other = json.loads(sign_resources({"manifest.json": "0" * 64}, "moss", package.key, package.leaf))
    raw["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    with pytest.raises(SignatureError, match="does not hold"):
        verify_bundle(json.dumps(raw).encode(), package.root, at=package.now)


def test_stock_signature_with_a_foreign_root_in_its_chain_is_refused(package: Package) -> None:
    foreign = issue_root("grove", generate_signing_key(), package.now)
    (package.base / "foreign.pem").write_bytes(foreign.public_bytes(Encoding.PEM))
    raw = package.stock_sign(chain="foreign.pem")
    with pytest.raises(CertificateError, match="not this consortium's root"):
        verify_bundle(raw, package.root, at=package.now)


def test_stock_signature_that_leaves_out_a_file_is_refused(package: Package) -> None:
    raw = package.stock_sign(options=("--ignore-paths", str(package.folder / "part-0000.safetensors")))
    with pytest.raises(SignatureError, match="leaves out files"):
        verify_bundle(raw, package.root, at=package.now)


def test_a_signature_by_a_certificate_that_has_expired_is_refused(package: Package) -> None:
    package.signature.write_bytes(sign_folder(package.folder, package.key, package.leaf))
    later = x509.load_der_x509_certificate(der(package.leaf)).not_valid_after_utc
    verify_bundle(package.signature.read_bytes(), package.root, at=later)
    with pytest.raises(CertificateError, match="had expired"):
        verify_bundle(package.signature.read_bytes(), package.root, at=later.replace(year=later.year + 1))


def test_a_model_that_a_coordinator_assembled_and_what_an_owner_pulls_are_accepted(tmp_path: Path) -> None:
    """Not the tests' own signatures: what ``publish_anchor`` and ``assemble_model`` write, laid out as their readers get them."""
    world = Grove(tmp_path)
    try:
        anchor = world.publish()
        anna = world.join("anna")
        world.push(anna, anna.package(tmp_path / "tides", anchor))
        assemble_model(world.coordinator, tmp_path / "model")
        state, pulled = world.coordinator.ledger.state(), tmp_path / "pulled"
        pulled.mkdir()
        (pulled / "model.sig").write_bytes((world.home.log / "documents" / state.anchors[anchor].document).read_bytes())
        (pulled / "manifest.json").write_bytes((world.home.log / "documents" / anchor).read_bytes())
        for entry in state.anchors[anchor].manifest.files:
            shutil.copy(world.coordinator.blobs.path(entry.sha256), pulled / entry.name)
        assert all(stock_verify(folder, world.home.root).accepted for folder in (pulled, tmp_path / "tides", tmp_path / "model"))
        assert not stock_verify(tmp_path / "model", world.home.root, signature=pulled / "model.sig").accepted
    finally:
        world.close()
