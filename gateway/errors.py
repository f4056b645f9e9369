"""S3's error codes: one table from codes to statuses and messages, one from the store's
errors to codes.

Source: S3 API Reference, "Error responses". Knows the store's errors by class and
nothing of sockets. Pure functions,
callable from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine import errors as store_errors
from engine import limits
from gateway.xml_text import XML_DECLARATION, escape

# code: (status, message S3 gives with it)
CODES: dict[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationHeaderMalformed": (400, "The authorization header that you provided is not valid."),
    "AuthorizationQueryParametersError": (400, "The authorization query parameters that you provided are not valid."),
    "BadDigest": (400, "The Content-MD5 or checksum value that you specified did not match what the server received."),
    "BadRequest": (400, "An error occurred when parsing the HTTP request."),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the system. "
        "Please select a different name and try again.",
    ),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ConditionalRequestConflict": (409, "The conditional request cannot succeed due to a conflicting operation."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IllegalLocationConstraintException": (
        400,
        "The unspecified location constraint is incompatible for the region specific endpoint this request was "
        "sent to.",
    ),
    "IllegalVersioningConfigurationException": (
        400,
        "The Versioning element must be specified",
    ),
    "IncompleteBody": (400, "You did not provide the number of bytes specified by the Content-Length HTTP header"),
    "InsufficientStorage": (507, "The nodes of this store have no room for the request."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketState": (409, "The request is not valid with the current state of the bucket."),
    "InvalidDigest": (400, "The Content-MD5 or checksum value that you specified is not valid."),
    "InvalidEncryptionAlgorithmError": (
        400,
        "The encryption request that you specified is not valid. The valid value is AES256.",
    ),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidObjectState": (403, "The operation is not valid for the current state of the object."),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found. The part may not have been uploaded, or the "
        "specified entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. The parts list must be specified in order by part number.",
    ),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidToken": (400, "The provided token is malformed or otherwise not valid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedPOSTRequest": (400, "The body of your POST request is not well-formed multipart/form-data."),
    "MalformedTrailerError": (
        400,
        "The request contained trailing data that was not well-formed or did not conform to our published schema.",
    ),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request body is empty."),
    "MissingSecurityHeader": (400, "Your request was missing a required header"),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchConfiguration": (404, "The specified configuration does not exist."),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchObjectLockConfiguration": (404, "The specified object does not have a ObjectLock configuration"),
    "NoSuchPublicAccessBlockConfiguration": (404, "The public access block configuration was not found"),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or "
        "completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (404, "The specified bucket does not have a website configuration"),
    "NotImplemented": (501, "A header or query parameter you provided implies functionality that is not implemented."),
    "NotModified": (304, "Not Modified"),
    "ObjectLockConfigurationNotFoundError": (404, "Object Lock configuration does not exist for this bucket"),
    "OperationAborted": (
        409,
        "A conflicting conditional operation is currently in progress against this resource. Please try again.",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found"),
    "RequestHeaderSectionTooLarge": (
        400,
        "Your request header and query parameters exceed the maximum allowed size.",
    ),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the current time is too large."),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the timeout period.",
    ),
    "ServerSideEncryptionConfigurationNotFoundError": (
        404,
        "The server side encryption configuration was not found",
    ),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check your key and signing "
        "method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "TooManyBuckets": (400, "You have attempted to create more buckets than allowed."),
    "UnexpectedContent": (400, "This request does not support content."),
    "UnresolvableGrantByEmailAddress": (400, "The email address you provided does not match any account on record."),
    "UnsupportedArgument": (400, "The request contained an unsupported argument."),
    "UserKeyMustBeSpecified": (
        400,
        "The bucket POST must contain the specified field name. If it is specified, check the order of the fields.",
    ),
    "XAmzContentChecksumMismatch": (
        400,
        "The provided 'x-amz-checksum' header does not match what was computed.",
    ),
    "XAmzContentSHA256Mismatch": (
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    ),
}


class S3Error(Exception):
    """An answer that is an error. `extra` becomes elements of the XML body in order
    (BucketName, Key, Condition, …); `headers` go out with the response."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **extra: str,
    ) -> None:
        default_status, default_message = CODES[code]
        self.code = code
        self.message = default_message if message is None else message
        self.status = default_status if status is None else status
        self.headers: dict[str, str] = dict(headers or {})
        self.extra: dict[str, str] = extra
        super().__init__(f"{code}: {self.message}")


