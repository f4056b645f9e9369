"""What several operations need: the context, refusals, finding a version, its headers.

Knows the store's facade and S3's headers; never the wire. Every function is safe to call
concurrently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import anyio.to_thread
from msgspec import Struct

from engine.types import Bucket, Checksum, Manifest, Version, Versioning
from gateway import checksums, conditions
from gateway.errors import S3Error, invalid_argument
from gateway.request import Request
from gateway.responses import Response

if TYPE_CHECKING:
    from engine.store import Store

OWNER = "root"  # every bucket belongs to the store's root account until there are more
REGION = "us-east-1"
CONTENT_TYPE_DEFAULT = "binary/octet-stream"


class Context(Struct, frozen=True):
    """What an operation works on besides its request."""

    store: Store


Handler = Callable[[Context, Request], Awaitable[Response]]


# -- refusing what is not supported --------------------------------------------

_KNOWN_HEADERS = frozenset(
    {
        "x-amz-date",
        "x-amz-content-sha256",
        "x-amz-decoded-content-length",
        "x-amz-trailer",
        "x-amz-security-token",
        "x-amz-user-agent",
        "x-amz-te",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-request-payer",
        "x-amz-acl",
        "x-amz-storage-class",
        "x-amz-tagging",
        "x-amz-tagging-directive",
        "x-amz-metadata-directive",
        "x-amz-copy-source",
        "x-amz-copy-source-range",
        "x-amz-expected-bucket-owner",
        "x-amz-source-expected-bucket-owner",
        "x-amz-object-attributes",
        "x-amz-max-parts",
        "x-amz-part-number-marker",
        "x-amz-mp-object-size",
        "x-amz-bucket-object-lock-enabled",
        "x-amz-object-ownership",
        "x-amz-optional-object-attributes",
        "x-amz-if-match-size",
        "x-amz-if-match-last-modified-time",
        "x-amz-id-2",
        "x-amz-request-id",
    }
)
_KNOWN_PREFIXES = ("x-amz-meta-", "x-amz-checksum-", "x-amz-copy-source-if-")
_STORAGE_CLASSES = frozenset(
    {
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "DEEP_ARCHIVE",
        "OUTPOSTS",
        "GLACIER_IR",
        "SNOW",
        "EXPRESS_ONEZONE",
        "FSX_OPENZFS",
        "FSX_ONTAP",
    }
)
_ACLS_REFUSED = frozenset(
    {
        "public-read",
        "public-read-write",
        "authenticated-read",
        "aws-exec-read",
        "bucket-owner-read",
        "log-delivery-write",
    }
)


def refuse_unsupported(request: Request) -> None:
    """Refuse by name every header of a feature this store does not have; accept values
    equal to what it does anyway. Raises NotImplemented, InvalidArgument, AccessDenied."""
    for name, value in request.headers.items():
        if not name.startswith("x-amz-"):
            continue
        if name not in _KNOWN_HEADERS and not name.startswith(_KNOWN_PREFIXES):
            raise S3Error("NotImplemented", f"The header {name} is not implemented.", Header=name)
        check = _VALUE_CHECKS.get(name)
        if check is not None:
            check(name, value)


def _check_acl(name: str, value: str) -> None:
    if value in _ACLS_REFUSED:
        raise S3Error("NotImplemented", f"The canned ACL {value} is not implemented; only private is.", Header=name)
    if value not in ("private", "bucket-owner-full-control"):
        raise invalid_argument("The canned ACL is not valid", name, value)


def _check_storage_class(name: str, value: str) -> None:
    if value in _STORAGE_CLASSES:
        raise S3Error("NotImplemented", f"The storage class {value} is not implemented; only STANDARD is.", Header=name)
    if value != "STANDARD":
        raise S3Error("InvalidStorageClass", StorageClassRequested=value)


def _check_owner(name: str, value: str) -> None:
    if value != OWNER:
        raise S3Error("AccessDenied")


def _check_object_lock(name: str, value: str) -> None:
    if value.lower() != "false":
        raise S3Error("NotImplemented", "Object Lock is not implemented.", Header=name)


def _check_ownership(name: str, value: str) -> None:
    if value != "BucketOwnerEnforced":
        raise S3Error("NotImplemented", f"The object ownership {value} is not implemented.", Header=name)


def _check_payer(name: str, value: str) -> None:
    if value != "requester":
        raise invalid_argument("The request payer is not valid", name, value)


_VALUE_CHECKS: dict[str, Callable[[str, str], None]] = {
    "x-amz-acl": _check_acl,
    "x-amz-storage-class": _check_storage_class,
    "x-amz-expected-bucket-owner": _check_owner,
    "x-amz-source-expected-bucket-owner": _check_owner,
    "x-amz-bucket-object-lock-enabled": _check_object_lock,
    "x-amz-object-ownership": _check_ownership,
    "x-amz-request-payer": _check_payer,
}


# -- versions ------------------------------------------------------------------


def is_versioned(bucket: Bucket) -> bool:
    return bucket.versioning is not Versioning.UNVERSIONED


def version_headers(bucket: Bucket, version: Version) -> dict[str, str]:
    """x-amz-version-id, which only buckets that were ever versioned show."""
    return {"x-amz-version-id": version.version_id} if is_versioned(bucket) else {}


async def find_version(
    context: Context, bucket_name: str, key: str, version_id: str | None, *, copy_source: bool = False
) -> tuple[Bucket, Version]:
    """The version asked for, durable. Raises NoSuchBucket, NoSuchKey, NoSuchVersion, and for
    a delete marker NoSuchKey or MethodNotAllowed with S3's headers."""
    keymap = context.store.keymap
    bucket = keymap.bucket(bucket_name)
    if version_id is None:
        version = keymap.head(bucket_name, key)
        if version is None:
            raise S3Error("NoSuchKey", Key=key)
    else:
        if version_id == "":
            raise invalid_argument("Version id cannot be the empty string", "versionId", "")
        version = keymap.version(bucket_name, key, version_id)
        if version is None:
            raise S3Error("NoSuchVersion", Key=key, VersionId=version_id)
    await context.store.index.wait_durable(version.lsn)
    if version.delete_marker:
        headers = {"x-amz-delete-marker": "true", **version_headers(bucket, version)}
        if version_id is None:
            raise S3Error("NoSuchKey", headers=headers, Key=key)
        if copy_source:
            raise S3Error(
                "InvalidRequest",
                "The source of a copy request may not specifically refer to a delete marker by version id.",
                headers=headers,
            )
        headers["Last-Modified"] = conditions.http_date(version.last_modified_ns)
        raise S3Error("MethodNotAllowed", headers=headers, Method="GET", ResourceType="DeleteMarker")
    return bucket, version


def quoted(etag: str) -> str:
    return f'"{etag}"'


def checksum_headers(checksum: Checksum | None) -> dict[str, str]:
    if checksum is None:
        return {}
    return {checksums.HEADERS[checksum.algorithm]: checksum.value, "x-amz-checksum-type": str(checksum.type)}


# -- content -------------------------------------------------------------------


async def digest_content(
    context: Context, manifest: Manifest, offset: int, length: int, algorithms: Iterable[str] = ()
) -> checksums.BodyDigests:
    """MD5 and checksums of stored bytes, read once: what S3 shows for a copy that is not
    its source whole. Raises Unreadable."""
    digests = checksums.BodyDigests(md5=True, sha256=False, algorithms=list(algorithms))
    async for piece in context.store.read(manifest, offset, length):
        await anyio.to_thread.run_sync(digests.update, piece)
    return digests


def is_plain_md5(etag: str) -> bool:
    return len(etag) == hashlib.md5(usedforsecurity=False).digest_size * 2 and "-" not in etag
