"""One bit of one file changed, at random places: the auditor's command line says what is wrong, in one sentence and by its exit code."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.errors import ElmgroveError
from common.trust.certificates import TrustRoot
from tests.conformance.auditor import auditor
from tests.conformance.world import fork, honest_world

FLIPS = 40  # of each kind of thing; tests/unit/audit/test_audit_flips.py makes hundreds without processes

COMMANDS = {
    "model": ["model", "{world}/model", "--log", "{world}/log", "--root", "{world}/root.pem"],
    "packages/law-v1": ["package", "{world}/packages/law-v1", "--log", "{world}/log", "--root", "{world}/root.pem"],
    "log": ["log", "{world}/log", "--root", "{world}/root.pem"],
    "receipts/law": ["receipt", "{world}/receipts/law", "--root", "{world}/root.pem"],
    "root.pem": ["model", "{world}/model", "--log", "{world}/log", "--root", "{world}/root.pem"],
}


def changes_nothing(before: bytes, after: bytes) -> bool:
    """A line feed of the root's PEM that became another white space is no byte of the certificate."""
    try:
        return TrustRoot.from_pem(after).der == TrustRoot.from_pem(before).der
    except ElmgroveError:
        return False


@pytest.mark.parametrize("place", COMMANDS)
def test_a_changed_bit_is_refused(place: str, tmp_path: Path) -> None:
    world = fork(honest_world(tmp_path / "honest"), tmp_path / "world")
    target, rng = world.folder / place, random.Random(place)
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size) or [target]
    arguments = [argument.replace("{world}", str(world.folder)) for argument in COMMANDS[place]]
    refused = 0
    with auditor(tmp_path) as program:
        assert program.run(arguments).code == 0
        for case in range(FLIPS):
            path = files[case % len(files)]
            original = path.read_bytes()
            at, bit = rng.randrange(len(original)), 1 << rng.randrange(8)
            changed = original[:at] + bytes([original[at] ^ bit]) + original[at + 1 :]
            if place == "root.pem" and changes_nothing(original, changed):
                continue
            path.write_bytes(changed)
            done = program.run(arguments)
            path.write_bytes(original)
            what = f"bit {bit:#x} of byte {at} of {path.name}: {done}"
            assert done.code in range(17, 80), what
            assert "Traceback" not in done.err, what
            assert done.err.splitlines()[-1].startswith("elmgrove-audit: "), what
            refused += 1
    assert refused > FLIPS // 2
