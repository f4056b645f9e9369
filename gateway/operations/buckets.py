"""Buckets: list, create, head, delete, location, versioning."""

from __future__ import annotations

from engine.changes import CreateBucket, DeleteBucket, SetBucketVersioning
from gateway import names, xml
from gateway.body import take_document
from gateway.operations.common import OWNER, REGION, Context
from gateway.request import Request
from gateway.responses import Response, no_content, xml_response

_MAX_BUCKETS = 10_000


async def list_buckets(context: Context, request: Request) -> Response:
    prefix = request.query.get("prefix", "")
    token = request.query.get("continuation-token")
    after = xml.decode_token(token) if token else ""
    limit = request.number("max-buckets", _MAX_BUCKETS, minimum=1, maximum=_MAX_BUCKETS)
    found = [
        bucket
        for bucket in sorted(context.store.keymap.buckets(), key=lambda bucket: bucket.name)
        if bucket.name.startswith(prefix) and bucket.name > after
    ]
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    page = found[:limit]
    following = xml.encode_token(page[-1].name) if len(found) > limit else None
    region = REGION if request.query.get("bucket-region") else None
    if request.query.get("bucket-region", REGION) != REGION:
        page, following = [], None
    return xml_response(xml.list_buckets(page, owner=OWNER, prefix=prefix or None, token=following, region=region))


async def create_bucket(context: Context, request: Request) -> Response:
    bucket = request.at_bucket
    names.check_bucket_name(bucket)
    xml.parse_create_bucket(await take_document(request, bytes_max=xml.BODY_BYTES_MAX))  # any region is ours
    await context.store.commit(CreateBucket(bucket, owner=OWNER), request.origin)
    return Response(200, {"Location": f"/{bucket}"})


async def head_bucket(context: Context, request: Request) -> Response:
    context.store.keymap.bucket(request.at_bucket)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    return Response(
        200,
        {"x-amz-bucket-region": REGION, "x-amz-access-point-alias": "false", "Content-Type": "application/xml"},
    )


async def delete_bucket(context: Context, request: Request) -> Response:
    await context.store.commit(DeleteBucket(request.at_bucket), request.origin)
    return no_content()


async def get_bucket_location(context: Context, request: Request) -> Response:
    context.store.keymap.bucket(request.at_bucket)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    return xml_response(xml.location(REGION))


async def get_bucket_versioning(context: Context, request: Request) -> Response:
    bucket = context.store.keymap.bucket(request.at_bucket)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    return xml_response(xml.versioning(bucket.versioning))


async def put_bucket_versioning(context: Context, request: Request) -> Response:
    state = xml.parse_versioning(await take_document(request, bytes_max=xml.BODY_BYTES_MAX))
    await context.store.commit(SetBucketVersioning(request.at_bucket, state), request.origin)
    return Response(200)
