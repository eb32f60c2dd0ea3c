"""The walls between rooms at run time: what a module really imports, in a process of its own (lazy imports hide from static analysis)."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {"torch", "numpy", "transformers", "tokenizers", "safetensors"}
NETWORK = {"grpc", "google.protobuf"}

WALLS = {
    "auditor": (
        ["common.audit", "common.weights", "common.ledger", "common.trust", "common.translog", "common.formats", "common.errors"],
        TENSORS | NETWORK | {"sqlalchemy", "coordinator", "owner_client", "common.lowrank"},
    ),
    "materialising": (["common.lowrank"], (TENSORS - {"numpy"}) | NETWORK | {"sqlalchemy"}),
    "control plane": (
        ["coordinator.service", "coordinator.usecases", "coordinator.store", "coordinator.log", "coordinator.config"],
        {"torch", "transformers", "coordinator.compute"},
    ),
    "owner's daemon": (["owner_client.daemon", "owner_client.keys"], {"torch", "transformers", "owner_client.data", "common.textdata"}),
    "training": (
        ["owner_client.training", "owner_client.data"],
        NETWORK | {"owner_client.keys", "owner_client.daemon", "common.rpc", "common.trust"},
    ),
}


def modules_of(room: str) -> Iterator[str]:
    """``room`` and every module below it, by name, without importing them here."""
    yield room
    folder = ROOT / Path(*room.split("."))
    if folder.is_dir():
        for module in pkgutil.walk_packages([str(folder)], prefix=f"{room}."):
            yield module.name


@pytest.mark.parametrize("wall", WALLS)
def test_a_room_stays_behind_its_wall(wall: str) -> None:
    rooms, forbidden = WALLS[wall]
    names = [name for room in rooms for name in modules_of(room)]
    assert len(names) > len(rooms), "the rooms hold modules"
    script = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(json.dumps(sorted(f for f in {sorted(forbidden)!r} if f in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("program", ["common.audit.cli", "coordinator.cli.main", "owner_client.cli.main"])
def test_asking_for_help_is_quick_and_needs_no_tensors(program: str) -> None:
    script = (
        f"import sys; sys.argv = ['x', '--help']\nfrom {program} import main\n"
        "code = 0\ntry: main()\nexcept SystemExit as stop: code = stop.code\n"
        "assert not code, code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
