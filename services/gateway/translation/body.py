"""The JSON of a server-to-server sender: where each key stands, and how its values are read."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import KNOWN_KINDS
from libs.domain.record_sizes import readable
from libs.errors import Violations
from libs.numbers import read_number
from services.gateway.bodies import NOT_A_NUMBER, parse_json
from services.gateway.errors import Refused

ABSENT: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing."""
ID_NAMES = KNOWN_KINDS | {"gaid"}
"""The names that an id may have, beside that of the app instance."""
_TRUE = (True, "true", "True", "TRUE", "1", 1)
_FALSE = (False, "false", "False", "FALSE", "0", 0, "", None)
_ROOT_KEYS = frozenset({"kochava_app_id", "kochava_device_id"})
_CUT_ALTERS = ID_NAMES | {"record_id", "kochava_app_id"}
_UNITS = ((10**17, 10**9), (10**14, 10**6), (10**11, 10**3))
"""From which number of them on a time is in nanoseconds, microseconds, milliseconds; and how many a second has."""
_NO_TIME_S = 10**12


class Body:
    """One JSON object: each key is found in `data` or at the root, and what is wrong is collected by its path.

    `currency_code` is that of amounts without one.
    """

    __slots__ = ("currency_code", "data", "root", "warnings")

    def __init__(self, root: Mapping[str, Any], warnings: Violations) -> None:
        self.root, self.warnings = root, warnings
        self.currency_code = "USD"
        data = root.get("data")
        self.data: Mapping[str, Any] = data if isinstance(data, dict) else self._read_object("data", data)

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
            if isinstance(value, str):
                return value
            if type(value) is int:
                return str(value)
            self.warnings.add(self.path(key), "INVALID_TYPE", "left out: must be text")
        return ""

    def as_flag(self, path: str, value: Any) -> bool:
        """Returns a yes or no: bool, "true", "1"."""
        if isinstance(value, dict | list) or value not in (*_TRUE, *_FALSE):
            self.warnings.add(path, "INVALID_BOOLEAN", "left out: must be true or false")
            return False
        return value in _TRUE

    def object(self, key: str) -> Mapping[str, Any]:
        """Returns a JSON object; empty when it is absent, as "" and [] are too."""
        value = self.get(key)
        return value if isinstance(value, dict) else self._read_object(self.path(key), value)

    def _read_object(self, path: str, value: Any) -> Mapping[str, Any]:
        """Returns the object that a text holds, as some senders write it; an empty one for anything else."""
        if value in ABSENT:
            return {}
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                found, is_odd = parse_json(value.encode())
            except Refused:
                found, is_odd = {}, True
            if isinstance(found, dict) and not is_odd:
                self.warnings.add(path, "INVALID_TYPE", "must be an object; the text was read as the one that it holds")
                return found
        self.warnings.add(path, "INVALID_TYPE", "left out: must be an object")
        return {}


def read_body(root: Mapping[str, Any], warnings: Violations, *, is_odd: bool) -> Body:
    """Returns the body of one JSON object. `is_odd`: some of its texts or numbers may be none."""
    return Body(readable_json(root, warnings) if is_odd else root, warnings)


def take_time(body: Body, into: Timestamp, path: str, value: Any) -> None:
    """Reads the seconds since 1970, or milli-, micro- or nanoseconds by their magnitude, into a time.

    One that is out of all range is left as such, for ingest to refuse.
    """
    number = value if type(value) is int else read_number(value)
    if number is None:
        body.warnings.add(path, "INVALID_TIME", "left out: must be epoch seconds or milliseconds")
        return
    per_s = next((per_s for least, per_s in _UNITS if number >= least), 1)
    # Exactly: a Decimal has 28 digits.
    micros = int(Decimal(number) * 1_000_000 / per_s) if -_NO_TIME_S < number < 10**21 else _NO_TIME_S * 1_000_000
    into.seconds, rest = divmod(micros, 1_000_000)
    into.nanos = rest * 1000


def readable_json(value: Any, found: Violations, path: str = "") -> Any:
    """Returns a parsed value with what PostgreSQL or anybody else can read; what was wrong is added to `found`.

    NaN and infinities are left out. NUL and what is no UTF-8 become U+FFFD; an id with such is left out.
    """
    if value is NOT_A_NUMBER:
        found.add(path, "INVALID_NUMBER", "left out: NaN and infinity are no numbers")
        return None
    if isinstance(value, str):
        text = readable(value)
        if text == value:
            return value
        is_left_out = path.rpartition(".")[2].lower() in _CUT_ALTERS
        became = "left out" if is_left_out else "replaced by U+FFFD"
        found.add(path, "INVALID_TEXT", f"{became}: what is NUL or no UTF-8")
        return None if is_left_out else text
    if isinstance(value, list):
        return [readable_json(inner, found, f"{path}[{index}]") for index, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, inner in value.items():
        name = readable(key)
        inside = f"{path}.{name}" if path else name
        if name != key:
            found.add(inside, "INVALID_TEXT", "in its name what is NUL or no UTF-8 was replaced by U+FFFD")
        made[name] = readable_json(inner, found, inside)
    return made
