"""URLs that clicks lead to: where a macro `{name}` may stand in them. Pure.

A macro is filled with what a click says, and anybody can click anything. So it stands only where it cannot choose what
opens: behind scheme, user, host and port; in an `intent:` URL not in the path's part that names a host, and of what
follows on `#Intent;` only in values of extras, but never in the page that opens where the app is missing. Tracker
accepts no other URL, and the gateway leads nobody to one.
"""

import re
from urllib.parse import unquote, urlsplit

WEB = ("https", "http")
INTENT, MARKET = "intent", "market"
MARKET_ON_THE_WEB = "https://play.google.com/store/apps/"
"""The address of the Play Store on the web: `market://details?id=…` goes on behind it."""
SCRIPTS = frozenset({"javascript", "vbscript", "data", "blob", "file", "about"})
"""Schemes of URLs that lead nowhere, but run or show what stands in them."""

_PLAY_STORE = re.compile(r"(?:https?://play\.google\.com/store/apps/|market://)details\?", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_MACRO = re.compile(r"\{[^{}]*\}")
_EXTRA_WITH_MACRO = re.compile(r"[SBbcdfils]\.([^={]+)=.*", re.DOTALL)
_FALLBACK = "browser_fallback_url"
_AUTHORITY_ENDS = frozenset("/?#")


class LinkError(ValueError):
    """A URL that may not be led to: a stable reason, and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def scheme_of(url: str) -> str:
    """Returns the scheme of a URL that clicks may lead to, in lower case.

    Raises LinkError: INVALID_URL, INVALID_SCHEME, or MACRO_IN_TARGET where a macro would choose what opens.
    """
    if not url.isprintable() or " " in url or "\\" in url:
        raise LinkError("INVALID_URL", "must hold no spaces, no control characters and no backslashes")
    written = url.partition("{")[0]  # what comes before the first macro, which the click cannot change
    scheme, colon, _ = written.partition(":")
    if not colon and written != url and _AUTHORITY_ENDS.isdisjoint(written):
        raise _chooses("the scheme")
    if not colon or not _SCHEME.fullmatch(scheme):
        raise LinkError("INVALID_SCHEME", "must begin with a scheme")
    scheme = scheme.lower()
    if scheme in SCRIPTS:
        raise LinkError("INVALID_SCHEME", f"must not begin with {scheme}:")
    _check_authority(url, written[len(scheme) + 1 :])
    if scheme in WEB:
        _check_host(url)
    if scheme == "android-app" and written != url and written.count("/") < 5 and "#" not in written:
        raise _chooses("package, scheme or host")  # android-app://package/scheme/host/path
    _check_intent(url.partition("#")[2])
    return scheme


def opened_scheme(url: str) -> str:
    """Returns the scheme that an app registered to be opened by this URL, in lower case.

    That is its own, or what an `intent:` URL tells. Raises LinkError as `scheme_of`.
    """
    scheme = scheme_of(url)
    if scheme != INTENT:
        return scheme
    parts = url.partition("#")[2].split(";")
    told = next((part[len("scheme=") :] for part in parts if part.startswith("scheme=")), "")
    return told.lower() if parts[0] == "Intent" and _SCHEME.fullmatch(told) else scheme


def is_play_store(url: str) -> bool:
    """Returns whether a URL is of an app in the Play Store, which takes a `referrer`."""
    return _PLAY_STORE.match(url) is not None


def _check_authority(url: str, written: str) -> None:
    # Of `shop:/{a}/{b}` empty values would make `shop://b`.
    may_have_one = _MACRO.sub("", url).partition(":")[2].startswith("//")
    ends_before_macros = written.startswith("//") and not _AUTHORITY_ENDS.isdisjoint(written[2:])
    if "{" in url and may_have_one and not ends_before_macros:
        raise _chooses("user, host or port")


def _check_host(url: str) -> None:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise LinkError("INVALID_URL", "must be a URL") from None
    if not has_host:
        raise LinkError("INVALID_URL", "must name a host")


def _check_intent(fragment: str) -> None:
    """Checks the `#Intent;scheme=…;package=…;S.key=value;end` that Android makes an intent of, wherever it stands."""
    if not fragment.startswith("Intent"):
        return
    for part in fragment.split(";"):
        extra = _EXTRA_WITH_MACRO.fullmatch(part)
        if "{" in part and (extra is None or unquote(extra[1]) == _FALLBACK):
            raise _chooses("what an intent opens, or falls back on")


def _chooses(part: str) -> LinkError:
    return LinkError("MACRO_IN_TARGET", f"a macro must not choose {part}")
