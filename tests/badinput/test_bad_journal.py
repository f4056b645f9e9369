"""Journal and epoch files that are damaged, cut, extended, swapped or gone: up to m replicas
cost nothing; what was acknowledged is never dropped in silence; a torn tail is cut."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.changes import CreateBucket
from engine.journal.reading import FileKey
from engine.journal.records import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RawRecord,
    decode_payload,
    decode_record,
    encode_header,
    encode_record,
    parse_journal_name,
)
from engine.store import open_store
from tests.badinput.world import (
    ORIGIN,
    Contents,
    Image,
    cut,
    extend,
    flip,
    make_image,
    put,
    run,
    some_contents,
    swap,
    zero,
)

Place = Callable[[list[tuple[int, RawRecord]]], int]
RIDING = 60_000


def records_of(path: Path) -> list[tuple[int, RawRecord]]:
    """(offset, record) of every whole record."""
    key: FileKey | None = parse_journal_name(f"journal/{path.name}")
    assert key is not None
    content, offset, found = path.read_bytes(), FILE_HEADER_BYTES, []
    while (record := decode_record(content, offset, key[0])) is not None:
        found.append((offset, record))
        offset += record.length
    return found


def middle(records: list[tuple[int, RawRecord]]) -> tuple[int, RawRecord]:
    """A record with a frame riding in it, others before and behind it."""
    return next((offset, record) for offset, record in records[2:-3] if len(record.attachments) > 1_000)


PLACES: dict[str, Place] = {
    "file magic": lambda records: 0,
    "file version": lambda records: 8,
    "store id": lambda records: 12,
    "epoch": lambda records: 28,
    "first lsn": lambda records: 36,
    "file crc": lambda records: 44,
    "first record": lambda records: FILE_HEADER_BYTES,
    "record magic": lambda records: middle(records)[0],
    "record version": lambda records: middle(records)[0] + 4,
    "payload length": lambda records: middle(records)[0] + 8,
    "attachments length": lambda records: middle(records)[0] + 12,
    "lsn": lambda records: middle(records)[0] + 16,
    "record epoch": lambda records: middle(records)[0] + 24,
    "record sum": lambda records: middle(records)[0] + 32,
    "record crc": lambda records: middle(records)[0] + 40,
    "payload": lambda records: middle(records)[0] + RECORD_HEADER_BYTES + 3,
    "attachment": lambda records: middle(records)[0] + middle(records)[1].length - 100,
    "last record": lambda records: records[-1][0],
    "last payload": lambda records: records[-1][0] + RECORD_HEADER_BYTES + 1,
}
DAMAGE: dict[str, Callable[[Path, int], None]] = {"flip": flip, "zero": zero, "cut": cut}
CASES = [(place, "flip") for place in PLACES] + [
    (place, kind) for kind in ("zero", "cut") for place in ("file magic", "record magic", "attachment", "last record")
]


def forget_index(image: Image) -> None:
    """So that nothing but the journal says what there was."""
    shutil.rmtree(image.data / "index")


@pytest.mark.parametrize("index_lost", [False, True])
@pytest.mark.parametrize(("place", "kind"), CASES)
def test_damage_to_m_replicas_of_every_file_costs_nothing(
    image: Image, place: str, kind: str, index_lost: bool
) -> None:
    for replicas in image.journals().values():
        assert len(replicas) == 3
        for path in replicas[:2]:
            DAMAGE[kind](path, PLACES[place](records_of(path)))
    if index_lost:
        forget_index(image)
    image.check()
    image.check()


@pytest.mark.parametrize("replicas", [2, 3])
def test_garbage_behind_the_end_is_cut(image: Image, replicas: int) -> None:
    for found in image.journals().values():
        for path in found[:replicas]:
            extend(path, b"\x5a" * 5_000)
    image.check()


@pytest.mark.parametrize("index_lost", [False, True])
@pytest.mark.parametrize(("place", "kind"), [case for case in CASES if case[1] != "cut" and "last" not in case[0]])
def test_an_acknowledged_record_damaged_on_all_replicas_is_refused_by_name(
    image: Image, place: str, kind: str, index_lost: bool
) -> None:
    """In the last epoch's file, with whole records behind it."""
    name, replicas = list(image.journals().items())[-1]
    offset = PLACES[place](records_of(replicas[0]))
    for path in replicas:
        DAMAGE[kind](path, offset)
    if index_lost:
        forget_index(image)
    message = image.refused()
    assert message.startswith("JournalCorrupt: ") and "whole on no node" in message, message
    assert f"journal/{name}" in message and "bring back the nodes" in message, message


@pytest.mark.parametrize("place", ["record magic", "attachment", "last record", "file magic"])
def test_an_earlier_epoch_damaged_on_all_replicas_is_refused_by_name(image: Image, place: str) -> None:
    replicas = next(iter(image.journals().values()))
    for path in replicas:
        flip(path, PLACES[place](records_of(path)))
    forget_index(image)
    message = image.refused()
    assert message.startswith("JournalCorrupt: ") and "whole on no node" in message, message


