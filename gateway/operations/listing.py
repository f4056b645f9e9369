"""ListObjects, ListObjectsV2, ListObjectVersions."""

from __future__ import annotations

from engine import limits
from engine.interfaces import ListPage, VersionsPage
from gateway import xml
from gateway.errors import invalid_argument
from gateway.operations.common import OWNER, Context
from gateway.request import Request
from gateway.responses import Response, xml_response


def _max_keys(request: Request) -> int:
    return request.number("max-keys", limits.LIST_KEYS_MAX, maximum=limits.LIST_KEYS_MAX)


async def _page(context: Context, request: Request, *, after: str, limit: int) -> ListPage:
    keymap = context.store.keymap
    keymap.bucket(request.at_bucket)
    if limit == 0:
        page = ListPage([], [])
    else:
        page = keymap.list_objects(
            request.at_bucket,
            prefix=request.query.get("prefix", ""),
            delimiter=request.query.get("delimiter", ""),
            after=after,
            limit=limit,
        )
    await context.store.index.wait_durable(keymap.applied_lsn())
    return page


async def list_objects(context: Context, request: Request) -> Response:
    marker = request.query.get("marker", "")
    max_keys = _max_keys(request)
    url = request.encodes_url()
    page = await _page(context, request, after=marker, limit=max_keys)
    return xml_response(
        xml.list_objects(
            page,
            bucket=request.at_bucket,
            prefix=request.query.get("prefix", ""),
            delimiter=request.query.get("delimiter", ""),
            marker=marker,
            max_keys=max_keys,
            url=url,
            owner=OWNER,
        )
    )


async def list_objects_v2(context: Context, request: Request) -> Response:
    token = request.query.get("continuation-token")
    if token == "":
        raise invalid_argument("The continuation token provided is incorrect", "continuation-token", "")
    start_after = request.query.get("start-after")
    fetch_owner = request.query.get("fetch-owner", "false")
    max_keys = _max_keys(request)
    url = request.encodes_url()
    after = xml.decode_token(token) if token is not None else start_after or ""
    page = await _page(context, request, after=after, limit=max_keys)
    return xml_response(
        xml.list_objects_v2(
            page,
            bucket=request.at_bucket,
            prefix=request.query.get("prefix", ""),
            delimiter=request.query.get("delimiter", ""),
            max_keys=max_keys,
            url=url,
            start_after=start_after,
            token=token,
            owner=OWNER if fetch_owner.lower() == "true" else None,
        )
    )


async def list_object_versions(context: Context, request: Request) -> Response:
    query = request.query
    key_marker = query.get("key-marker", "")
    version_id_marker = query.get("version-id-marker", "")
    if "version-id-marker" in query:
        if not key_marker:
            raise invalid_argument(
                "A version-id marker cannot be specified without a key marker.", "version-id-marker", version_id_marker
            )
        if version_id_marker == "":
            raise invalid_argument("A version-id marker cannot be empty.", "version-id-marker", "")
    max_keys = _max_keys(request)
    url = request.encodes_url()
    keymap = context.store.keymap
    keymap.bucket(request.at_bucket)
    if max_keys == 0:
        page = VersionsPage([], [])
    else:
        page = keymap.list_versions(
            request.at_bucket,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            key_marker=key_marker,
            version_id_marker=version_id_marker,
            limit=max_keys,
        )
    await context.store.index.wait_durable(keymap.applied_lsn())
    return xml_response(
        xml.list_versions(
            page,
            bucket=request.at_bucket,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            key_marker=key_marker,
            version_id_marker=version_id_marker,
            max_keys=max_keys,
            url=url,
            owner=OWNER,
        )
    )
