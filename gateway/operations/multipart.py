"""Multipart uploads: create, parts, part copies, list, abort. complete.py completes."""

from __future__ import annotations

from engine import limits
from engine.changes import AbortUpload, CreateUpload, PutPart
from engine.types import Checksum, Content, Part, Upload
from gateway import checksums, names, xml
from gateway.body import take
from gateway.checksums import parse_expected
from gateway.errors import S3Error, invalid_argument
from gateway.operations.common import OWNER, Context, checksum_headers, digest_content, is_plain_md5, quoted
from gateway.operations.copy import find_source, source_headers
from gateway.operations.object_headers import object_headers
from gateway.operations.objects_write import content_writer
from gateway.ranges import parse_copy_range
from gateway.request import Request
from gateway.responses import Response, no_content, xml_response

_SCAN_UPLOADS = 1000


async def create_multipart_upload(context: Context, request: Request) -> Response:
    names.check_key(request.at_key)
    context.store.keymap.bucket(request.at_bucket)
    wanted = object_headers(request)
    algorithm = request.headers.get("x-amz-checksum-algorithm")
    algorithm = checksums.check_algorithm(algorithm) if algorithm else None
    checksum_type = checksums.multipart_type(algorithm, request.headers.get("x-amz-checksum-type"))
    change = CreateUpload(
        request.at_bucket,
        request.at_key,
        headers=wanted.headers,
        user_metadata=wanted.user_metadata,
        tags=wanted.tags,
        checksum_algorithm=algorithm,
        checksum_type=checksum_type,
        owner=OWNER,
    )
    result = await context.store.commit(change, request.origin)
    assert result.upload_id is not None, "a created upload has an id"
    headers = {}
    if algorithm is not None and checksum_type is not None:
        headers = {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": str(checksum_type)}
    return xml_response(xml.initiate_upload(request.at_bucket, request.at_key, result.upload_id), headers=headers)


def find_upload(context: Context, request: Request) -> Upload:
    """Raises NoSuchBucket, NoSuchUpload."""
    context.store.keymap.bucket(request.at_bucket)
    return context.store.keymap.upload(request.at_bucket, request.at_key, request.query["uploadId"])


def _part_number(request: Request) -> int:
    text = request.query.get("partNumber")
    if text is None:
        raise S3Error("InvalidRequest", "Missing required parameter: partNumber")
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= limits.PART_NUMBER_MAX):
        raise invalid_argument("Part number must be an integer between 1 and 10000, inclusive", "partNumber", text)
    return int(text)


async def upload_part(context: Context, request: Request) -> Response:
    number = _part_number(request)
    upload = find_upload(context, request)
    algorithm = parse_expected(request.headers).algorithm
    if upload.checksum_algorithm and algorithm and algorithm != upload.checksum_algorithm:
        raise S3Error(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {upload.checksum_algorithm.lower()}, "
            f"actual checksum Type: {algorithm.lower()}",
        )
    async with content_writer(context) as writer:
        received = await take(request, writer.write, algorithm=upload.checksum_algorithm)
        content = await writer.finish()
        part = await _put_part(context, request, number, content, received.md5, received.checksum)
    headers = {"ETag": quoted(part.etag), **checksum_headers(part.checksum)}
    headers.pop("x-amz-checksum-type", None)
    return Response(200, headers)


async def _put_part(
    context: Context, request: Request, number: int, content: Content, md5: bytes, checksum: Checksum | None
) -> Part:
    change = PutPart(request.at_bucket, request.at_key, request.query["uploadId"], number, content, md5, checksum)
    result = await context.store.commit(change, request.origin)
    assert result.part is not None, "a put part is answered with the part"
    return result.part


async def upload_part_copy(context: Context, request: Request) -> Response:
    number = _part_number(request)
    upload = find_upload(context, request)
    bucket, source, _ = await find_source(context, request)
    offset, length = 0, source.size
    header = request.headers.get("x-amz-copy-source-range")
    if header is not None:
        selected = parse_copy_range(header, source.size)
        offset, length = selected.start, selected.length
    if length > limits.PUT_BYTES_MAX:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy source: "
            f"{limits.PUT_BYTES_MAX}",
        )
    algorithm = upload.checksum_algorithm
    if length == source.size and is_plain_md5(source.etag) and algorithm is None:
        md5, checksum = bytes.fromhex(source.etag), None
    else:
        digests = await digest_content(context, source.manifest, offset, length, [algorithm] if algorithm else [])
        md5, checksum = digests.md5(), digests.checksum(algorithm) if algorithm else None
    content = await context.store.slice(source.manifest, offset, length)
    part = await _put_part(context, request, number, content, md5, checksum)
    return xml_response(xml.copy_part(part), headers=source_headers(bucket, source))


