"""Verifying and signing a package of 2 GB beside bare SHA-256 of the same bytes and beside ``model_signing``."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_signing_key, private_key_pem
from common.trust.oms import sign_resources
from common.weights.packages import inspect_package, verify_package
from tests.bench.harness import Result, paired
from tests.bench.weights import LARGE, OWNER, make_expert

_GB = 1e9
_AUDIT = "import sys; from common.audit.cli import main; sys.argv[0] = 'elmgrove-audit'; main()"
_SIGN = """
import sys
from pathlib import Path
from cryptography import x509
from common.trust.keys import load_private_key
from common.trust.oms import sign_resources
from common.weights.packages import inspect_package
folder, beside = map(Path, sys.argv[1:])
leaf = x509.load_pem_x509_certificate((beside / "leaf.pem").read_bytes())
key = load_private_key((beside / "key.pem").read_bytes(), None)
(folder / "model.sig").write_bytes(sign_resources(inspect_package(folder).resources, "package", key, leaf))
"""


@dataclass(frozen=True)
class _Signed:
    """A signed package of 2 GB, read once so that the page cache is warm, with the signer's key and certificates as files beside it."""

    folder: Path
    root: TrustRoot

    @property
    def files(self) -> list[Path]:
        return sorted((path for path in self.folder.iterdir()), key=lambda path: -path.stat().st_size)

    @property
    def size(self) -> float:
        return sum(path.stat().st_size for path in self.files) / _GB

    @property
    def signature(self) -> Path:
        return self.folder / "model.sig"


@contextmanager
def _signed_package() -> Iterator[_Signed]:
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        now = datetime.now(UTC).replace(microsecond=0)
        root_key, key = generate_signing_key(), generate_signing_key()
        root = TrustRoot.from_der(issue_root("bench", root_key, now).public_bytes(Encoding.DER))
        leaf = issue_leaf(root, root_key, key.public_key(), "signing", OWNER, now)
        package = make_expert(Path(name) / "package", "0" * 64, 1, shape=LARGE)
        (package / "model.sig").write_bytes(sign_resources(inspect_package(package).resources, "package", key, leaf))
        for file, content in {
            "root.pem": root.certificate.public_bytes(Encoding.PEM),
            "leaf.pem": leaf.public_bytes(Encoding.PEM),
            "key.pem": private_key_pem(key, None),
        }.items():
            (Path(name) / file).write_bytes(content)
        yield _Signed(package, root)


def verify_vs_sha256() -> Result:
    """``verify_package`` (signature, certificate, every file, every header) beside ``hashlib`` over the same files, threads for cores."""
    with _signed_package() as package:
        return paired(
            _timed(lambda: verify_package(package.folder, package.root, at=datetime.now(UTC))),
            _timed(lambda: _hash_all(package.files)),
            work=package.size,
            unit="GB/s",
            other_name="hashlib.sha256 in as many threads as there are cores",
        )


def verify_vs_model_signing() -> Result:
    """Both command lines as whole processes: ``elmgrove-audit package`` beside ``model_signing verify certificate``."""
    with _signed_package() as package:
        beside = package.folder.parent
        chain = ["--signature", str(package.signature), "--certificate_chain", str(beside / "root.pem")]
        return paired(
            _program(["-c", _AUDIT, "package", str(package.folder), "--root", str(beside / "root.pem")]),
            _program(["-W", "ignore", "-m", "model_signing", "verify", "certificate", str(package.folder), *chain]),
            work=package.size,
            unit="GB/s",
            other_name="model_signing verify certificate",
        )


def sign_vs_model_signing() -> Result:
    """What an owner's program does to sign (every file against the manifest, then the signature) beside the stock tool, as processes."""
    with _signed_package() as package:
        beside = package.folder.parent
        keys = ["--private_key", str(beside / "key.pem"), "--signing_certificate", str(beside / "leaf.pem")]
        chain = ["--signature", str(beside / "stock.sig"), "--certificate_chain", str(beside / "root.pem")]
        return paired(
            _program(["-c", _SIGN, str(package.folder), str(beside)]),
            _program(["-W", "ignore", "-m", "model_signing", "sign", "certificate", str(package.folder), *keys, *chain]),
            work=package.size,
            unit="GB/s",
            other_name="model_signing sign certificate",
        )


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    return run


def _program(arguments: list[str]) -> Callable[[], float]:
    return _timed(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))


def _hash_all(files: list[Path]) -> list[str]:
    def one(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, files))
