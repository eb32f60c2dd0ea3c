"""The exception tree: every class has its own exit code and wire code, a safe public text, and a line in docs/errors.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import errors
from common.errors import ElmgroveError
from tests.support.errors_page import all_errors, render

ROOT = Path(__file__).resolve().parents[2]


def test_exit_codes_and_wire_codes_are_distinct() -> None:
    classes = all_errors()
    assert len(classes) > 40
    assert len({cls.exit_code for cls in classes}) == len(classes)
    assert len({cls.code for cls in classes}) == len(classes)
    assert all(2 < cls.exit_code < 126 or cls.exit_code == 130 for cls in classes)


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_each_class_speaks_for_itself(cls: type[ElmgroveError]) -> None:
    assert cls.__doc__, "docs/errors.md prints the docstring"
    assert cls.public.endswith(".")
    assert "/" not in cls.public
    assert str(cls()) == cls.public
    assert str(cls("what happened")) == "what happened"
    assert cls.exit_code >= 10 or cls is ElmgroveError


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == render(), "run: make docs"


def test_the_module_exports_nothing_but_the_tree() -> None:
    own = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__]
    assert all(issubclass(value, ElmgroveError) for value in own)
