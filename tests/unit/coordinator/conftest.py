"""A founded consortium with a real log and store, and one owner in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.coordinator_world import Grove, Member


@pytest.fixture
def grove(tmp_path: Path) -> Iterator[Grove]:
    grove = Grove(tmp_path)
    yield grove
    grove.close()


@pytest.fixture
def anna(grove: Grove) -> Member:
    return grove.join("anna")