def test_a_keymap_that_has_the_damaged_record_still_serves_and_heals_nothing_away(image: Image) -> None:
    """An earlier epoch's record is gone from the journal, but the keymap has applied it: the
    store opens, whatever rode in the record is refused, and no replica is shortened."""
    replicas = next(iter(image.journals().values()))
    offset, damaged = middle(records_of(replicas[0]))
    sizes = {path: path.stat().st_size for path in replicas}
    for path in replicas:
        flip(path, offset + damaged.length - 100)

    async def work() -> None:
        async with open_store(image.data) as store:
            assert await image.right_or_refused(store) == 1

    run(work)
    assert {path: path.stat().st_size for path in replicas} == sizes


@pytest.mark.parametrize("index_lost", [False, True])
def test_an_unacknowledged_tail_is_cut(killed: Image, index_lost: bool) -> None:
    """As power loss leaves it: the newest records never synced, the first of them lost on
    all replicas, one behind it kept on one."""
    _, replicas = list(killed.journals().items())[-1]
    newest = decode_payload(records_of(replicas[0])[-1][1])
    torn = encode(newest.lsn + 2, newest.durable_lsn, replicas[0])
    for path in replicas:
        extend(path, b"\0" * 300)
    extend(replicas[1], torn)
    if index_lost:
        forget_index(killed)
    killed.check()
    killed.check()


def encode(lsn: int, durable_lsn: int, path: Path) -> bytes:
    key = parse_journal_name(f"journal/{path.name}")
    assert key is not None
    raw = encode_record(lsn, 1, ORIGIN, CreateBucket("torn"), durable_lsn)
    return encode_header(raw, key[0]) + raw.payload


def test_acknowledged_records_cut_off_all_replicas_are_missed(image: Image) -> None:
    """DATA/index knows that they were durable; without it a cut tail can't be told from a
    torn one."""
    _, replicas = list(image.journals().items())[-1]
    for path in replicas:
        cut(path, records_of(path)[-2][0])
    message = image.refused()
    assert message.startswith("JournalCorrupt: ") and "was durable once" in message, message
    assert "bring back the nodes" in message and "move DATA/index away" in message, message


def test_a_lost_epoch_is_missed(image: Image) -> None:
    """Every node is an old copy, DATA/index is not."""
    name, _ = list(image.journals().items())[-1]
    for path in image.data.glob(f"nodes/*/journal/{name[:8]}*"):
        path.unlink()
    message = image.refused()
    assert message.startswith("JournalCorrupt: ") and "these are older nodes" in message, message


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_store_without_its_journal_is_not_opened_as_an_empty_one(image: Image, index_lost: bool) -> None:
    for path in image.data.glob("nodes/*/journal"):
        shutil.rmtree(path)
    if index_lost:
        forget_index(image)
    message = image.refused()
    assert message.startswith("JournalCorrupt: ") and "no node holds any of the journal" in message, message


def test_replicas_swapped_between_nodes_are_the_same(image: Image) -> None:
    for replicas in image.journals().values():
        swap(replicas[0], replicas[1])
    image.check()


@pytest.mark.parametrize("index_lost", [False, True])
def test_files_swapped_on_m_nodes_cost_nothing(image: Image, index_lost: bool) -> None:
    """One epoch's file under another's name."""
    names = list(image.journals())
    swapped = 0
    for node in sorted(image.data.glob("nodes/*")):
        one, other = node / "journal" / names[0], node / "journal" / names[1]
        if one.exists() and other.exists() and swapped < 2:
            swap(one, other)
            swapped += 1
    assert swapped, "no node holds both files"
    if index_lost:
        forget_index(image)
    image.check()


def test_replicas_of_another_store_on_m_nodes_cost_nothing(image: Image, tmp_path: Path) -> None:
    foreign = list(make_image(tmp_path).journals().values())
    for replicas, theirs in zip(image.journals().values(), [*foreign, *foreign], strict=False):
        for mine in replicas[:2]:
            shutil.copy(theirs[0], mine)
    for path in sorted(image.data.glob("nodes/*/journal/*.epoch"))[:2]:
        shutil.copy(next((tmp_path / "data").glob("nodes/*/journal/*.epoch")), path)
    forget_index(image)
    image.check()
    image.check()


@pytest.mark.parametrize("kind", ["flip", "zero", "cut", "gone", "empty"])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("index_lost", [False, True])
def test_damaged_epoch_files_cost_nothing(image: Image, kind: str, everywhere: bool, index_lost: bool) -> None:
    """A journal file's own header says as much as its epoch's file."""
    nodes = sorted(image.data.glob("nodes/*"))
    for node in nodes if everywhere else nodes[:2]:
        for path in node.glob("journal/*.epoch"):
            match kind:
                case "gone":
                    path.unlink()
                case "empty":
                    cut(path, 0)
                case _:
                    DAMAGE[kind](path, 5)
    if index_lost:
        forget_index(image)
    image.check()
    added: Contents = some_contents("later", 9)

    async def work() -> None:
        async with open_store(image.data) as store:
            for key, content in added.items():
                await put(store, key, content)

    run(work)
    contents, image.contents = image.contents, image.contents | added
    try:
        image.check()
    finally:
        image.contents = contents
