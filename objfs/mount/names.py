"""Names: path components, keys, and the tree they span. Pure functions.

A Name is (bucket, key) with the key in path form, without a trailing slash: ("", "") is
the root, (bucket, "") a bucket's directory.
"""

from __future__ import annotations

import errno

import pyfuse3

from engine import limits

Name = tuple[str, str]
ROOT: Name = ("", "")


def decode_component(component: bytes) -> str:
    """The text of a path component. FUSEError: ENAMETOOLONG, EILSEQ (not UTF-8)."""
    if len(component) > limits.NAME_BYTES_MAX:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
    try:
        return component.decode("utf-8")
    except UnicodeDecodeError:
        raise pyfuse3.FUSEError(errno.EILSEQ) from None


def child_name(parent: Name, component: str) -> Name:
    """The name of `component` in the directory `parent`. FUSEError: ENAMETOOLONG."""
    bucket, key = parent
    if not bucket:
        return component, ""
    joined = f"{key}/{component}" if key else component
    if len(joined.encode()) > limits.KEY_BYTES_MAX:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
    return bucket, joined


def split_name(name: Name) -> tuple[Name, str]:
    """The parent's name and the last component; the root has neither."""
    bucket, key = name
    assert bucket, "the root has no parent"
    if not key:
        return ROOT, bucket
    parent, _, component = key.rpartition("/")
    return (bucket, parent), component


def prefix(name: Name) -> str:
    """The key prefix of everything in a directory: "" or ending in "/"."""
    return f"{name[1]}/" if name[1] else ""


def marker_key(name: Name) -> str:
    """The key of a directory's marker. FUSEError: ENAMETOOLONG."""
    key = prefix(name)
    if len(key.encode()) > limits.KEY_BYTES_MAX:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
    return key


def is_below(name: Name, directory: Name) -> bool:
    """Whether `name` lies somewhere in `directory`."""
    if directory == ROOT:
        return name != ROOT
    return name[0] == directory[0] and name[1] != directory[1] and name[1].startswith(prefix(directory))
