"""Device ids: their kinds, which of them are nobody's, and how they are compared (rules A2, A3, A7).

Every service asks here, so that a value is an id in all of them or in none.
"""

import re
from collections.abc import Mapping

PRIMARY_KINDS = ("kochava_device_id", "adid", "idfa", "idfv", "android_id", "oaid", "custom")
"""The kinds of A2, the one that names a device best first."""
RAW_KINDS = (*PRIMARY_KINDS, "rida", "faid", "imei", "udid", "mac", "odin")
"""These, and what senders give beside them."""
HASH_METHODS = {"md5": 32, "sha1": 40, "sha256": 64}
"""The methods that an id may be hashed with (A3), and the hex digits of such a hash."""
HASH_METHOD_OF_LENGTH = {length: method for method, length in HASH_METHODS.items()}
KINDS = (*RAW_KINDS, *(f"{kind}_{method}" for kind in RAW_KINDS for method in HASH_METHODS))
"""Every name an id may come under: raw, or hashed."""
KNOWN_KINDS = frozenset(KINDS)
HASHED_KINDS: Mapping[str, tuple[str, int]] = {
    f"{kind}_{method}": (kind, length) for kind in RAW_KINDS for method, length in HASH_METHODS.items()
}
"""The kinds of hashed ids, with the kind of the raw id and the hex digits of the hash."""
ADVERTISING_KINDS = frozenset(("adid", "idfa", "oaid", "rida", "faid"))
"""The kinds that a platform makes for advertising: one a device, until its user resets it (A8)."""
KINDS_OF_ADVERTISING_IDS = frozenset(kind for kind in KINDS if kind.split("_")[0] in ADVERTISING_KINDS)
"""These, raw or hashed."""

_NAME = r"\s*[A-Za-z_][\w.:-]*\s*"
_MACRO = re.compile(
    "|".join(
        (
            rf"\{{{_NAME}\}}", rf"\{{\{{{_NAME}\}}\}}", rf"\[{_NAME}\]", rf"\({_NAME}\)", rf"<{_NAME}>",
            rf"%{_NAME}%", rf"%%{_NAME}%%", rf"%\{{{_NAME}\}}", rf"\$\{{{_NAME}\}}", rf"\${_NAME}\$",
            rf"#\{{{_NAME}\}}", rf"__{_NAME}__", rf"##{_NAME}##",
        )
    ),
    re.ASCII,
)  # fmt: skip
_STAND_INS = frozenset(
    {
        "null", "(null)", "nil", "none", "undefined", "unknown", "n/a", "na", "false", "true", "anonymous", "optout",
        "not_available", "replace_me", "-1", "device_id", "device_id=device_id", "gaid", *KINDS,
    }
)  # fmt: skip
# What platforms hand out for "no id", as `normalise` spells it: the MAC of iOS 7 and later, the android id of a faulty
# emulator image, and the IMEI of emulators. All zero and all f are found without a list.
_CONSTANTS = frozenset({"020000000000", "9774d56d682e549c", "012345678912345"})
_MIN_LONG_ID = 32
_BEGINS_A_LONG_ID = frozenset("123456789abcdeABCDE")
_MARKS = frozenset("{[(<%$#_")


def is_macro(text: str) -> bool:
    """Returns whether a text is an unreplaced macro: one bare name in the marks of a template language (A7)."""
    return text[:1] in _MARKS and _MACRO.fullmatch(text) is not None


def is_usable(value: str) -> bool:
    """Returns whether an id, raw or hashed, is somebody's (A2)."""
    if len(value) >= _MIN_LONG_ID and value[0] in _BEGINS_A_LONG_ID:
        return True  # most ids: longer than any stand-in, no macro, neither all zero nor all f
    text = value.strip()
    compared = normalise(text)
    if not compared.strip("0 ") or not compared.strip("f "):
        return False
    return text.lower() not in _STAND_INS and compared not in _CONSTANTS and not is_macro(text)


def usable_ids(ids: Mapping[str, str]) -> dict[str, str]:
    """Returns the usable of some ids by kind (A2), trimmed."""
    return {kind: value.strip() for kind, value in ids.items() if is_usable(value)}


def normalise(value: str) -> str:
    """Returns an id or a hash as it is compared: without `-` and `:`, trimmed, in lower case (A3).

    It is trimmed last, so that `- Person` as it was received and ` person` as it is asked for are one.
    """
    return value.replace("-", "").replace(":", "").strip().lower()
