"""CopyObject: a new version over content that is stored already. No bytes move; they are
read only where S3 shows a digest the source does not have (the MD5 of a multipart source,
another checksum)."""

from __future__ import annotations

from engine import limits
from engine.changes import PutVersion
from engine.types import Bucket, Checksum, ChecksumType, Content, Version
from gateway import checksums, conditions, names, xml
from gateway.errors import S3Error, invalid_argument
from gateway.operations.common import OWNER, Context, digest_content, find_version, is_plain_md5, version_headers
from gateway.operations.object_headers import ObjectHeaders, object_headers
from gateway.operations.objects_write import published
from gateway.request import Request
from gateway.responses import Response, xml_response


async def find_source(context: Context, request: Request) -> tuple[Bucket, Version, bool]:
    """The version x-amz-copy-source names, its conditions checked, and whether it was
    named by version id. Raises as find_version, and PreconditionFailed."""
    bucket_name, key, version_id = names.parse_copy_source(request.headers["x-amz-copy-source"])
    bucket, version = await find_version(context, bucket_name, key, version_id, copy_source=True)
    conditions.evaluate_copy_source(request.headers, etag=version.etag, last_modified_ns=version.last_modified_ns)
    return bucket, version, version_id is not None


def source_headers(bucket: Bucket, version: Version) -> dict[str, str]:
    found = version_headers(bucket, version)
    return {"x-amz-copy-source-version-id": found["x-amz-version-id"]} if found else {}


async def copy_object(context: Context, request: Request) -> Response:
    names.check_key(request.at_key)
    target_bucket = context.store.keymap.bucket(request.at_bucket)
    replace_metadata = _directive(request, "x-amz-metadata-directive")
    replace_tags = _directive(request, "x-amz-tagging-directive")
    condition = conditions.put_condition(request.headers)
    source_bucket, source, by_version = await find_source(context, request)
    if source.size > limits.PUT_BYTES_MAX:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy source: "
            f"{limits.PUT_BYTES_MAX}",
        )
    to_itself = (source.bucket, source.key) == (request.at_bucket, request.at_key)
    if to_itself and not by_version and not replace_metadata:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    wanted = _wanted(request, source, replace_metadata=replace_metadata, replace_tags=replace_tags)
    etag, checksum = await _digests(context, request, source)
    change = PutVersion(
        request.at_bucket,
        request.at_key,
        Content(source.manifest),
        etag=etag,
        headers=wanted.headers,
        user_metadata=wanted.user_metadata,
        tags=wanted.tags,
        attributes=None if replace_metadata else source.attributes,
        checksum=checksum,
        owner=OWNER,
        condition=condition,
        new_file=True,
    )
    version = published(await context.store.commit(change, request.origin))
    headers = version_headers(target_bucket, version) | source_headers(source_bucket, source)
    return xml_response(xml.copy_object(version), headers=headers)


def _directive(request: Request, name: str) -> bool:
    """Whether it says REPLACE. Raises InvalidArgument."""
    value = request.headers.get(name, "COPY")
    if value not in ("COPY", "REPLACE"):
        raise invalid_argument("Unknown directive.", name, value)
    return value == "REPLACE"


def _wanted(request: Request, source: Version, *, replace_metadata: bool, replace_tags: bool) -> ObjectHeaders:
    given = object_headers(request)
    return ObjectHeaders(
        given.headers if replace_metadata else source.headers,
        given.user_metadata if replace_metadata else source.user_metadata,
        given.tags if replace_tags else source.tags,
    )


async def _digests(context: Context, request: Request, source: Version) -> tuple[str, Checksum | None]:
    """ETag and checksum of the copy, which is one part whatever its source was."""
    asked = request.headers.get("x-amz-checksum-algorithm")
    algorithm = checksums.check_algorithm(asked) if asked else source.checksum.algorithm if source.checksum else None
    checksum = source.checksum
    keeps = checksum is not None and checksum.algorithm == algorithm and checksum.type == ChecksumType.FULL_OBJECT
    if is_plain_md5(source.etag) and (algorithm is None or keeps):
        return source.etag, checksum
    digests = await digest_content(
        context, source.manifest, 0, source.size, [algorithm] if algorithm and not keeps else []
    )
    if algorithm is not None and not keeps:
        checksum = digests.checksum(algorithm)
    return digests.md5().hex(), checksum
