"""objfs user add and list. Whoever can read DATA is root, and only root manages users."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from engine.types import Access, User
from objfs.commands.common import on_store
from objfs.commands.stores import check_keys
from objfs.render import columns

if TYPE_CHECKING:
    from engine.secrets import Credential
    from engine.store import Store


def add(arguments: argparse.Namespace) -> int:
    check_keys(arguments.access_key, arguments.secret_key)

    async def ask(store: Store) -> Credential:
        return await store.users.add(
            arguments.name,
            access=Access(arguments.access),
            access_key=arguments.access_key,
            secret_key=arguments.secret_key,
        )

    credential = on_store(arguments.data, ask)
    print(f"access key: {credential.access_key}\nsecret key: {credential.secret_key}")
    return 0


def list_users(arguments: argparse.Namespace) -> int:
    async def ask(store: Store) -> list[User]:
        await store.freshen()
        return [User("root", store.users.root.access_key, b"", root=True), *store.users.list()]

    users = on_store(arguments.data, ask)
    if arguments.json:
        print(json.dumps([{"name": user.name, "access": user.access, "access_key": user.access_key} for user in users]))
        return 0
    rows = [("NAME", "ACCESS", "ACCESS KEY", "CREATED")]
    rows += [(user.name, "root" if user.root else user.access.value, user.access_key, _when(user)) for user in users]
    print(columns(rows))
    return 0


def _when(user: User) -> str:
    return f"{datetime.fromtimestamp(user.created_ns // 10**9, UTC):%Y-%m-%d %H:%M}" if user.created_ns else "-"
