"""A coordinator and owners as real processes with folders of their own, for tests of the owner's side."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.formats.fields import owner_uri
from common.formats.layout import PRIVACY_NAME, ROUTER_NAME, ffn_names, olmo2_shapes, part_name, router_row_name
from common.formats.safetensors import DTYPE_BYTES, encode_header
from coordinator.config import Home
from coordinator.usecases.context import open_coordinator
from coordinator.usecases.found import found_consortium
from coordinator.usecases.invite import invite
from coordinator.usecases.publish_anchor import publish_anchor
from tests.support.tiny_manifests import expert_manifest
from tests.support.tiny_weights import TINY, TinyShape, write_anchor_files

ROOT = Path(__file__).resolve().parents[2]
CONSORTIUM = "grove"
BIG = TinyShape(hidden=1024, inner=4096, layers=4, vocab=64, dtype="BF16")
"""An expert of 96 MiB in six chunks: enough to be cut off in the middle."""

_COORDINATOR = "from coordinator.cli.main import main; main()"
_OWNER = "from owner_client.cli.main import main; main()"


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**extra: str) -> dict[str, str]:
    """What our processes see: no home, no passphrase, no proxy of the machine that runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra


@dataclass
class World:
    """One coordinator under ``folder``; it is founded at once and serves between :meth:`start` and :meth:`stop`."""

    folder: Path
    port: int = field(default_factory=free_port)
    enrol_port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        found_consortium(self.home.path, name=CONSORTIUM, host="127.0.0.1", port=self.port, enrol_port=self.enrol_port, passphrase=None)

    @property
    def home(self) -> Home:
        return Home(self.folder / "coordinator")

    def invite(self, owner: str, *, minutes: int = 60) -> str:
        with contextlib.closing(open_coordinator(self.home, None)) as coordinator:
            return invite(coordinator, owner, valid_for=timedelta(minutes=minutes))

    def publish(self, name: str = "base", shape: TinyShape = TINY) -> str:
        """Publish a random anchor and return its digest."""
        checkpoint = self.folder / f"checkpoint-{name}"
        if shape.hidden <= 64:
            write_anchor_files(checkpoint, shape)
        else:
            write_cheap_anchor(checkpoint, shape)
        with contextlib.closing(open_coordinator(self.home, None)) as coordinator:
            published = publish_anchor(
                coordinator, checkpoint, name=name, licence="Apache-2.0", provenance="random", sample=(), sample_bytes=0, measure=None
            )
        return published.digest

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COORDINATOR, "serve", "--home", str(self.home.path)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert any(line.startswith("Owners call") for line in self.process.stdout), "the coordinator did not start"

    def stop(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    @property
    def arrived_bytes(self) -> int:
        """Bytes of chunks of uploads under way that are durable."""
        with contextlib.closing(sqlite3.connect(f"file:{self.home.database}?mode=ro", uri=True, timeout=10)) as database:
            [(total,)] = database.execute("SELECT coalesce(sum(size), 0) FROM upload_chunks").fetchall()
        return int(total)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[World]:
    """A founded coordinator that serves until the block ends."""
    world = World(folder)
    world.start()
    try:
        yield world
    finally:
        world.stop()


@dataclass
class Owner:
    """One owner's home, and its command line as a process."""

    home: Path
    name: str = "anna"
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _OWNER, *arguments, "--home", str(self.home)],
            env=environment(**self.variables),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code; a traceback is never right."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == expect, f"exit code {process.returncode}, not {expect}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def join(self, world: World) -> Owner:
        self.run("join", world.invite(self.name))
        return self

    def set_transfer(self, **values: int) -> None:
        """Change the ``[transfer]`` section of ``owner.toml``."""
        path = self.home / "owner.toml"
        lines = path.read_text().splitlines()
        for key, value in values.items():
            lines = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
        path.write_text("\n".join(lines) + "\n")

    def package(
        self, expert: str, anchor: str, *, shape: TinyShape = TINY, version: int = 1, supersedes: str | None = None, seed: int = 0
    ) -> Path:
        """A random package in the outbox, as training would leave it."""
        folder = self.home / "outbox" / f"{expert}-v{version}"
        write_cheap_expert(folder, shape, seed=version + seed)
        expert_manifest(folder, anchor, name=expert, owner=self.name, version=version, supersedes=supersedes, consortium=CONSORTIUM)
        assert owner_uri(CONSORTIUM, self.name) in (folder / "manifest.json").read_text()
        return folder


def wait_until(condition: Any, *, seconds: float = 60.0) -> None:
    """Look every few milliseconds until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def cheap_bytes(dtype: str, count: int, seed: int) -> bytes:
    """``count`` small finite values that differ from chunk to chunk, faster than drawing each."""
    width = DTYPE_BYTES[dtype]
    raw = bytearray(count * width)
    raw[width - 1 :: width] = b"\x3c" * count
    block = bytes((seed * 31 + at * 7) % 251 for at in range(4096))
    low = (block * (count // 4096 + 1))[seed % 97 :][:count]
    raw[0::width] = low + bytes(count - len(low))
    return bytes(raw)


def _write(path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], seed: int, *, zero: bool = False) -> None:
    head, header = encode_header(tensors)
    with path.open("wb") as out:
        out.write(head)
        for at, span in enumerate(header.tensors):
            size = span.end - span.start
            out.write(bytes(size) if zero else cheap_bytes(span.dtype, size // DTYPE_BYTES[span.dtype], seed + at))


def write_cheap_anchor(folder: Path, shape: TinyShape) -> None:
    """A checkpoint folder of any size."""
    folder.mkdir(parents=True)
    _write(
        folder / "model.safetensors",
        [(name, shape.dtype, size) for name, size in olmo2_shapes(shape.architecture, tied=shape.tied).items()],
        5,
    )
    (folder / "config.json").write_text(json.dumps(shape.config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def write_cheap_expert(folder: Path, shape: TinyShape, *, seed: int) -> None:
    """The files of a package of any size, in two parts."""
    folder.mkdir(parents=True)
    shapes = olmo2_shapes(shape.architecture, tied=shape.tied)
    names = list(ffn_names(shape.layers))
    half = len(names) // 2
    for part, chosen in enumerate((names[:half], names[half:])):
        _write(folder / part_name(part), [(name, shape.dtype, shapes[name]) for name in chosen], seed * 1000 + part * 100)
    _write(folder / ROUTER_NAME, [(router_row_name(layer), shape.dtype, (1, shape.hidden)) for layer in range(shape.layers)], seed)
    (folder / PRIVACY_NAME).write_text('{"schema": "elmgrove.privacy/v1", "self_audit": "not-performed"}')
