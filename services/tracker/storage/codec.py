"""Resources as they are stored: whole, serialised, with the texts that are secrets encrypted."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from libs.vault import Vault
from reengage.tracker.v1.snapshot_pb2 import Resource
from services.tracker.kinds import Kind

M = TypeVar("M", bound=Message)


class Codec:
    """The way of resources into columns, and back."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def stored(self, kind: Kind[M], resource: M) -> bytes:
        """Returns a resource as it is stored."""
        name = kind.encrypted
        if name and getattr(resource, name):
            copy = type(resource)()
            copy.CopyFrom(resource)
            _change_texts(copy, name, lambda secret: self._vault.seal({name: secret}).decode())
            resource = copy
        return resource.SerializeToString(deterministic=True)

    def parse(self, kind: Kind[M], stored: bytes) -> M:
        """Returns a stored resource."""
        resource = kind.message.FromString(stored)
        self._open(kind, resource)
        return resource

    def parse_any(self, kind: Kind[Any], stored: bytes, *, with_secrets: bool) -> Resource:
        """Returns a stored resource as one of any kind."""
        found = Resource()
        resource = getattr(found, kind.name)
        resource.MergeFromString(stored)
        if with_secrets:
            self._open(kind, resource)
        elif kind.encrypted:
            resource.ClearField(kind.encrypted)
        return found

    def _open(self, kind: Kind[Any], resource: Message) -> None:
        name = kind.encrypted
        if name and getattr(resource, name):
            _change_texts(resource, name, lambda sealed: self._vault.open(sealed.encode())[name])


def _change_texts(resource: Message, name: str, change: Callable[[str], str]) -> None:
    """Changes a text of a resource, or each text of a map."""
    held = getattr(resource, name)
    if isinstance(held, str):
        setattr(resource, name, change(held))
        return
    for key in list(held):
        held[key] = change(held[key])
