"""Any changed byte, anywhere, is found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.audit.logs import audit_log
from common.audit.models import audit_model
from common.audit.packages import audit_package
from common.audit.rebuild import audit_rebuild
from common.audit.receipts import audit_receipt
from common.audit.report import AuditReport
from common.errors import ElmgroveError
from common.trust.certificates import TrustRoot
from tests.support.tiny_consortium import TinyConsortium

CASES = 60  # flips of each kind of thing, ten kinds in all; every file gets some


def flips(files: list[Path], seed: int) -> Iterator[tuple[str, Path]]:
    """Flip one random bit of one file at a time, mend it afterwards."""
    rng = random.Random(seed)
    for case in range(max(CASES, 2 * len(files))):
        path = files[case % len(files)]
        original = path.read_bytes()
        if not original:
            continue
        at, bit = rng.randrange(len(original)), 1 << rng.randrange(8)
        path.write_bytes(original[:at] + bytes([original[at] ^ bit]) + original[at + 1 :])
        yield f"bit {bit:#x} of byte {at} of {path.name}", path
        path.write_bytes(original)


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def must_all_be_found(files: list[Path], audit: Callable[[], AuditReport], seed: int) -> None:
    assert not audit().faults
    for what, _ in flips(files, seed):
        report = audit()
        assert report.faults, f"{what} went unnoticed"
        assert report.as_json()["exit_code"] in range(20, 70), what
    assert not audit().faults


def test_in_a_package(honest: TinyConsortium, copy: Path) -> None:
    folder = copy / "packages" / "law-v1"
    must_all_be_found(all_files(folder), lambda: audit_package(folder, honest.root, at=honest.now), 1)


def test_in_a_package_with_a_log(honest: TinyConsortium, copy: Path) -> None:
    folder = copy / "packages" / "chess-v1"
    must_all_be_found(all_files(folder), lambda: audit_package(folder, honest.root, log=copy / "log"), 2)


def test_in_an_anchor(honest: TinyConsortium, copy: Path) -> None:
    must_all_be_found(all_files(copy / "anchor"), lambda: audit_package(copy / "anchor", honest.root, log=copy / "log"), 3)


def test_in_a_model(honest: TinyConsortium, copy: Path) -> None:
    must_all_be_found(all_files(copy / "model"), lambda: audit_model(copy / "model", honest.root, log=copy / "log"), 4)


def test_in_a_log(honest: TinyConsortium, copy: Path) -> None:
    must_all_be_found(all_files(copy / "log"), lambda: audit_log(copy / "log", honest.root), 5)


def test_in_a_log_under_a_model(honest: TinyConsortium, copy: Path) -> None:
    must_all_be_found(all_files(copy / "log"), lambda: audit_model(copy / "model", honest.root, log=copy / "log"), 6)


def test_in_the_manifests(honest: TinyConsortium, copy: Path) -> None:
    """Alone, since in the whole folders only a few flips fall into them."""
    for seed, folder in enumerate(("packages/law-v1", "anchor", "model"), 10):
        files = [copy / folder / "manifest.json", copy / folder / "model.sig"]
        if folder == "model":
            must_all_be_found(files, lambda: audit_model(copy / "model", honest.root, log=copy / "log"), seed)
        else:
            must_all_be_found(files, lambda place=copy / folder: audit_package(place, honest.root, at=honest.now), seed)  # type: ignore[misc]


def test_in_a_receipt(honest: TinyConsortium, copy: Path) -> None:
    honest.receipt(0, copy / "founding")
    kept = honest.receipt(5, copy / "kept")
    must_all_be_found([*all_files(kept), *all_files(copy / "founding")], lambda: audit_receipt(kept, honest.root), 8)


def test_in_the_parts_that_a_model_is_rebuilt_from(honest: TinyConsortium, copy: Path) -> None:
    """Only bytes that go into a model: a manifest, a signature or a privacy report that lies there is not read, the log's are."""
    packages = [copy / "packages" / name for name in ("law-v1", "medicine-v1")]
    files = [path for folder in packages for path in folder.glob("*.safetensors")] + [*(copy / "anchor").glob("model*.safetensors")]

    def audit() -> AuditReport:
        return audit_rebuild(copy / "model", honest.root, log=copy / "log", blobs=[*packages, copy / "anchor"])

    must_all_be_found(sorted(files), audit, 9)


def test_in_the_root_certificate(honest: TinyConsortium, copy: Path) -> None:
    found = 0
    for what, path in flips([copy / "root.pem"], 7):
        try:
            root = TrustRoot.from_pem(path.read_bytes())
        except ElmgroveError:
            found += 1
            continue
        if root.der == honest.root.der:
            continue  # a changed line feed between the lines of base64 changes no byte of the certificate
        assert audit_log(copy / "log", root).faults, what
        found += 1
    assert found > CASES // 2


@pytest.mark.parametrize("folder", ["model", "packages/law-v1", "anchor", "log"])
def test_any_removed_file_is_missed(honest: TinyConsortium, copy: Path, folder: str) -> None:
    for path in all_files(copy / folder):
        content = path.read_bytes()
        path.unlink()
        if folder == "model":
            report = audit_model(copy / "model", honest.root, log=copy / "log")
        elif folder == "log":
            report = audit_log(copy / "log", honest.root)
        else:
            report = audit_package(copy / folder, honest.root, log=copy / "log")
        assert report.faults, path.name
        path.write_bytes(content)
