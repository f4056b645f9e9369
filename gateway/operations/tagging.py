"""Tags of objects and buckets."""

from __future__ import annotations

from engine import limits
from engine.changes import SetBucketTags, SetTags
from gateway import names, xml
from gateway.body import take_document
from gateway.errors import S3Error
from gateway.operations.common import Context, find_version, version_headers
from gateway.request import Request
from gateway.responses import Response, no_content, xml_response


async def get_object_tagging(context: Context, request: Request) -> Response:
    bucket, version = await find_version(context, request.at_bucket, request.at_key, request.query.get("versionId"))
    return xml_response(xml.tagging(version.tags), headers=version_headers(bucket, version))


async def put_object_tagging(context: Context, request: Request) -> Response:
    pairs = xml.parse_tagging(await take_document(request, bytes_max=xml.BODY_BYTES_MAX))
    tags = names.check_tags(pairs, limit=limits.TAGS_OBJECT_MAX)
    return Response(200, await _set_tags(context, request, tags))


async def delete_object_tagging(context: Context, request: Request) -> Response:
    return no_content(await _set_tags(context, request, {}))


async def _set_tags(context: Context, request: Request, tags: dict[str, str]) -> dict[str, str]:
    version_id = request.query.get("versionId")
    bucket, version = await find_version(context, request.at_bucket, request.at_key, version_id)
    change = SetTags(request.at_bucket, request.at_key, tags, version_id)
    result = await context.store.commit(change, request.origin)
    return version_headers(bucket, result.version or version)


async def get_bucket_tagging(context: Context, request: Request) -> Response:
    bucket = context.store.keymap.bucket(request.at_bucket)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    if not bucket.tags:
        raise S3Error("NoSuchTagSet", BucketName=bucket.name)
    return xml_response(xml.tagging(bucket.tags))


async def put_bucket_tagging(context: Context, request: Request) -> Response:
    pairs = xml.parse_tagging(await take_document(request, bytes_max=xml.BODY_BYTES_MAX))
    tags = names.check_tags(pairs, limit=limits.TAGS_BUCKET_MAX)
    await context.store.commit(SetBucketTags(request.at_bucket, tags), request.origin)
    return no_content()


async def delete_bucket_tagging(context: Context, request: Request) -> Response:
    await context.store.commit(SetBucketTags(request.at_bucket, {}), request.origin)
    return no_content()