async def abort_multipart_upload(context: Context, request: Request) -> Response:
    change = AbortUpload(request.at_bucket, request.at_key, request.query["uploadId"])
    await context.store.commit(change, request.origin)
    return no_content()


async def list_parts(context: Context, request: Request) -> Response:
    upload = find_upload(context, request)
    marker = request.number("part-number-marker", 0, maximum=limits.PART_NUMBER_MAX)
    max_parts = request.number("max-parts", limits.LIST_KEYS_MAX, maximum=limits.LIST_KEYS_MAX)
    parts = context.store.keymap.parts(upload.upload_id, after=marker, limit=max_parts + 1)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    body = xml.list_parts(
        upload,
        parts[:max_parts],
        marker=marker,
        max_parts=max_parts,
        truncated=len(parts) > max_parts > 0,
        owner=OWNER,
        url=request.encodes_url(),
    )
    return xml_response(body)


async def list_multipart_uploads(context: Context, request: Request) -> Response:
    query = request.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    key_marker = query.get("key-marker", "")
    upload_id_marker = query.get("upload-id-marker", "") if key_marker else ""
    max_uploads = request.number("max-uploads", limits.LIST_KEYS_MAX, maximum=limits.LIST_KEYS_MAX)
    url = request.encodes_url()
    context.store.keymap.bucket(request.at_bucket)
    listing = _UploadListing(context, request.at_bucket, prefix, delimiter, max_uploads)
    listing.run(key_marker, upload_id_marker)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())
    body = xml.list_uploads(
        listing.uploads,
        listing.common_prefixes,
        bucket=request.at_bucket,
        prefix=prefix,
        delimiter=delimiter,
        key_marker=key_marker,
        upload_id_marker=upload_id_marker,
        max_uploads=max_uploads,
        next_key=listing.next_key,
        next_upload_id=listing.next_upload_id,
        url=url,
        owner=OWNER,
    )
    return xml_response(body)


class _UploadListing:
    """One page of uploads, with keys that share a prefix up to the delimiter rolled up."""

    def __init__(self, context: Context, bucket: str, prefix: str, delimiter: str, limit: int) -> None:
        self._keymap = context.store.keymap
        self._bucket, self._prefix, self._delimiter, self._limit = bucket, prefix, delimiter, limit
        self.uploads: list[Upload] = []
        self.common_prefixes: list[str] = []
        self.next_key: str | None = None
        self.next_upload_id: str | None = None

    def run(self, after_key: str, after_upload_id: str) -> None:
        skip = after_key if self._delimiter and after_key.endswith(self._delimiter) else None
        last = (after_key, after_upload_id)
        while self._limit:
            batch = self._keymap.uploads(self._bucket, self._prefix, *last, limit=_SCAN_UPLOADS)
            for upload in batch:
                rolled = self._rolled(upload.key)
                known = rolled is not None and (rolled == skip or rolled in self.common_prefixes[-1:])
                if not known and len(self.uploads) + len(self.common_prefixes) == self._limit:
                    self._truncate(last)
                    return
                if rolled is None:
                    self.uploads.append(upload)
                elif not known:
                    self.common_prefixes.append(rolled)
                last = (upload.key, upload.upload_id)
            if len(batch) < _SCAN_UPLOADS:
                return

    def _truncate(self, last: tuple[str, str]) -> None:
        rolled = self._rolled(last[0])
        self.next_key, self.next_upload_id = last if rolled is None else (rolled, "")

    def _rolled(self, key: str) -> str | None:
        """The common prefix `key` is shown as, or None if it is listed itself."""
        if not self._delimiter:
            return None
        head, found, _ = key[len(self._prefix) :].partition(self._delimiter)
        return self._prefix + head + found if found else None
