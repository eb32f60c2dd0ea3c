"""The cases themselves: each says in one line why, and its name says whether it must fail."""

from __future__ import annotations

import pytest

from tests.conformance.case import HERE, Case, all_cases
from tests.conformance.world import STEPS

KINDS = ("cases", "evil", "owner")
CASES = [case for kind in KINDS for case in all_cases(kind)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_well_formed(case: Case) -> None:
    assert case.must_fail == (case.exit != 0)
    assert case.why.endswith(".")
    assert "\n" not in case.why
    assert {name for name, *_ in case.steps} <= STEPS.keys()


def test_every_folder_is_a_case() -> None:
    folders = [path for kind in KINDS for path in (HERE / kind).iterdir()]
    assert all([file.name for file in folder.iterdir()] == ["case.toml"] for folder in folders)
    assert len(folders) == len(CASES)


def test_every_step_is_used() -> None:
    assert {name for case in CASES for name, *_ in case.steps} == STEPS.keys()
