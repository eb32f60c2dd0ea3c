"""Verifying a signed package beside bare SHA-256 of the same bytes with as many threads."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.keys import generate_signing_key
from common.trust.oms import sign_folder
from common.weights.packages import verify_package
from tests.bench.harness import Result, paired
from tests.bench.weights import MIB, OWNER, make_inputs


def verify_vs_sha256() -> Result:
    """``verify_package`` (signature, every file and every tensor) beside ``hashlib.sha256`` over the same files."""
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        package = make_inputs(Path(name), experts=1)[1]
        root = _sign(package)
        files = [path for path in package.iterdir() if path.is_file()]
        total = sum(path.stat().st_size for path in files) / MIB
        return paired(
            _timed(lambda: verify_package(package, root, at=datetime.now(UTC))),
            _timed(lambda: _hash_all(files)),
            work=total,
            unit="MiB/s",
            other_name="hashlib.sha256 in as many threads as there are cores",
        )


def _sign(package: Path) -> TrustRoot:
    now = datetime.now(UTC).replace(microsecond=0)
    root_key, key = generate_signing_key(), generate_signing_key()
    root = TrustRoot.from_der(issue_root("bench", root_key, now).public_bytes(Encoding.DER))
    leaf = issue_leaf(root, root_key, key.public_key(), "signing", OWNER, now)
    (package / "model.sig").write_bytes(sign_folder(package, key, leaf))
    return root


def _timed(action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    return run


def _hash_all(files: list[Path]) -> list[str]:
    def one(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, files))
