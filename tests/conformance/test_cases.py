"""Every case below ``cases/``: attacked as it says, run as it says, refused with its own exit code and words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.auditor import Auditor, auditor
from tests.conformance.case import Case, all_cases
from tests.conformance.world import attack, fork, honest_world
from tests.support.tiny_consortium import TinyConsortium


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyConsortium:
    return honest_world(tmp_path_factory.mktemp("conformance") / "world")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Auditor]:
    with auditor(tmp_path_factory.mktemp("output")) as ready:
        yield ready


@pytest.mark.parametrize("case", all_cases("cases"), ids=lambda case: case.name)
def test_case(case: Case, world: TinyConsortium, program: Auditor, tmp_path: Path) -> None:
    attacked = fork(world, tmp_path / "world")
    attack(attacked, case.steps)
    done = program.run([argument.replace("{world}", str(attacked.folder)) for argument in case.run])
    said = done.out + done.err
    assert done.code == case.exit, said
    assert "Traceback" not in said
    for words in case.says:
        assert words in said
    if case.must_fail:
        assert done.err.splitlines()[-1].startswith("elmgrove-audit: "), "the last line says in one sentence what is wrong"
