"""Renames, links and attributes: what the mount asks of the tree over the keys.

A directory is a key prefix ending in "/", with or without a marker object of that key.
Everything checks before it changes anything. Called by apply.decide(), one thread.
"""

from __future__ import annotations

from msgspec.structs import replace

from engine import limits
from engine.changes import CommitResult, Link, Rename, SetAttributes
from engine.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidName,
    IsADirectory,
    NoSuchKey,
    NotADirectory,
)
from engine.keymap.rows import check_key, encode, key_is_hidden
from engine.keymap.state import State, range_end
from engine.types import Attributes, Bucket, Version, Versioning

_ASIDE = -1  # the bucket id under which an exchange parks one side, within its transaction


def rename(state: State, change: Rename) -> CommitResult:
    """Raises NoSuchKey, AlreadyExists, IsADirectory, NotADirectory, DirectoryNotEmpty,
    InvalidName (into itself, or names that would become too long)."""
    source, target = state.bucket(change.bucket), state.bucket(change.target_bucket)
    check_key(change.key)
    check_key(change.target_key)
    here, there = (source, change.key), (target, change.target_key)
    if change.exchange:
        return _exchange(state, here, there)
    if change.key.endswith("/") != change.target_key.endswith("/"):
        raise InvalidName("a directory's new name ends in /, a file's does not")
    if change.key.endswith("/"):
        result = _rename_directory(state, change, here, there)
    else:
        result = _rename_file(state, change, here, there)
    if change.keep_parent:
        state.leave_parent(source, change.key)
    return result


Place = tuple[Bucket, str]


def _result(state: State, version: Version | None = None) -> CommitResult:
    return CommitResult(state.lsn, state.time_ns, version=version)


def _is_directory(state: State, bucket: Bucket, name: str) -> bool:
    return state.any_below(bucket, name.removesuffix("/") + "/")


def _rename_file(state: State, change: Rename, here: Place, there: Place) -> CommitResult:
    version = state.current(*here)
    if version is None:
        raise NoSuchKey(f"there is no {here[1]} in bucket {here[0].name}")
    old = state.current(*there)
    if change.no_replace and (old is not None or _is_directory(state, *there)):
        raise AlreadyExists(f"{there[1]} exists in bucket {there[0].name}")
    if _is_directory(state, *there):
        raise IsADirectory(f"{there[1]} is a directory")
    state.touch(*here, version.file_id)
    if old is not None and old.file_id == version.file_id:  # rename(2): two names of one file both stay
        return _result(state, version)
    state.touch(*there, old.file_id if old is not None else 0)
    return _result(state, _move(state, version, here[0], there))


def _move(state: State, version: Version, source: Bucket, there: Place) -> Version:
    """The version goes, with its file id, from its key to another one."""
    state.hide(source, version)
    return state.publish(there[0], replace(version, key=there[1]))


def _rename_directory(state: State, change: Rename, here: Place, there: Place) -> CommitResult:
    if not state.any_below(*here):
        raise NoSuchKey(f"there is no directory {here[1]} in bucket {here[0].name}")
    same = here[0].bucket_id == there[0].bucket_id
    if same and here[1] == there[1]:
        return _result(state)
    if same and there[1].startswith(here[1]):
        raise InvalidName(f"{here[1]} can't be moved into itself")
    if state.any_below(there[0], there[1], beside=True):
        raise (AlreadyExists if change.no_replace else DirectoryNotEmpty)(f"{there[1]} is not empty")
    marker = state.current(*there)
    file = state.current(there[0], there[1].removesuffix("/"))
    if change.no_replace and (marker is not None or file is not None):
        raise AlreadyExists(f"{there[1]} exists in bucket {there[0].name}")
    if file is not None and marker is None:
        raise NotADirectory(f"{there[1].removesuffix('/')} is a file")
    _check_lengths(state, here, there[1])
    state.touch(*here)
    state.touch(*there)
    whole = _moves_whole((here, there))
    if marker is not None and (whole or state.current(*here) is None):
        state.hide(there[0], marker)  # else the moved marker takes its place
    if whole:
        _move_whole(state, here, there)
    else:
        for version in state.visible_below(*here):
            _move(state, version, here[0], (there[0], there[1] + version.key[len(here[1]) :]))
    return _result(state)


def _check_lengths(state: State, here: Place, target: str) -> None:
    clause, end = range_end(here[1])
    longest = state.db.execute(
        f"SELECT max(length(CAST(key AS BLOB))) FROM keys WHERE bucket_id = ? AND key >= ?{clause} AND marker = 0",
        (here[0].bucket_id, here[1], *end),
    ).fetchone()[0]
    if longest is not None and longest - len(here[1].encode()) + len(target.encode()) > limits.KEY_BYTES_MAX:
        raise InvalidName(f"a key below {here[1]} would get longer than {limits.KEY_BYTES_MAX} bytes")


def _moves_whole(places: tuple[Place, Place]) -> bool:
    """Whether rows can simply change their keys: there is no history to keep, and no key
    becomes visible or hidden by it."""
    return all(
        bucket.versioning is Versioning.UNVERSIONED and key.endswith("/") and not key_is_hidden(key)
        for bucket, key in places
    )


