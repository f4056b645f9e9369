"""A newer format version in every kind of file: refused by name, nothing changed on disk.
What can be made again is made again instead, in this release's format."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import xxhash

from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.changes import PutVersion
from engine.errors import UnknownFormat
from engine.journal.records import FILE_HEADER_BYTES as JOURNAL_HEADER_BYTES
from engine.journal.records import RECORD_HEADER_BYTES
from engine.segments.format import FILE_HEADER_BYTES, FOOTER_BYTES, STRIPE_HEADER_BYTES
from engine.store import open_store
from engine.types import Content, Manifest
from tests.badinput.world import ORIGIN, Image, get, put, run

NEWER = 7


def reseal(path: Path, start: int, length: int, version_at: int, width: int = 2) -> None:
    """Raise a version and set the CRC-32 that ends the structure right again."""
    content = bytearray(path.read_bytes())
    content[start + version_at : start + version_at + width] = NEWER.to_bytes(width, "little")
    fields = bytes(content[start : start + length - 4])
    content[start + length - 4 : start + length] = zlib.crc32(fields).to_bytes(4, "little")
    path.write_bytes(content)


def segment_header(path: Path) -> None:
    reseal(path, 0, FILE_HEADER_BYTES, 8)


def stripe_header(path: Path) -> None:
    reseal(path, FILE_HEADER_BYTES, STRIPE_HEADER_BYTES, 4)


def footer(path: Path) -> None:
    reseal(path, path.stat().st_size - FOOTER_BYTES, FOOTER_BYTES, 8)


def journal_file(path: Path) -> None:
    reseal(path, 0, JOURNAL_HEADER_BYTES, 8)


def journal_record(path: Path) -> None:
    reseal(path, JOURNAL_HEADER_BYTES, RECORD_HEADER_BYTES, 4)


def epoch(path: Path) -> None:
    fields = msgspec.json.decode(path.read_bytes().split(b"\n")[0]) | {"format": NEWER}
    body = msgspec.json.encode(fields)
    path.write_bytes(body + b"\n" + f"{zlib.crc32(body):08x}\n".encode())


def descriptor(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"format": NEWER}))


REFUSED_AT_OPEN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "store descriptor": ("store.json", descriptor, f"store.json has format {NEWER}"),
    "node descriptors": ("nodes/*/objfs-node.json", descriptor, f"objfs-node.json has format {NEWER}"),
    "journal files": ("nodes/*/journal/*.journal", journal_file, f"journal format {NEWER} is not known"),
    "journal records": ("nodes/*/journal/*.journal", journal_record, f"version {NEWER}"),
    "epochs": ("nodes/*/journal/*.epoch", epoch, f"journal epoch format {NEWER} is not known"),
}


@pytest.mark.parametrize("kind", REFUSED_AT_OPEN)
@pytest.mark.parametrize("index_lost", [False, True])
def test_a_newer_format_is_refused_by_name(image: Image, kind: str, index_lost: bool) -> None:
    pattern, raise_version, said = REFUSED_AT_OPEN[kind]
    found = sorted(image.data.glob(pattern))
    assert found
    for path in found:
        raise_version(path)
    if index_lost:
        shutil.rmtree(image.data / "index")
    message = image.refused()
    assert said in message, message
    assert "use a newer objfs" in message, message
    assert str(image.data) in message or "journal/" in message, "it says where"


@pytest.mark.parametrize("kind", ["journal files", "epochs"])
def test_one_file_of_a_newer_format_is_enough(image: Image, kind: str) -> None:
    """A newer release wrote here; what else it changed nobody knows."""
    pattern, raise_version, said = REFUSED_AT_OPEN[kind]
    newest = sorted(image.data.glob(pattern), key=lambda path: path.name)[-1]
    raise_version(newest)
    message = image.refused()
    assert said in message and str(newest) in message, message


@pytest.mark.parametrize("what", [segment_header, stripe_header])
def test_an_open_segment_of_a_newer_format_is_refused_by_name(killed: Image, what: Callable[[Path], None]) -> None:
    """Its writer is gone, and what it left can't be judged."""
    opened = [path for path in killed.fragments() if path.read_bytes()[-FOOTER_BYTES:][:8] != b"objfsEND"]
    assert len(opened) == 6
    for path in opened:
        what(path)
    before = {path: path.read_bytes() for path in killed.fragments()}

    async def work() -> str:
        try:
            async with open_store(killed.data) as store:
                return f"{await killed.right_or_refused(store)} refused"
        except UnknownFormat as error:
            return str(error)

    message = run(work)
    assert "written by a newer release" in message, message
    assert {path: path.read_bytes() for path in killed.fragments()} == before


