"""The threat model names a test for every guarantee, and every test it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
GUARANTEES = re.findall(r"^\| (G\d+) \|(.*)\|$", TEXT, re.MULTILINE)


def test_guarantees_have_numbers_that_grow() -> None:
    numbers = [int(number[1:]) for number, _ in GUARANTEES]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(("number", "row"), GUARANTEES, ids=[number for number, _ in GUARANTEES])
def test_a_guarantee_names_tests_that_exist(number: str, row: str) -> None:
    named = re.findall(r"`((?:tests/)?[A-Za-z0-9_./-]+)`", row.rsplit("|", 1)[1])
    tests = [name for name in named if name.startswith("tests/")]
    cases = [name for name in named if name.endswith("_fail")]
    assert tests or cases, f"{number} names no test"
    for name in tests:
        assert (ROOT / name).exists(), f"{number} names {name}, which does not exist"
    for name in cases:
        places = [ROOT / "tests" / "conformance" / kind / name for kind in ("cases", "evil", "owner")]
        assert any(place.is_dir() for place in places), f"{number} names {name}, which does not exist"
