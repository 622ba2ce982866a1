"""The JSON of a server-to-server sender: where each key stands, and how its values are read."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import Violations
from services.gateway.links import epoch_s

ABSENT: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing."""
_TRUE = (True, "true", "True", "TRUE", "1", 1)
_FALSE = (False, "false", "False", "FALSE", "0", 0, "", None)
_ROOT_KEYS = frozenset({"kochava_app_id", "kochava_device_id"})


class Body:
    """One JSON object: each key is found in `data` or at the root, and what is wrong is collected by its path.

    `currency_code` is that of amounts without one.
    """

    __slots__ = ("currency_code", "data", "root", "violations")

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.currency_code = "USD"
        data = root.get("data")
        self.violations = Violations()
        if data not in ABSENT and not isinstance(data, dict):
            self.violations.add("data", "INVALID_TYPE", "must be an object")
        self.data: Mapping[str, Any] = data if isinstance(data, dict) else {}

    def get(self, key: str) -> Any:
        """Returns the value of a key; None when it is absent."""
        value = self.data.get(key)
        return self.root.get(key) if value is None else value

    def path(self, key: str) -> str:
        """Returns where the sender wrote this key, or would be expected to."""
        if self.data.get(key) is None and (
            self.root.get(key) is not None or key in _ROOT_KEYS or "data" not in self.root
        ):
            return key
        return f"data.{key}"

    def text(self, *keys: str) -> str:
        """Returns the text of the first of these keys that has one; numbers as they are written."""
        for key in keys:
            value = self.get(key)
            if value is None or value == "":
                continue
            if type(value) is str:
                return value
            if type(value) is int:
                return str(value)
            if type(value) is float:
                return json.dumps(value)
            self.violations.add(self.path(key), "INVALID_TYPE", "must be text")
        return ""

    def as_flag(self, path: str, value: Any) -> bool:
        """Returns a yes or no: bool, "true", "1"."""
        if isinstance(value, dict | list | float) or value not in (*_TRUE, *_FALSE):
            self.violations.add(path, "INVALID_BOOLEAN", "must be true or false")
            return False
        return value in _TRUE

    def object(self, key: str) -> Mapping[str, Any]:
        """Returns a JSON object; empty when it is absent, as "" and [] are too."""
        value = self.get(key)
        if isinstance(value, dict):
            return value
        if value not in ABSENT:
            self.violations.add(self.path(key), "INVALID_TYPE", "must be an object")
        return {}


def take_time(body: Body, into: Timestamp, path: str, value: Any) -> None:
    """Reads epoch seconds or milliseconds into a time."""
    seconds = epoch_s(value)
    if seconds is None:
        body.violations.add(path, "INVALID_TIME", "must be epoch seconds or milliseconds")
        return
    into.seconds = int(seconds)
    into.nanos = round((seconds - into.seconds) * 1000) * 1_000_000 % 1_000_000_000