@pytest.mark.parametrize("what", [segment_header, stripe_header, footer])
def test_sealed_segments_of_a_newer_format_are_right_or_refused_and_kept(
    closed: Image, what: Callable[[Path], None]
) -> None:
    for path in closed.fragments():
        what(path)
    before = {path: path.read_bytes() for path in closed.fragments()}

    async def work() -> None:
        async with open_store(closed.data) as store:
            await closed.right_or_refused(store)

    run(work)
    assert {path: path.read_bytes() for path in before} == before


def test_frames_of_a_newer_format_are_refused_by_name(closed: Image) -> None:
    """All fragments agree, checksums and all, on a frame that this release can't read."""
    segment = closed.segments()[0]
    fragments = closed.fragments(segment)
    content = fragments[0].read_bytes()
    (length,) = struct.unpack_from("<I", content, FILE_HEADER_BYTES + 20)
    for path in fragments[:1]:
        changed = bytearray(path.read_bytes())
        start = FILE_HEADER_BYTES + STRIPE_HEADER_BYTES
        changed[start + 4] = NEWER
        changed[start + 92 : start + 96] = zlib.crc32(changed[start : start + 92]).to_bytes(4, "little")
        payload = bytes(changed[start : start + length])
        changed[FILE_HEADER_BYTES + 32 : FILE_HEADER_BYTES + 40] = xxhash.xxh3_64_intdigest(payload).to_bytes(
            8, "little"
        )
        path.write_bytes(changed)
        reseal_only(path)
    for path in fragments[4:]:
        path.unlink()  # so that the other fragments can't make up for it
    for path in fragments[3:4]:
        path.unlink()

    async def work() -> int:
        async with open_store(closed.data) as store:
            return await closed.right_or_refused(store)

    assert run(work) > 0


def reseal_only(path: Path) -> None:
    content = bytearray(path.read_bytes())
    end = FILE_HEADER_BYTES + STRIPE_HEADER_BYTES
    content[end - 4 : end] = zlib.crc32(bytes(content[FILE_HEADER_BYTES : end - 4])).to_bytes(4, "little")
    path.write_bytes(content)


def test_a_manifest_of_a_newer_format_is_refused_by_name(closed: Image) -> None:
    async def work() -> None:
        async with open_store(closed.data) as store:
            newer = Content(Manifest([], format=NEWER), [])
            with pytest.raises(UnknownFormat) as raised:
                await store.commit(PutVersion("bucket", "newer", newer, "e"), ORIGIN)
            assert f"manifest format {NEWER}" in str(raised.value) and "use a newer objfs" in str(raised.value)
            await put(store, "after", b"after")
            assert await get(store, "after") == b"after"

    run(work)
    closed.contents["after"] = b"after"
    try:
        closed.check()
    finally:
        del closed.contents["after"]


def test_a_keymap_of_a_newer_format_is_built_again(image: Image) -> None:
    path = image.data / "index" / "keymap.sqlite"
    db = sqlite3.connect(path)
    db.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    db.commit()
    db.close()
    image.check()


@pytest.mark.parametrize("what", [segment_header, stripe_header, footer])
def test_scrub_leaves_fragments_of_a_newer_format_alone(closed: Image, what: Callable[[Path], None]) -> None:
    """A newer release wrote them: they are neither rot nor to be written in an older format."""
    newer = [path for path in closed.fragments() if path.suffix == ".2"]
    assert len(newer) == 2
    for path in newer:
        what(path)
    before = {path: path.read_bytes() for path in newer}

    async def work() -> str:
        async with open_store(closed.data) as store:
            try:
                result = await scrub(store._parts, bytes_per_second=None)
                await repair(store._parts, bytes_per_second=None)
                return str(result)
            except UnknownFormat as error:
                return str(error)

    said = run(work)
    assert {path: path.read_bytes() for path in newer} == before, said
    assert "newer release" in said, said
