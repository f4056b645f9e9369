"""PutObject, DeleteObject, DeleteObjects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from engine import limits
from engine.changes import CommitResult, Condition, DeleteKey, PutVersion
from engine.errors import NoSuchVersion, StoreError
from engine.store import ContentWriter
from engine.types import Version
from gateway import conditions, names, xml
from gateway.body import take, take_document
from gateway.checksums import parse_expected
from gateway.errors import S3Error, from_store_error, invalid_argument
from gateway.operations.common import OWNER, Context, checksum_headers, is_versioned, quoted, version_headers
from gateway.operations.object_headers import object_headers
from gateway.request import Request
from gateway.responses import Response, no_content, xml_response

CHECKSUM_DEFAULT = "CRC64NVME"  # what S3 stores when the client names none


@asynccontextmanager
async def content_writer(context: Context) -> AsyncIterator[ContentWriter]:
    """A writer that is aborted unless the block ends well."""
    writer = context.store.open_writer()
    try:
        yield writer
    except BaseException:
        with anyio.CancelScope(shield=True):
            await writer.abort()
        raise


async def put_object(context: Context, request: Request) -> Response:
    for name in ("versionId", "partNumber"):
        if name in request.query:
            raise invalid_argument(f"This operation does not accept a {name}.", name, request.query[name])
    bucket_name, key = request.at_bucket, request.at_key
    bucket = context.store.keymap.bucket(bucket_name)
    names.check_key(key)
    wanted = object_headers(request)
    condition = conditions.put_condition(request.headers)
    async with content_writer(context) as writer:
        received = await take(request, writer.write, algorithm=CHECKSUM_DEFAULT)
        content = await writer.finish()
        result = await context.store.commit(
            PutVersion(
                bucket_name,
                key,
                content,
                etag=received.md5.hex(),
                headers=wanted.headers,
                user_metadata=wanted.user_metadata,
                tags=wanted.tags,
                checksum=received.checksum,
                owner=OWNER,
                condition=condition,
                new_file=True,
            ),
            request.origin,
        )
    version = published(result)
    return Response(
        200, {"ETag": quoted(version.etag), **checksum_headers(version.checksum), **version_headers(bucket, version)}
    )


def published(result: CommitResult) -> Version:
    assert result.version is not None, "a put publishes a version"
    return result.version


async def delete_object(context: Context, request: Request) -> Response:
    names.check_key(request.at_key)
    version_id = request.query.get("versionId")
    if version_id == "":
        raise invalid_argument("Version id cannot be the empty string", "versionId", "")
    bucket = context.store.keymap.bucket(request.at_bucket)
    condition = conditions.delete_condition(request.headers)
    change = DeleteKey(request.at_bucket, request.at_key, version_id, condition, new_file=True)
    try:
        result = await context.store.commit(change, request.origin)
    except NoSuchVersion:
        return no_content({"x-amz-version-id": version_id or "null"})
    headers: dict[str, str] = {}
    if version_id is not None:
        headers["x-amz-version-id"] = version_id
        if result.removed_marker:
            headers["x-amz-delete-marker"] = "true"
    elif result.version is not None and is_versioned(bucket):
        headers = {"x-amz-delete-marker": "true", "x-amz-version-id": result.version.version_id}
    return no_content(headers)


async def delete_objects(context: Context, request: Request) -> Response:
    """Each key is a change of its own; the answer waits once for all of them."""
    if "content-md5" not in request.headers and parse_expected(request.headers).algorithm is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
    objects, quiet = xml.parse_delete(await take_document(request, bytes_max=xml.BODY_BYTES_MAX))
    context.store.keymap.bucket(request.at_bucket)
    deleted: list[xml.Deleted] = []
    failed: list[xml.DeleteFailed] = []
    newest = 0
    for number, target in enumerate(objects):
        try:
            answer, lsn = await _delete_one(context, request, target, number)
        except S3Error as error:
            failed.append(xml.DeleteFailed(target.key, error.code, error.message, target.version_id))
        else:
            newest = max(newest, lsn)
            deleted.append(answer)
    await context.store.index.wait_durable(newest)
    return xml_response(xml.delete_result([] if quiet else deleted, failed))


async def _delete_one(
    context: Context, request: Request, target: xml.ObjectToDelete, number: int
) -> tuple[xml.Deleted, int]:
    names.check_key(target.key)
    condition = None
    if target.etag is not None or target.size is not None or target.last_modified_ns is not None:
        condition = Condition(
            if_match=None if target.etag is None else [target.etag],
            if_match_size=target.size,
            if_match_last_modified_ns=target.last_modified_ns,
        )
    origin = request.origin
    origin = type(origin)(origin.requester, f"{origin.request_id}-{number}", origin.source_ip, origin.door)
    change = DeleteKey(request.at_bucket, target.key, target.version_id, condition, new_file=True)
    try:
        result = await context.store.commit(change, origin, durable=False)
    except NoSuchVersion:
        return xml.Deleted(target.key, target.version_id), 0
    except StoreError as error:
        raise from_store_error(error, bucket=request.at_bucket, key=target.key) from error
    if target.version_id is not None:
        marker_id = target.version_id if result.removed_marker else None
        return xml.Deleted(target.key, target.version_id, result.removed_marker, marker_id), result.lsn
    if result.version is not None:
        return xml.Deleted(target.key, None, True, result.version.version_id), result.lsn
    return xml.Deleted(target.key), result.lsn


assert limits.DELETE_KEYS_MAX * limits.KEY_BYTES_MAX <= xml.BODY_BYTES_MAX, "a full DeleteObjects must fit"
