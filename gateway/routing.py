"""From method, level and query parameters to the S3 operation.

One table holds every subresource S3 has, supported or not, so that an unknown one never
falls through to the plain operation (`PUT key?acl` must not overwrite the object). Knows
nothing of handlers or the store. Pure functions.

Source: S3 API Reference, "Actions".
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from gateway.errors import S3Error


class Level(StrEnum):
    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


class Operation(Struct, frozen=True):
    """An S3 operation by its name in the API. `writes` needs full access."""

    name: str
    writes: bool


# (level, subresource) → {method: operation name}; subresource "" is the plain operation.
_OPERATIONS: dict[tuple[Level, str], dict[str, str]] = {
    (Level.SERVICE, ""): {"GET": "ListBuckets"},
    (Level.BUCKET, ""): {
        "GET": "ListObjects",
        "PUT": "CreateBucket",
        "HEAD": "HeadBucket",
        "DELETE": "DeleteBucket",
        "POST": "PostObject",
    },
    (Level.BUCKET, "list-type"): {"GET": "ListObjectsV2"},
    (Level.BUCKET, "versions"): {"GET": "ListObjectVersions"},
    (Level.BUCKET, "uploads"): {"GET": "ListMultipartUploads"},
    (Level.BUCKET, "delete"): {"POST": "DeleteObjects"},
    (Level.BUCKET, "location"): {"GET": "GetBucketLocation"},
    (Level.BUCKET, "versioning"): {"GET": "GetBucketVersioning", "PUT": "PutBucketVersioning"},
    (Level.BUCKET, "tagging"): {
        "GET": "GetBucketTagging",
        "PUT": "PutBucketTagging",
        "DELETE": "DeleteBucketTagging",
    },
    (Level.BUCKET, "acl"): {"GET": "GetBucketAcl", "PUT": "PutBucketAcl"},
    (Level.BUCKET, "policy"): {"GET": "GetBucketPolicy", "PUT": "PutBucketPolicy", "DELETE": "DeleteBucketPolicy"},
    (Level.BUCKET, "policyStatus"): {"GET": "GetBucketPolicyStatus"},
    (Level.BUCKET, "lifecycle"): {
        "GET": "GetBucketLifecycleConfiguration",
        "PUT": "PutBucketLifecycleConfiguration",
        "DELETE": "DeleteBucketLifecycle",
    },
    (Level.BUCKET, "cors"): {"GET": "GetBucketCors", "PUT": "PutBucketCors", "DELETE": "DeleteBucketCors"},
    (Level.BUCKET, "website"): {
        "GET": "GetBucketWebsite",
        "PUT": "PutBucketWebsite",
        "DELETE": "DeleteBucketWebsite",
    },
    (Level.BUCKET, "logging"): {"GET": "GetBucketLogging", "PUT": "PutBucketLogging"},
    (Level.BUCKET, "notification"): {
        "GET": "GetBucketNotificationConfiguration",
        "PUT": "PutBucketNotificationConfiguration",
    },
    (Level.BUCKET, "replication"): {
        "GET": "GetBucketReplication",
        "PUT": "PutBucketReplication",
        "DELETE": "DeleteBucketReplication",
    },
    (Level.BUCKET, "encryption"): {
        "GET": "GetBucketEncryption",
        "PUT": "PutBucketEncryption",
        "DELETE": "DeleteBucketEncryption",
    },
    (Level.BUCKET, "requestPayment"): {"GET": "GetBucketRequestPayment", "PUT": "PutBucketRequestPayment"},
    (Level.BUCKET, "accelerate"): {
        "GET": "GetBucketAccelerateConfiguration",
        "PUT": "PutBucketAccelerateConfiguration",
    },
    (Level.BUCKET, "publicAccessBlock"): {
        "GET": "GetPublicAccessBlock",
        "PUT": "PutPublicAccessBlock",
        "DELETE": "DeletePublicAccessBlock",
    },
    (Level.BUCKET, "ownershipControls"): {
        "GET": "GetBucketOwnershipControls",
        "PUT": "PutBucketOwnershipControls",
        "DELETE": "DeleteBucketOwnershipControls",
    },
    (Level.BUCKET, "object-lock"): {"GET": "GetObjectLockConfiguration", "PUT": "PutObjectLockConfiguration"},
    (Level.BUCKET, "inventory"): {
        "GET": "ListBucketInventoryConfigurations",
        "PUT": "PutBucketInventoryConfiguration",
        "DELETE": "DeleteBucketInventoryConfiguration",
    },
    (Level.BUCKET, "analytics"): {
        "GET": "ListBucketAnalyticsConfigurations",
        "PUT": "PutBucketAnalyticsConfiguration",
        "DELETE": "DeleteBucketAnalyticsConfiguration",
    },
    (Level.BUCKET, "metrics"): {
        "GET": "ListBucketMetricsConfigurations",
        "PUT": "PutBucketMetricsConfiguration",
        "DELETE": "DeleteBucketMetricsConfiguration",
    },
    (Level.BUCKET, "intelligent-tiering"): {
        "GET": "ListBucketIntelligentTieringConfigurations",
        "PUT": "PutBucketIntelligentTieringConfiguration",
        "DELETE": "DeleteBucketIntelligentTieringConfiguration",
    },
    (Level.BUCKET, "session"): {"GET": "CreateSession"},
    (Level.BUCKET, "abac"): {"GET": "GetBucketAbac", "PUT": "PutBucketAbac"},
    (Level.BUCKET, "metadataTable"): {
        "GET": "GetBucketMetadataTableConfiguration",
        "POST": "CreateBucketMetadataTableConfiguration",
        "DELETE": "DeleteBucketMetadataTableConfiguration",
    },
    (Level.BUCKET, "metadataConfiguration"): {
        "GET": "GetBucketMetadataConfiguration",
        "POST": "CreateBucketMetadataConfiguration",
        "DELETE": "DeleteBucketMetadataConfiguration",
    },
    (Level.BUCKET, "metadataInventoryTable"): {"PUT": "UpdateBucketMetadataInventoryTableConfiguration"},
    (Level.BUCKET, "metadataJournalTable"): {"PUT": "UpdateBucketMetadataJournalTableConfiguration"},
    (Level.OBJECT, ""): {
        "GET": "GetObject",
        "HEAD": "HeadObject",
        "PUT": "PutObject",
        "DELETE": "DeleteObject",
    },
    (Level.OBJECT, "uploads"): {"POST": "CreateMultipartUpload"},
    (Level.OBJECT, "uploadId"): {
        "GET": "ListParts",
        "PUT": "UploadPart",
        "POST": "CompleteMultipartUpload",
        "DELETE": "AbortMultipartUpload",
    },
    (Level.OBJECT, "tagging"): {
        "GET": "GetObjectTagging",
        "PUT": "PutObjectTagging",
        "DELETE": "DeleteObjectTagging",
    },
    (Level.OBJECT, "attributes"): {"GET": "GetObjectAttributes"},
    (Level.OBJECT, "acl"): {"GET": "GetObjectAcl", "PUT": "PutObjectAcl"},
    (Level.OBJECT, "legal-hold"): {"GET": "GetObjectLegalHold", "PUT": "PutObjectLegalHold"},
    (Level.OBJECT, "retention"): {"GET": "GetObjectRetention", "PUT": "PutObjectRetention"},
    (Level.OBJECT, "torrent"): {"GET": "GetObjectTorrent"},
    (Level.OBJECT, "restore"): {"POST": "RestoreObject"},
    (Level.OBJECT, "select"): {"POST": "SelectObjectContent"},
    (Level.OBJECT, "renameObject"): {"PUT": "RenameObject"},
    (Level.OBJECT, "encryption"): {"PUT": "UpdateObjectEncryption"},
    (Level.OBJECT, "annotation"): {
        "GET": "GetObjectAnnotation",
        "PUT": "PutObjectAnnotation",
        "DELETE": "DeleteObjectAnnotation",
    },
}

_SUBRESOURCES: dict[Level, frozenset[str]] = {
    level: frozenset(name for at, name in _OPERATIONS if at == level and name) for level in Level
}
_EVERY_SUBRESOURCE = frozenset().union(*_SUBRESOURCES.values())

# Parameters that select nothing: they go with an operation, or a signature, or a client.
_PARAMETERS = frozenset(
    {
        "versionId",
        "partNumber",
        "prefix",
        "delimiter",
        "marker",
        "max-keys",
        "encoding-type",
        "continuation-token",
        "start-after",
        "fetch-owner",
        "key-marker",
        "version-id-marker",
        "upload-id-marker",
        "max-uploads",
        "max-parts",
        "part-number-marker",
        "max-buckets",
        "bucket-region",
        "select-type",
        "id",
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "response-content-language",
        "response-content-type",
        "response-expires",
    }
)
_READ_METHODS = frozenset({"GET", "HEAD"})
# Subresources that are read with POST.
_READS = frozenset({"SelectObjectContent"})


def level_of(bucket: str | None, key: str | None) -> Level:
    if bucket is None:
        return Level.SERVICE
    return Level.OBJECT if key else Level.BUCKET


def route(
    method: str, bucket: str | None, key: str | None, query: Mapping[str, str], *, copies: bool = False
) -> Operation:
    """The operation asked for; `copies`: the request has an x-amz-copy-source. Raises
    MethodNotAllowed, InvalidArgument (two subresources at once), NotImplemented (a
    subresource S3 does not have, or has elsewhere)."""
    level = level_of(bucket, key)
    chosen = ""
    for name, value in query.items():
        if name in _SUBRESOURCES[level]:
            if chosen:
                raise S3Error(
                    "InvalidArgument",
                    f"Conflicting query string parameters: {chosen}, {name}",
                    ArgumentName="ResourceType",
                    ArgumentValue=chosen,
                )
            chosen = name
        elif not _passes(name, value):
            raise S3Error(
                "NotImplemented",
                f"The query parameter {name} names a subresource that is not implemented for a {level}.",
                ResourceType=name,
            )
    methods = _OPERATIONS[level, chosen]
    operation = methods.get(method)
    if operation is None:
        raise S3Error(
            "MethodNotAllowed",
            headers={"Allow": ", ".join(methods)},
            Method=method,
            ResourceType=chosen.upper() or level.upper(),
        )
    if level is Level.BUCKET and chosen == "list-type" and query["list-type"] != "2":
        raise S3Error(
            "InvalidArgument",
            "Invalid List Type specified in Query String.",
            ArgumentName="list-type",
            ArgumentValue=query["list-type"],
        )
    if copies:
        operation = _copying(operation)
    return Operation(operation, method not in _READ_METHODS and operation not in _READS)


def _copying(operation: str) -> str:
    copying = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}.get(operation)
    if copying is None:
        raise S3Error("InvalidArgument", f"{operation} takes no copy source.", ArgumentName="x-amz-copy-source")
    return copying


def _passes(name: str, value: str) -> bool:
    """Whether a parameter that is no subresource here may stand in a query. A bare
    unknown name (`?foo`) looks like a subresource and is refused; a named value S3 does
    not know (`x-id=GetObject`, a client's tag) is harmless."""
    if name in _PARAMETERS or name.lower().startswith("x-"):
        return True
    return name not in _EVERY_SUBRESOURCE and value != ""
