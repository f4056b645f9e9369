"""Content-defined chunking: a stream of bytes cut where its content says (FastCDC).

Knows sizes only; nothing of hashes, frames or stores. A Chunker belongs to one stream and
one task at a time (it may be used from a worker thread).
"""

from __future__ import annotations

from pyfastcdc import FastCDC

from engine import limits
from engine.interfaces import Buffer

# Cutting is put off until this much waits, so that bytes fed in small pieces are joined
# about twice on average instead of once for every piece.
WORK_BYTES = 2 * limits.CHUNK_BYTES_MAX


class Chunker:
    """Cuts one stream. Cut points depend on the bytes alone, not on how they were fed.

    Buffers fed must not change afterwards: chunks are views of them where possible. Holds
    less than WORK_BYTES between calls.
    """

    def __init__(self) -> None:
        # 1 µs to make; an instance keeps no state between buffers but is not shared, as its
        # iterators are not documented to be safe for concurrent use.
        self._cutter = FastCDC(
            avg_size=limits.CHUNK_BYTES_AVERAGE,
            min_size=limits.CHUNK_BYTES_MIN,
            max_size=limits.CHUNK_BYTES_MAX,
        )
        self._pieces: list[Buffer] = []
        self._waiting = 0

    def feed(self, data: Buffer) -> list[Buffer]:
        """Take the next bytes of the stream; returns the chunks that are complete now."""
        if len(data) == 0:
            return []
        self._pieces.append(data)
        self._waiting += len(data)
        return self._cut(final=False) if self._waiting >= WORK_BYTES else []

    def finish(self) -> list[Buffer]:
        """The stream has ended: its last chunks (none for an empty stream)."""
        return self._cut(final=True) if self._waiting else []

    def _cut(self, *, final: bool) -> list[Buffer]:
        joined = memoryview(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        assert joined.nbytes == self._waiting and joined.contiguous, "pieces are runs of bytes"
        chunks: list[Buffer] = []
        start = 0
        for chunk in self._cutter.cut_buf(joined):
            end = start + chunk.length
            # A chunk that reaches the end of the buffer may only seem to end there, unless
            # it has the greatest length a chunk can have.
            if end == len(joined) and chunk.length < limits.CHUNK_BYTES_MAX and not final:
                break
            chunks.append(joined[start:end])
            start = end
        rest = joined[start:]
        self._pieces = [rest] if len(rest) else []
        self._waiting = len(rest)
        return chunks
