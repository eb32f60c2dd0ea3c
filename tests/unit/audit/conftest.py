from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_consortium import TinyConsortium


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> TinyConsortium:
    """Three owners, four experts of which one was withdrawn after the first model, two models. Read only."""
    grove = TinyConsortium(tmp_path_factory.mktemp("honest"))
    for owner in ("anna", "bert", "cara"):
        grove.admit(owner)
    grove.publish_anchor()
    law = grove.contribute("anna", "law", parts=2)
    medicine = grove.contribute("bert", "medicine")
    grove.contribute("cara", "chess")
    grove.assemble(law, medicine, out="model", top_k=2)
    grove.withdraw("bert", medicine)
    grove.assemble(law, out="later", top_k=2)
    return grove


@pytest.fixture
def copy(honest: TinyConsortium, tmp_path: Path) -> Path:
    """A copy of the consortium's files to tamper with."""
    return Path(shutil.copytree(honest.folder, tmp_path / "copy"))
