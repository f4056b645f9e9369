"""Errors of the store as errno: the one table, and the wrapper every operation wears.

A handler that lets anything but FUSEError out would end the whole mount, so what is not
in the table is logged with its traceback and answered with EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from engine import errors

logger = logging.getLogger("objfs.mount")

P = ParamSpec("P")
R = TypeVar("R")

ERRNO: dict[type[errors.StoreError], int] = {
    errors.NoSuchBucket: errno.ENOENT,
    errors.NoSuchKey: errno.ENOENT,
    errors.NoSuchVersion: errno.ENOENT,
    errors.BucketExists: errno.EEXIST,
    errors.AlreadyExists: errno.EEXIST,
    errors.BucketNotEmpty: errno.ENOTEMPTY,
    errors.DirectoryNotEmpty: errno.ENOTEMPTY,
    errors.InvalidBucketName: errno.EINVAL,
    errors.InvalidName: errno.EINVAL,
    errors.IsADirectory: errno.EISDIR,
    errors.NotADirectory: errno.ENOTDIR,
    errors.PreconditionFailed: errno.EEXIST,
    errors.NodeFull: errno.ENOSPC,
}


class MountFailed(errors.StoreError):
    """The directory cannot be mounted or unmounted; the text says why and what to do."""


def errno_of(error: errors.StoreError) -> int:
    """EIO for what has no entry: unreadable content, stopped writes, an index that does
    not answer."""
    return next((ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO), errno.EIO)


def answered(operation: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Wrap an operation so that it raises nothing but FUSEError."""

    @functools.wraps(operation)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await operation(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except errors.StoreError as error:
            number = errno_of(error)
            if number == errno.EIO:
                logger.error("%s: %s: %s", operation.__name__, type(error).__name__, error)
            raise pyfuse3.FUSEError(number) from error
        except OSError as error:
            logger.error("%s: %s", operation.__name__, error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            # A bug in one request must not take the mount down for every process using it.
            logger.exception("%s failed", operation.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapper
