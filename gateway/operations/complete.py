"""CompleteMultipartUpload: many parts become one version."""

from __future__ import annotations

from collections.abc import Sequence

from engine import limits
from engine.changes import CompleteUpload, PartChoice
from engine.errors import NoSuchUpload
from engine.types import Checksum, ChecksumType, ObjectPart, Part, Upload, Version
from gateway import checksums, conditions, xml
from gateway.body import take_document
from gateway.checksums import ExpectedDigests, parse_expected
from gateway.errors import S3Error, invalid_argument
from gateway.operations.common import Context, version_headers
from gateway.operations.multipart import find_upload
from gateway.operations.objects_write import published
from gateway.request import Request
from gateway.responses import Response, xml_response

_BODY_BYTES_MAX = 4 * 1024**2  # 10,000 parts with ETag and a SHA-256 each


async def complete_multipart_upload(context: Context, request: Request) -> Response:
    # Checksum headers here are the object's, not this document's.
    md5 = request.headers.get("content-md5")
    of_document = parse_expected({"content-md5": md5}) if md5 is not None else ExpectedDigests()
    chosen = xml.parse_complete_upload(await take_document(request, bytes_max=_BODY_BYTES_MAX, expected=of_document))
    bucket = context.store.keymap.bucket(request.at_bucket)
    try:
        upload = find_upload(context, request)
        version = await _complete(context, request, upload, chosen)
    except NoSuchUpload:
        repeated = _answered_before(context, request, chosen)
        if repeated is None:
            raise
        await context.store.index.wait_durable(repeated.lsn)
        version = repeated
    body = xml.complete_upload(version, location=_location(request))
    return xml_response(body, headers=version_headers(bucket, version))


def _location(request: Request) -> str:
    return f"http://{request.headers.get('host', '')}{request.raw_path.decode('ascii', 'replace')}"


async def _complete(context: Context, request: Request, upload: Upload, chosen: Sequence[xml.CompletedPart]) -> Version:
    parts = _choose(context, upload, chosen)
    _check_sizes(parts)
    _check_object_size(request, sum(part.size for part in parts))
    checksum = _checksum(request, upload, parts)
    content = await context.store.concatenate([part.manifest for part in parts])
    change = CompleteUpload(
        request.at_bucket,
        request.at_key,
        upload.upload_id,
        [PartChoice(part.number, part.lsn) for part in parts],
        content,
        etag=checksums.multipart_etag([part.md5 for part in parts]),
        parts=[ObjectPart(part.number, part.size, part.checksum) for part in parts],
        checksum=checksum,
        condition=conditions.put_condition(request.headers),
        new_file=True,
    )
    return published(await context.store.commit(change, request.origin))


def _answered_before(context: Context, request: Request, chosen: Sequence[xml.CompletedPart]) -> Version | None:
    """The version an earlier, lost answer was about: the client repeats the completion,
    and the key holds exactly the parts it names."""
    try:
        etag = checksums.multipart_etag([bytes.fromhex(part.etag) for part in chosen])
    except ValueError:
        return None
    version = context.store.keymap.head(request.at_bucket, request.at_key)
    if version is None or version.delete_marker or version.etag != etag:
        return None
    if [part.number for part in version.parts] != [part.number for part in chosen]:
        return None
    return version


def _choose(context: Context, upload: Upload, chosen: Sequence[xml.CompletedPart]) -> list[Part]:
    """The parts named, in order. Raises InvalidPart, InvalidRequest."""
    uploaded = {part.number: part for part in context.store.keymap.parts(upload.upload_id)}
    parts = []
    for wanted in chosen:
        part = uploaded.get(wanted.number)
        if part is None or part.etag != wanted.etag:
            raise _invalid_part(upload, wanted)
        _check_part_checksum(upload, part, wanted)
        parts.append(part)
    return parts


def _invalid_part(upload: Upload, wanted: xml.CompletedPart) -> S3Error:
    return S3Error("InvalidPart", UploadId=upload.upload_id, PartNumber=str(wanted.number), ETag=wanted.etag)


def _check_part_checksum(upload: Upload, part: Part, wanted: xml.CompletedPart) -> None:
    for algorithm, value in wanted.checksums.items():
        if part.checksum is None or part.checksum.algorithm != algorithm or part.checksum.value != value:
            raise _invalid_part(upload, wanted)
    if upload.checksum_type == ChecksumType.COMPOSITE and not wanted.checksums:
        assert upload.checksum_algorithm is not None, "a checksum type has an algorithm"
        raise S3Error(
            "InvalidRequest",
            f"The upload was created using a {upload.checksum_algorithm.lower()} checksum. The complete request must "
            f"include the checksum for each part. It was missing for part {part.number} in the request.",
        )


def _check_sizes(parts: Sequence[Part]) -> None:
    for part in parts[:-1]:
        if part.size < limits.PART_BYTES_MIN:
            raise S3Error(
                "EntityTooSmall",
                ProposedSize=str(part.size),
                MinSizeAllowed=str(limits.PART_BYTES_MIN),
                PartNumber=str(part.number),
                ETag=part.etag,
            )
    size = sum(part.size for part in parts)
    if size > limits.OBJECT_BYTES_MAX:
        raise S3Error("EntityTooLarge", ProposedSize=str(size), MaxSizeAllowed=str(limits.OBJECT_BYTES_MAX))


def _check_object_size(request: Request, size: int) -> None:
    text = request.headers.get("x-amz-mp-object-size")
    if text is None:
        return
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise invalid_argument("Value for x-amz-mp-object-size header is invalid.", "x-amz-mp-object-size", text)
    if int(text) != size:
        raise S3Error(
            "InvalidRequest",
            f"The provided 'x-amz-mp-object-size' header value {text} does not match what was computed: {size}",
        )


def _checksum(request: Request, upload: Upload, parts: Sequence[Part]) -> Checksum | None:
    """The object's checksum, made of its parts' and compared with the client's, if given."""
    asked = request.headers.get("x-amz-checksum-type")
    if asked is not None and asked != upload.checksum_type:
        raise S3Error(
            "InvalidRequest",
            f"The upload was created using the {upload.checksum_type} checksum mode. The complete request must use "
            "the same checksum mode.",
        )
    algorithm = upload.checksum_algorithm
    if algorithm is None:
        return None
    values: list[tuple[str, int]] = []
    for part in parts:
        assert part.checksum is not None, "parts of such an upload are always summed"
        values.append((part.checksum.value, part.size))
    if upload.checksum_type == ChecksumType.COMPOSITE:
        value = checksums.composite(algorithm, [value for value, _ in values])
    else:
        value = checksums.combine(algorithm, values)
    given = request.headers.get(checksums.HEADERS[algorithm])
    if given is not None and given not in (value, value.rpartition("-")[0] or value):
        raise S3Error("BadDigest", f"The {algorithm.lower()} you specified did not match the calculated checksum.")
    return Checksum(algorithm, value, str(upload.checksum_type))
