"""Root keys and users' secrets.

Root keys stand in DATA/credentials (mode 0600). Other users are records in the journal;
their secrets are sealed with AES-256-GCM under DATA/store.key, the one file to back up:
without it data survives, and users get new keys. Secrets are never logged.
"""

from __future__ import annotations

import os
import secrets
import string
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.changes import DeleteUser, Origin, PutUser
from engine.durable_files import write_private
from engine.errors import NotAStore, SecretUnsealable, StoreError
from engine.interfaces import Index
from engine.types import Access, User

KEY_BYTES = 32
_NONCE_BYTES = 12
_ACCESS_KEY_ALPHABET = string.ascii_uppercase + string.digits


class RootKeys(msgspec.Struct, frozen=True):
    access_key: str
    secret_key: str


class Credential(msgspec.Struct, frozen=True):
    """An access key with its secret in clear; lives only in memory."""

    name: str
    access_key: str
    secret_key: str
    access: Access
    root: bool = False


def new_access_key() -> str:
    return "".join(secrets.choice(_ACCESS_KEY_ALPHABET) for _ in range(20))


def new_secret_key() -> str:
    return secrets.token_urlsafe(30)


def create_store_key(data: Path) -> None:
    write_private(data / "store.key", secrets.token_bytes(KEY_BYTES))


def read_store_key(data: Path) -> bytes | None:
    """None when the file is missing: secrets stay sealed, everything else works."""
    try:
        key = (data / "store.key").read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != KEY_BYTES:
        raise SecretUnsealable(f"{data / 'store.key'} is damaged; restore it from your backup")
    return key


def write_root_keys(data: Path, keys: RootKeys) -> None:
    write_private(data / "credentials", msgspec.json.encode(keys) + b"\n")


def read_root_keys(data: Path) -> RootKeys:
    path = data / "credentials"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RootKeys)
    except FileNotFoundError:
        raise NotAStore(f"no root credentials at {path}; run objfs init, or restore the file") from None
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is damaged ({error}); restore it from your backup") from None


def seal(key: bytes, access_key: str, secret: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret.encode(), access_key.encode())


def unseal(key: bytes, access_key: str, sealed: bytes) -> str:
    """Raises SecretUnsealable."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], access_key.encode()).decode()
    except (InvalidTag, ValueError):
        raise SecretUnsealable(
            f"the secret of {access_key} was sealed under another store.key; restore the file or add the user again"
        ) from None


class Users:
    """Who may sign requests. `lookup` reads the keymap each time, so a change is seen at
    once; unsealed secrets are remembered by their sealed form."""

    def __init__(self, data: Path, index: Index) -> None:
        self._data = data
        self._index = index
        self._root = read_root_keys(data)
        self._key = read_store_key(data)
        self._unsealed: dict[bytes, str] = {}

    @property
    def root(self) -> RootKeys:
        return self._root

    def lookup(self, access_key: str) -> Credential | None:
        """Raises SecretUnsealable."""
        if access_key == self._root.access_key:
            return Credential("root", access_key, self._root.secret_key, Access.FULL, root=True)
        user = self._index.keymap.user_by_access_key(access_key)
        if user is None:
            return None
        secret = self._unsealed.get(user.sealed_secret)
        if secret is None:
            secret = unseal(self._sealing_key(), user.access_key, user.sealed_secret)
            self._unsealed[user.sealed_secret] = secret
        return Credential(user.name, user.access_key, secret, user.access)

    def list(self) -> list[User]:
        return self._index.keymap.users()

    async def add(
        self,
        name: str,
        *,
        access: Access = Access.FULL,
        access_key: str | None = None,
        secret_key: str | None = None,
        origin: Origin | None = None,
    ) -> Credential:
        """Raises AlreadyExists, SecretUnsealable (no store.key), StoreError (bad names)."""
        if not name or name == "root" or not name.isprintable():
            raise StoreError(f"{name!r} is no user name; use printable characters, and not root")
        access_key = access_key or new_access_key()
        secret_key = secret_key or new_secret_key()
        if access_key == self._root.access_key:
            raise StoreError(f"{access_key} is the root access key; choose another")
        sealed = seal(self._sealing_key(), access_key, secret_key)
        user = User(name, access_key, sealed, access)
        await self._index.commit(PutUser(user), origin or Origin(requester="root"))
        return Credential(name, access_key, secret_key, access)

    async def remove(self, name: str, *, origin: Origin | None = None) -> None:
        """Raises NoSuchUser."""
        await self._index.commit(DeleteUser(name), origin or Origin(requester="root"))

    def _sealing_key(self) -> bytes:
        if self._key is None:
            raise SecretUnsealable(f"{self._data / 'store.key'} is missing; restore it from your backup")
        return self._key
