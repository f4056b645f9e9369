"""Configurations this store does not have yet. Reading one gives S3's own answer for
"none"; setting one is refused by name; removing what cannot be there is done already.
Nothing here changes the store.

Source: S3 API Reference, one page per action.
"""

from __future__ import annotations

from gateway.errors import S3Error
from gateway.operations.common import OWNER, Context, Handler, find_version, version_headers
from gateway.request import Request
from gateway.responses import Response, no_content, xml_response
from gateway.xml_text import XML_DECLARATION

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

NONE_ERRORS = {
    "GetBucketLifecycleConfiguration": "NoSuchLifecycleConfiguration",
    "GetBucketPolicy": "NoSuchBucketPolicy",
    "GetBucketPolicyStatus": "NoSuchBucketPolicy",
    "GetBucketCors": "NoSuchCORSConfiguration",
    "GetBucketWebsite": "NoSuchWebsiteConfiguration",
    "GetBucketReplication": "ReplicationConfigurationNotFoundError",
    "GetBucketEncryption": "ServerSideEncryptionConfigurationNotFoundError",
    "GetPublicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
    "GetBucketOwnershipControls": "OwnershipControlsNotFoundError",
    "GetObjectLockConfiguration": "ObjectLockConfigurationNotFoundError",
}
NONE_DOCUMENTS = {
    "GetBucketLogging": ("BucketLoggingStatus", ""),
    "GetBucketNotificationConfiguration": ("NotificationConfiguration", ""),
    "GetBucketAccelerateConfiguration": ("AccelerateConfiguration", ""),
    "GetBucketRequestPayment": ("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
    "ListBucketInventoryConfigurations": ("ListInventoryConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
    "ListBucketAnalyticsConfigurations": (
        "ListBucketAnalyticsConfigurationResult",
        "<IsTruncated>false</IsTruncated>",
    ),
    "ListBucketMetricsConfigurations": ("ListMetricsConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
    "ListBucketIntelligentTieringConfigurations": (
        "ListBucketIntelligentTieringConfigurationsOutput",
        "<IsTruncated>false</IsTruncated>",
    ),
}
NOTHING_TO_DELETE = frozenset(
    {
        "DeleteBucketLifecycle",
        "DeleteBucketPolicy",
        "DeleteBucketCors",
        "DeleteBucketWebsite",
        "DeleteBucketReplication",
        "DeleteBucketEncryption",
        "DeletePublicAccessBlock",
        "DeleteBucketOwnershipControls",
    }
)
REFUSED = frozenset(
    {
        "PostObject",
        "PutBucketAcl",
        "PutBucketPolicy",
        "PutBucketLifecycleConfiguration",
        "PutBucketCors",
        "PutBucketWebsite",
        "PutBucketLogging",
        "PutBucketNotificationConfiguration",
        "PutBucketReplication",
        "PutBucketEncryption",
        "PutBucketRequestPayment",
        "PutBucketAccelerateConfiguration",
        "PutPublicAccessBlock",
        "PutBucketOwnershipControls",
        "PutObjectLockConfiguration",
        "PutBucketInventoryConfiguration",
        "DeleteBucketInventoryConfiguration",
        "PutBucketAnalyticsConfiguration",
        "DeleteBucketAnalyticsConfiguration",
        "PutBucketMetricsConfiguration",
        "DeleteBucketMetricsConfiguration",
        "PutBucketIntelligentTieringConfiguration",
        "DeleteBucketIntelligentTieringConfiguration",
        "CreateSession",
        "GetBucketAbac",
        "PutBucketAbac",
        "GetBucketMetadataTableConfiguration",
        "CreateBucketMetadataTableConfiguration",
        "DeleteBucketMetadataTableConfiguration",
        "GetBucketMetadataConfiguration",
        "CreateBucketMetadataConfiguration",
        "DeleteBucketMetadataConfiguration",
        "UpdateBucketMetadataInventoryTableConfiguration",
        "UpdateBucketMetadataJournalTableConfiguration",
        "PutObjectAcl",
        "PutObjectLegalHold",
        "PutObjectRetention",
        "GetObjectTorrent",
        "RestoreObject",
        "SelectObjectContent",
        "RenameObject",
        "UpdateObjectEncryption",
        "GetObjectAnnotation",
        "PutObjectAnnotation",
        "DeleteObjectAnnotation",
    }
)


def none_error(operation: str) -> Handler:
    async def answer(context: Context, request: Request) -> Response:
        await _check_bucket(context, request)
        raise S3Error(NONE_ERRORS[operation], BucketName=request.at_bucket)

    return answer


def none_document(operation: str) -> Handler:
    async def answer(context: Context, request: Request) -> Response:
        await _check_bucket(context, request)
        if request.query.get("id"):
            raise S3Error("NoSuchConfiguration")
        return xml_response(_document(*NONE_DOCUMENTS[operation]))

    return answer


async def nothing_to_delete(context: Context, request: Request) -> Response:
    await _check_bucket(context, request)
    return no_content()


def refused(operation: str) -> Handler:
    async def answer(context: Context, request: Request) -> Response:
        raise S3Error("NotImplemented", f"{operation} is not implemented.", Operation=operation)

    return answer


async def get_bucket_acl(context: Context, request: Request) -> Response:
    await _check_bucket(context, request)
    return xml_response(_acl())


async def get_object_acl(context: Context, request: Request) -> Response:
    bucket, version = await find_version(context, request.at_bucket, request.at_key, request.query.get("versionId"))
    return xml_response(_acl(), headers=version_headers(bucket, version))


async def get_object_lock_state(context: Context, request: Request) -> Response:
    """GetObjectLegalHold, GetObjectRetention: the bucket has no Object Lock."""
    await find_version(context, request.at_bucket, request.at_key, request.query.get("versionId"))
    raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")


async def _check_bucket(context: Context, request: Request) -> None:
    context.store.keymap.bucket(request.at_bucket)
    await context.store.index.wait_durable(context.store.keymap.applied_lsn())


def _document(root: str, inner: str) -> bytes:
    return f'{XML_DECLARATION}<{root} xmlns="{_NAMESPACE}">{inner}</{root}>'.encode()


def _acl() -> bytes:
    owner = f"<ID>{OWNER}</ID><DisplayName>{OWNER}</DisplayName>"
    grantee = f'<Grantee xmlns:xsi="{_INSTANCE}" xsi:type="CanonicalUser">{owner}</Grantee>'
    grant = f"<Grant>{grantee}<Permission>FULL_CONTROL</Permission></Grant>"
    return _document("AccessControlPolicy", f"<Owner>{owner}</Owner><AccessControlList>{grant}</AccessControlList>")
