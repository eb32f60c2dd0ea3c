"""Appending to and proving from a log of one million entries, and submitting to a ledger."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.formats.entries import LogEntry, encode_entry
from common.formats.fields import format_time, utc_now
from common.formats.statements import WitnessRegistered
from common.translog.cosignature import witness_name, witness_vkey
from common.translog.merkle import consistency_proof, inclusion_proof, leaf_hash, nodes_of
from common.translog.note import encode_vkey
from common.trust.keys import generate_log_key
from common.trust.statements import sign_statement, verify_statement
from coordinator.log.ledger import Submission
from coordinator.log.view import LogView
from coordinator.log.writer import LogWriter
from tests.bench.harness import Result, paired, paired_rates
from tests.support.coordinator_world import CONSORTIUM, Grove, Member

SIZE = 1_000_000
GROUP = 256  # entries that share a commit
GROUPS = 8  # in one timed call
PROOFS = 200
THREADS = 16  # that write at a time, as many as the log's writer has
SUBMITTED = 512
DOCUMENT_BYTES = 1500  # a signed statement has about that
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ORIGIN = "elmgrove/bench/log"
VKEY = encode_vkey(ORIGIN, KEY.public_key())


def entry(number: int) -> bytes:
    """A log entry, different for each number."""
    document = hashlib.sha256(b"%d" % number).hexdigest()
    return _TEMPLATE.replace(b"0" * 64, document.encode())


_TEMPLATE = encode_entry(
    LogEntry(
        schema="elmgrove.entry/v1",
        kind="expert-accepted",
        subject="expert/cardiology@1",
        document="0" * 64,
        time="2026-01-31T08:00:00Z",
    )
)


@functools.cache
def million() -> Path:
    """A log of one million entries without documents, kept for all benchmarks of this run."""
    folder = Path(tempfile.mkdtemp(prefix="elmgrove-bench-log-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "documents").mkdir()
    writer = LogWriter(folder, VKEY, KEY, ORIGIN)
    with writer.exclusive():
        while writer.size < SIZE:
            writer.append([entry(number) for number in range(writer.size, min(SIZE, writer.size + 65_536))], ())
    return folder


def log_append_per_s() -> Result:
    """Groups of entries, each with a document of its own, beside the same files written and flushed with nothing else done."""
    writer = LogWriter(million(), VKEY, KEY, ORIGIN)
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-", dir=million().parent) as name:
        return paired(
            lambda: _append(writer), lambda: _write_bare(Path(name)), work=GROUPS * GROUP, unit="entries/s",
            other_name="the same bytes in as many files, written and flushed by as many threads", runs=7,
        )  # fmt: skip


def _append(writer: LogWriter) -> float:
    began = time.perf_counter()
    for _ in range(GROUPS):
        entries = [entry(number) for number in range(writer.size, writer.size + GROUP)]
        documents = [os.urandom(DOCUMENT_BYTES) for _ in entries]
        with writer.exclusive():
            writer.append(entries, documents)
    return time.perf_counter() - began


def _write_bare(folder: Path) -> float:
    sizes = [DOCUMENT_BYTES] * GROUP + [len(entry(0)) * GROUP, 256 * 32, 128 * 32, 64 * 32, 250]
    shutil.rmtree(folder / "bare", ignore_errors=True)
    (folder / "bare").mkdir()

    def write(group: int, first: int) -> None:
        for number in range(first, len(sizes), THREADS):
            with (folder / "bare" / f"{group}-{number}").open("wb") as stream:
                stream.write(os.urandom(sizes[number]))
                stream.flush()
                os.fsync(stream.fileno())

    began = time.perf_counter()
    for group in range(GROUPS):
        with ThreadPoolExecutor(THREADS) as pool:
            for part in [pool.submit(write, group, first) for first in range(THREADS)]:
                part.result()
    return time.perf_counter() - began


def log_proof_ms() -> Result:
    """Inclusion and consistency proofs at random places, from a log that was just opened, beside a tree of all its hashes in memory."""
    folder = million()
    whole = LogView(folder, VKEY)
    whole.refresh()
    count = whole.size
    memory = nodes_of([leaf_hash(entry(number)) for number in range(count)])
    taken: list[float] = []
    opened: list[float] = []

    def ours() -> float:
        began = time.perf_counter()
        view = LogView(folder, VKEY)
        view.refresh()
        opened.append(time.perf_counter() - began)
        first = len(taken)
        for place in _places(count):
            for prove in (view.receipt, view.consistency):
                began = time.perf_counter()
                prove(place)
                taken.append(time.perf_counter() - began)
        return 1000 * statistics.fmean(taken[first:])

    def other() -> float:
        began = time.perf_counter()
        for place in _places(count):
            inclusion_proof(place, count, memory)
            consistency_proof(place, count, memory)
        return 1000 * (time.perf_counter() - began) / (2 * PROOFS)

    times = paired_rates(ours, other, unit="ms a proof", other_name="")
    return Result(
        times.ours, times.other,
        f"a tree in memory, nothing checked; 99 in 100 of ours take under {_late(taken):.1f} ms, opening {_late(opened):.1f} ms",
        times.unit, round(1 / times.ratio, 4), times.runs, (round(1 / times.spread[1], 4), round(1 / times.spread[0], 4)),
    )  # fmt: skip


def _late(seconds: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return 1000 * sorted(seconds)[int(0.99 * len(seconds))]


def _places(size: int) -> list[int]:
    chosen = random.Random(1)
    return [chosen.randrange(1, size) for _ in range(PROOFS)]


def log_submit_vs_verify() -> Result:
    """Signed statements of an owner submitted by 32 threads, judged, folded and logged, beside verifying the same statements alone."""
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        grove = Grove(Path(name))
        member = grove.join("anna")
        waiting: list[bytes] = []

        def ours() -> float:
            waiting[:] = [_registration(member) for _ in range(SUBMITTED)]
            began = time.perf_counter()
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(lambda envelope: _submit(grove, envelope), waiting))
            return time.perf_counter() - began

        def other() -> float:
            envelopes = [_registration(member) for _ in range(SUBMITTED)]
            began = time.perf_counter()
            for envelope in envelopes:
                verify_statement(envelope, grove.coordinator.root, at=utc_now())
            return time.perf_counter() - began

        result = paired(ours, other, work=SUBMITTED, unit="entries/s", other_name="verifying their signatures and certificates alone")
        grove.close()
    return result


def _submit(grove: Grove, envelope: bytes) -> None:
    grove.coordinator.ledger.submit(lambda *_: Submission("witness-registered", "owner/anna", envelope))


def _registration(member: Member) -> bytes:
    statement = WitnessRegistered(
        schema="elmgrove.witness-registered/v1",
        consortium=CONSORTIUM,
        created=format_time(utc_now()),
        owner=member.uri,
        key=witness_vkey(witness_name(CONSORTIUM, member.name), generate_log_key()),
    )
    return sign_statement(statement, member.signing_key, member.signing_certificate)
