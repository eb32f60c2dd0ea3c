"""Uploading the missing chunks of a package over several streams; memory is bounded by streams times one piece.

Chunks wait in one queue. Each stream takes the next, reads it piece by piece from the file, and a chunk counts as sent only when the
coordinator has acknowledged it as durable. Whatever was not acknowledged when a stream breaks is asked for again by the next offer.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from common.errors import DigestError, ProtocolError, UnavailableError
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import FileEntry
from common.rpc.limits import PIECE_BYTES
from common.rpc.v1 import elmgrove_pb2 as pb
from owner_client.daemon.client import Coordinator

__all__ = ["Chunk", "chunks_of", "send_chunks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk to send: its place in the manifest, and the bytes ``[start, start + size)`` of ``path``."""

    file: int
    chunk: int
    path: Path
    start: int
    size: int


def chunks_of(folder: Path, files: Sequence[FileEntry], missing: Sequence[pb.ChunkRef]) -> list[Chunk]:
    """Where the chunks that the coordinator lacks lie on our disk.

    Raises:
        ProtocolError: it asks for a chunk that the manifest does not have, or for one twice.
    """
    wanted = [(ref.file, ref.chunk) for ref in missing]
    if len(set(wanted)) != len(wanted) or any(f >= len(files) or c >= len(files[f].chunks) for f, c in wanted):
        raise ProtocolError("The coordinator asks for chunks that the manifest does not have.")
    return [_chunk(folder, files[file], file, chunk) for file, chunk in wanted]


def _chunk(folder: Path, entry: FileEntry, file: int, chunk: int) -> Chunk:
    start = chunk * CHUNK_BYTES
    return Chunk(file, chunk, folder / entry.name, start, min(CHUNK_BYTES, entry.size - start))


def send_chunks(coordinator: Coordinator, upload_id: str, chunks: Sequence[Chunk], streams: int, on_sent: Callable[[int], None]) -> None:
    """Send ``chunks`` over at most ``streams`` streams and return when every one was acknowledged.

    Args:
        coordinator: the connection.
        upload_id: from the offer.
        chunks: what is missing.
        streams: parallel streams.
        on_sent: called with the size of each acknowledged chunk, from several threads.

    Raises:
        UnavailableError: a stream broke; offer again to learn what is still missing.
        DigestError: a file changed since it was reviewed.
        ElmgroveError: whatever else the coordinator answered.
    """
    upload = _Upload(coordinator, upload_id, chunks, on_sent)
    with ThreadPoolExecutor(max_workers=min(streams, len(chunks)), thread_name_prefix="upload") as pool:
        futures = [pool.submit(upload.run_stream) for _ in range(min(streams, len(chunks)))]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if any(not future.done() or future.exception() for future in futures):
                upload.stop()
    _raise_first(futures)


def _raise_first(futures: Sequence[Future[None]]) -> None:
    """Prefer a reason over the broken streams that followed from it."""
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    reasons = [failure for failure in failures if not isinstance(failure, UnavailableError)]
    for failure in reasons or failures:
        raise failure


class _Upload:
    """What the streams of one upload share."""

    def __init__(self, coordinator: Coordinator, upload_id: str, chunks: Sequence[Chunk], on_sent: Callable[[int], None]) -> None:
        self._coordinator = coordinator
        self._upload_id = upload_id
        self._on_sent = on_sent
        self._waiting: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        for chunk in chunks:
            self._waiting.put(chunk)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._cancels: list[Callable[[], object]] = []

    def stop(self) -> None:
        """End all streams now."""
        self._stopped.set()
        with self._lock:
            for cancel in self._cancels:
                cancel()

    def run_stream(self) -> None:
        """Send chunks over one stream until none waits and all of its own are acknowledged."""
        stream = _Stream(self._upload_id, self._waiting, self._stopped)
        for ack in self._coordinator.upload(stream.messages(), self._add_cancel):
            chunk = stream.sent.pop((ack.file, ack.chunk), None)
            if chunk is None:
                raise ProtocolError("The coordinator acknowledged a chunk that was not sent.")
            self._on_sent(chunk.size)
        if stream.failure is not None:
            raise stream.failure
        if stream.sent or self._stopped.is_set():
            raise UnavailableError("The coordinator ended the upload early.")

    def _add_cancel(self, cancel: Callable[[], object]) -> None:
        with self._lock:
            self._cancels.append(cancel)
        if self._stopped.is_set():
            cancel()


class _Stream:
    """The sending half of one stream; gRPC reads :meth:`messages` from a thread of its own, one message at a time."""

    def __init__(self, upload_id: str, waiting: queue.SimpleQueue[Chunk], stopped: threading.Event) -> None:
        self._upload_id = upload_id
        self._waiting = waiting
        self._stopped = stopped
        self.sent: dict[tuple[int, int], Chunk] = {}
        self.failure: DigestError | None = None

    def messages(self) -> Iterator[pb.UploadMessage]:
        """The header, then the pieces of one chunk after another."""
        yield pb.UploadMessage(header=pb.UploadHeader(upload_id=self._upload_id))
        while not self._stopped.is_set():
            try:
                chunk = self._waiting.get_nowait()
            except queue.Empty:
                return
            self.sent[chunk.file, chunk.chunk] = chunk
            try:
                yield from _pieces(chunk)
            except (OSError, DigestError) as error:
                # An exception here would be lost in gRPC's thread; the stream ends instead and the reason is raised by its reader.
                self.failure = DigestError(f"{chunk.path.name} changed or vanished while it was uploaded: {error}")
                return


def _pieces(chunk: Chunk) -> Iterator[pb.UploadMessage]:
    with chunk.path.open("rb", buffering=0) as source:
        source.seek(chunk.start)
        offset = 0
        while offset < chunk.size:
            data = source.read(min(PIECE_BYTES, chunk.size - offset))
            if not data:
                raise DigestError("it became shorter.")
            yield pb.UploadMessage(piece=pb.UploadPiece(file=chunk.file, chunk=chunk.chunk, offset=offset, data=data))
            offset += len(data)