def invalid_argument(message: str, name: str, value: str) -> S3Error:
    """InvalidArgument as S3 words it: which argument, with which value."""
    return S3Error("InvalidArgument", message, ArgumentName=name, ArgumentValue=value)


_STORE: dict[type[store_errors.StoreError], str] = {
    store_errors.NoSuchBucket: "NoSuchBucket",
    store_errors.BucketExists: "BucketAlreadyOwnedByYou",
    store_errors.BucketNotEmpty: "BucketNotEmpty",
    store_errors.InvalidBucketName: "InvalidBucketName",
    store_errors.NoSuchKey: "NoSuchKey",
    store_errors.NoSuchVersion: "NoSuchVersion",
    store_errors.NoSuchUpload: "NoSuchUpload",
    store_errors.InvalidPart: "InvalidPart",
    store_errors.PreconditionFailed: "PreconditionFailed",
    store_errors.InvalidName: "KeyTooLongError",
    store_errors.NoSuchUser: "InvalidAccessKeyId",
    store_errors.NodeFull: "InsufficientStorage",
    store_errors.WritesStopped: "ServiceUnavailable",
    store_errors.IndexUnavailable: "ServiceUnavailable",
    store_errors.NodeUnavailable: "ServiceUnavailable",
    store_errors.Unreadable: "InternalError",
    # What only the mount asks for; a conflict here is another client's concurrent change.
    store_errors.AlreadyExists: "OperationAborted",
    store_errors.DirectoryNotEmpty: "OperationAborted",
    store_errors.IsADirectory: "OperationAborted",
    store_errors.NotADirectory: "OperationAborted",
}


def from_store_error(
    error: store_errors.StoreError,
    *,
    bucket: str | None = None,
    key: str | None = None,
    version_id: str | None = None,
    upload_id: str | None = None,
) -> S3Error:
    """The S3 answer to a store error, with the elements S3 adds for its code. Errors
    the table does not name are InternalError: the client can do nothing about them."""
    code = next((_STORE[cls] for cls in type(error).__mro__ if cls in _STORE), "InternalError")
    extra: dict[str, str] = {}
    headers: dict[str, str] = {}
    message: str | None = None
    if code in ("NoSuchBucket", "BucketAlreadyOwnedByYou", "BucketNotEmpty", "InvalidBucketName") and bucket:
        extra["BucketName"] = bucket
    elif code in ("NoSuchKey", "NoSuchVersion") and key is not None:
        extra["Key"] = key
        if code == "NoSuchVersion" and version_id is not None:
            extra["VersionId"] = version_id
    elif code == "NoSuchUpload" and upload_id is not None:
        extra["UploadId"] = upload_id
    elif code == "PreconditionFailed" and error.args:
        extra["Condition"] = str(error.args[0])
    elif code == "KeyTooLongError" and key is not None:
        size = len(key.encode("utf-8", "surrogateescape"))
        extra.update(Size=str(size), MaxSizeAllowed=str(limits.KEY_BYTES_MAX))
    elif code == "ServiceUnavailable":
        headers["Retry-After"] = "1"
    elif code == "InternalError" and isinstance(error, store_errors.Unreadable):
        message = "We encountered an internal error: the object's data cannot be read now. Please try again."
    answer = S3Error(code, message, headers=headers)
    answer.extra.update(extra)
    return answer


def error_body(error: S3Error, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The XML document of an error answer (not sent with HEAD and 304)."""
    parts = [XML_DECLARATION, "<Error><Code>", error.code, "</Code><Message>", escape(error.message), "</Message>"]
    for name, value in error.extra.items():
        parts.append(f"<{name}>{escape(value)}</{name}>")
    parts.append(
        f"<Resource>{escape(resource)}</Resource><RequestId>{escape(request_id)}</RequestId>"
        f"<HostId>{escape(host_id)}</HostId></Error>"
    )
    return "".join(parts).encode()
