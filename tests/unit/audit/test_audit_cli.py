from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.audit.report import AuditReport
from common.errors import DigestError, InterruptedByUserError, LogError
from common.formats.fields import format_time
from tests.support.tiny_consortium import TinyConsortium

ROOT = Path(__file__).parents[3]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from common.audit.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_model_as_a_person_and_as_a_script(honest: TinyConsortium) -> None:
    options = [honest.folder / "model", "--log", honest.log, "--root", honest.root_pem]
    done = run("model", *options)
    assert done.returncode == 0, done.stderr
    assert "It holds." in done.stdout
    assert "slot 1: law version 1 of elmgrove://grove/owners/anna" in done.stdout
    found = json.loads(run("model", *options, "--json").stdout)
    assert found["verdict"] == "holds"
    assert {check["outcome"] for check in found["checks"]} == {"holds", "note"}


def test_a_changed_package_has_the_digests_exit_code_and_names_the_tensor(honest: TinyConsortium, copy: Path) -> None:
    part = copy / "packages" / "law-v1" / "part-0001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    done = run("package", part.parent, "--root", honest.root_pem, "--at", format_time(honest.now), "--json")
    assert done.returncode == 64
    found = json.loads(done.stdout)
    assert (found["verdict"], found["exit_code"]) == ("fails", 64)
    assert found["findings"] == [
        {
            "code": "digest",
            "message": "Tensor model.layers.1.mlp.down_proj.weight of part-0001.safetensors differs from the one "
            "elmgrove://grove/owners/anna signed.",
        }
    ]
    assert "Traceback" not in done.stderr
    assert "part-0001.safetensors" in done.stderr


def test_log_and_its_exit_codes(honest: TinyConsortium, copy: Path, tmp_path: Path) -> None:
    assert run("log", honest.log, "--root", honest.root_pem).returncode == 0
    (copy / "log" / "checkpoint").write_bytes(honest.checkpoint(4))
    assert run("log", copy / "log", "--root", honest.root_pem).returncode == 65
    later = tmp_path / "later"
    later.write_bytes(honest.checkpoint())
    grove = TinyConsortium(tmp_path / "grove")
    kept = tmp_path / "kept"
    kept.write_bytes(grove.checkpoint())
    grove.entries.clear()
    grove.found()
    assert run("log", grove.log, "--root", grove.root_pem, "--since", kept).returncode == 66


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["package", "{honest}/packages/law-v1", "--root", "{honest}/absent.pem"], 17),
        (["package", "{honest}/packages/absent", "--root", "{honest}/root.pem"], 17),
        (["package", "{honest}/packages/law-v1", "--root", "{honest}/anchor/config.json"], 62),
        (["package", "{honest}/packages/law-v1", "--root", "{honest}/root.pem", "--at", "yesterday"], 10),
        (["package", "{honest}/packages/law-v1", "--root", "{honest}/root.pem", "--at", "2020-01-01T00:00:00Z"], 62),
        (["package", "{honest}/packages/law-v1"], 2),
        (["model", "{honest}/anchor", "--root", "{honest}/root.pem", "--log", "{honest}/log"], 20),
        (["receipt", "{honest}/nothing", "--root", "{honest}/root.pem"], 17),
        (["receipt", "{honest}/log/checkpoint", "--root", "{honest}/root.pem"], 10),
        (["rebuild", "{honest}/model", "--root", "{honest}/root.pem", "--log", "{honest}/log", "--blobs", "{honest}/model/nothing"], 17),
        (["rebuild", "{honest}/model", "--root", "{honest}/root.pem", "--log", "{honest}/log"], 2),
        (["nonsense"], 2),
    ],
)
def test_every_mistake_has_its_exit_code_and_no_traceback(honest: TinyConsortium, arguments: list[str], code: int) -> None:
    done = run(*[argument.format(honest=honest.folder) for argument in arguments])
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize("command", ["package", "log", "model", "rebuild", "receipt"])
def test_help_shows_examples(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"elmgrove-audit {command}" in done.stdout


BASE_INSTALL = """
import sys
HEAVY = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "grpc", "google", "sqlalchemy"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Absent())
from common.audit.cli import main
main()
"""


def without_network() -> list[str]:
    """A command that runs another in a network namespace of its own, or nothing where this machine forbids that."""
    for command in (["unshare", "--map-root-user", "--net"], ["unshare", "--net"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


@pytest.mark.parametrize(
    "arguments",
    [
        ["package", "{honest}/packages/law-v1", "--log", "{honest}/log"],
        ["log", "{honest}/log"],
        ["model", "{honest}/model", "--log", "{honest}/log"],
        ["rebuild", "{honest}/model", "--log", "{honest}/log", "--blobs", "{honest}/packages", "--blobs", "{honest}/anchor"],
        ["receipt", "{receipt}", "--log", "{honest}/log", "--package", "{honest}/packages/law-v1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_works_on_a_base_install_without_a_network(honest: TinyConsortium, tmp_path: Path, arguments: list[str]) -> None:
    isolated = without_network()
    if not isolated:
        pytest.skip("this machine lets nobody make a network namespace (unshare --net)")
    receipt = honest.receipt(5, tmp_path / "receipt")
    filled = [argument.format(honest=honest.folder, receipt=receipt) for argument in arguments]
    command = [*isolated, sys.executable, "-c", BASE_INSTALL, *filled, "--root", str(honest.root_pem)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It holds." in done.stdout


def test_the_network_namespace_really_has_no_network() -> None:
    isolated = without_network()
    if not isolated:
        pytest.skip("this machine lets nobody make a network namespace (unshare --net)")
    script = "import socket; socket.create_connection(('127.0.0.1', 9), 2)"
    done = subprocess.run([*isolated, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in done.stderr


def test_no_heavy_module_is_even_looked_for(honest: TinyConsortium) -> None:
    script = """
import sys
sys.argv = ["elmgrove-audit", "model", *sys.argv[1:]]
from common.audit.cli import audit
audit.main(standalone_mode=False)
heavy = {"torch", "numpy", "transformers", "safetensors", "grpc", "sqlalchemy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    options = [str(honest.folder / "model"), "--log", str(honest.log), "--root", str(honest.root_pem)]
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_report_shows_the_first_faults_and_counts_the_rest() -> None:
    report = AuditReport("model", "m")
    report.fails("contents", [DigestError(f"tensor {index}") for index in range(30)])
    report.holds("config", "agrees")
    text = report.as_text()
    assert "tensor 19" in text
    assert "tensor 20" not in text
    assert "10 more" in text
    assert "30 findings" in text
    assert "agrees" in text
    with pytest.raises(DigestError, match="tensor 0"):
        report.raise_first()


def test_an_interruption_is_no_finding() -> None:
    report = AuditReport("log", "l")
    with pytest.raises(InterruptedByUserError), report.collecting(), report.checking("log"):
        raise InterruptedByUserError
    with report.collecting(), report.checking("log"):
        raise LogError("broken")
    assert [str(fault) for fault in report.faults] == ["broken"]