def _move_whole(state: State, here: tuple[Bucket | int, str], there: tuple[Bucket | int, str]) -> None:
    """Everything below a prefix in one statement. Keys are cut as bytes: SQLite's substr
    on text stops at a NUL."""
    ids = [place[0] if isinstance(place[0], int) else place[0].bucket_id for place in (here, there)]
    clause, end = range_end(here[1])
    state.db.execute(
        f"""UPDATE keys SET bucket_id = ?, key = ? || CAST(substr(CAST(key AS BLOB), ?) AS TEXT), lsn = ?
        WHERE bucket_id = ? AND key >= ?{clause}""",
        (ids[1], there[1], len(here[1].encode()) + 1, state.lsn, ids[0], here[1], *end),
    )


def _exchange(state: State, here: Place, there: Place) -> CommitResult:
    for bucket, key in (here, there):
        found = state.any_below(bucket, key) if key.endswith("/") else state.current(bucket, key) is not None
        if not found:
            raise NoSuchKey(f"there is no {key} in bucket {bucket.name}")
    if here == there:
        return _result(state)
    same = here[0].bucket_id == there[0].bucket_id
    for key, other in ((here[1], there[1]), (there[1], here[1])):
        if same and key.endswith("/") and other.startswith(key):
            raise InvalidName(f"{other} lies below {key}")
    for place, target in ((here, there), (there, here)):
        if place[1].endswith("/"):
            _check_lengths(state, place, target[1].removesuffix("/") + "/")
    for bucket, key in (here, there):
        state.touch(bucket, key)
        if here[1].endswith("/") != there[1].endswith("/"):  # the name changes its kind
            state.touch(bucket, key.removesuffix("/") if key.endswith("/") else key + "/")
    if _moves_whole((here, there)):
        _move_whole(state, here, (_ASIDE, here[1]))
        _move_whole(state, there, here)
        _move_whole(state, (_ASIDE, here[1]), there)
        return _result(state)
    moves = [(version, here[0], _moved_to(version, here, there)) for version in _versions_at(state, here)]
    moves += [(version, there[0], _moved_to(version, there, here)) for version in _versions_at(state, there)]
    taken = {(target.bucket_id, key) for _, _, (target, key) in moves}
    for version, bucket, _ in moves:
        if (bucket.bucket_id, version.key) not in taken:
            state.hide(bucket, version)
    for version, _, (bucket, key) in moves:
        state.publish(bucket, replace(version, key=key))
    return _result(state, state.current(*there))


def _versions_at(state: State, place: Place) -> list[Version]:
    """The file, or everything below the directory."""
    if place[1].endswith("/"):
        return list(state.visible_below(*place))
    version = state.current(*place)
    return [] if version is None else [version]


def _moved_to(version: Version, here: Place, there: Place) -> Place:
    """Where a version goes in an exchange, in which a file and a directory may swap."""
    name = there[1].removesuffix("/")
    if not here[1].endswith("/"):
        return there[0], name
    return there[0], f"{name}/{version.key[len(here[1]) :]}"


def link(state: State, change: Link) -> CommitResult:
    """Raises NoSuchKey, IsADirectory, AlreadyExists."""
    source, target = state.bucket(change.bucket), state.bucket(change.target_bucket)
    check_key(change.target_key)
    if change.key.endswith("/") or change.target_key.endswith("/"):
        raise IsADirectory("a directory can't have a second name")
    version = state.current(source, change.key)
    if version is None:
        raise NoSuchKey(f"there is no {change.key} in bucket {source.name}")
    if state.current(target, change.target_key) is not None or _is_directory(state, target, change.target_key):
        raise AlreadyExists(f"{change.target_key} exists in bucket {target.name}")
    state.note_links(version.file_id)
    new = state.publish(target, replace(version, key=change.target_key))
    names = state.names(version.file_id)
    for bucket, key in names:
        state.touch(bucket, key, version.file_id)
    return _result(state, replace(new, link_count=len(names)))


def merged(old: Attributes | None, change: SetAttributes) -> Attributes:
    """The old attributes with the change's fields that are set laid over them."""
    before, new = old or Attributes(), change.attributes
    set_fields = {
        name: value
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns", "link_target")
        if (value := getattr(new, name)) is not None
    }
    xattrs = new.xattrs if change.replace_xattrs else {**before.xattrs, **new.xattrs}
    return replace(before, **set_fields, rdev=new.rdev or before.rdev, xattrs=xattrs)


def set_attributes(state: State, change: SetAttributes) -> CommitResult:
    """Raises NoSuchKey. With a file id that has no name left, nothing happens."""
    bucket = state.bucket(change.bucket)
    if change.file_id is None and change.key == "":
        body = encode(replace(bucket, attributes=merged(bucket.attributes, change)))
        state.db.execute("UPDATE buckets SET body = ? WHERE name = ?", (body, bucket.name))
        state.touch(bucket, "")
        return _result(state)
    names = [(bucket, change.key)] if change.file_id is None else state.names(change.file_id)
    shown: Version | None = None
    for place in names:
        version = state.current(*place)
        if version is None:
            if not (place[1].endswith("/") and state.any_below(*place)):
                raise NoSuchKey(f"there is no {place[1]} in bucket {place[0].name}")
            version = state.publish_directory(*place)
        version = state.rewrite(place[0], replace(version, attributes=merged(version.attributes, change)))
        if shown is None or (place[0].name, place[1]) == (change.bucket, change.key):
            shown = version
        if change.file_id is None and version.link_count > 1:
            names += [name for name in state.names(version.file_id) if name[1] != place[1] or name[0] != place[0]]
            change = replace(change, file_id=version.file_id)
        state.touch(*place, version.file_id)
    return _result(state, shown)
