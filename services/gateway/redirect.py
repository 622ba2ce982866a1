"""The URLs that a click leads to. Pure: the tracker, the click's parameters and the device in, URLs out.

A click link is never an open redirect: whatever the click's parameters say, the result has the scheme, the host, the
path and the query keys that the tracker's owner wrote. `libs.domain.link_targets` says where values may stand; a value
is encoded, so that it stays where it stands.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlencode

from libs.domain.link_targets import INTENT, MARKET, MARKET_ON_THE_WEB
from reengage.ingest.v1 import record_pb2
from services.gateway.links import custom_parameters, parameters_of, parse_query, passed_on
from services.gateway.model import CLICK_ID_KEY, Destination, Platform, Template, Tracker

_SIGNATURE = re.compile(rb"(?:^|&(?:amp;)*)signature=([0-9a-f]{64})?", re.IGNORECASE)
_AMPERSANDS = re.compile(rb"&(?:amp;)+", re.IGNORECASE)
_LEAD_ON = frozenset({"https", "android-app"})
"""Schemes of deep links that lead on where there is no app: to a page, or to the store."""
_IN_QUERY = re.compile(r"[?&]([^=&]*)")


class Lead(NamedTuple):
    """A place that a click leads to: `url`, and `fallback` for where no app opens that, empty if there is none.

    `is_for_touch`: the URL is for an iPad, if it is one, which shows only in the browser.
    """

    url: str
    fallback: str = ""
    is_for_touch: bool = False


def lead(tracker: Tracker, click_id: str, parameters: Mapping[str, str], user_agent: str) -> Lead | None:
    """Returns where this click leads: to the deep link on a device of the app's platform, else to the install URL.

    An archived tracker leads to the fallback URL of its app, as one without an install URL does. All get `ko_click_id`.
    Macros are filled from `parameters` (the click's query), the tracker's custom parameters and the click id; unknown
    ones are left empty. A Play referrer carries the click id and the custom parameters. Returns None when there is
    nowhere to lead to.
    """
    if not tracker.live:
        return _fallback(tracker, click_id)
    install = _install_url(tracker, click_id, parameters, user_agent)
    found = Lead(install) if install else _fallback(tracker, click_id)
    link = tracker.deep_link
    if link is None or not _opens_app(link, tracker):
        return found
    if platform_of(user_agent) is tracker.app.platform:
        url = deep_link_url(link, tracker, click_id, parameters)
        return Lead(url) if found is None or link.scheme in _LEAD_ON else Lead(url, found.url)
    if found is not None and tracker.app.platform is Platform.IOS and may_be_ipad(user_agent):
        return Lead(deep_link_url(link, tracker, click_id, parameters), found.url, is_for_touch=True)
    return found


def deferred_deep_link(tracker: Tracker, record: record_pb2.Record) -> str:
    """Returns the deep link of the click that a record is of, for the app to open once it is there; "" if none."""
    link = tracker.deep_link
    if link is None or not _opens_app(link, tracker) or not record.HasField("click"):
        return ""
    return add_parameter(_fill(link, tracker, record.record_id, parameters_of(record)), CLICK_ID_KEY, record.record_id)


def deep_link_url(link: Template, tracker: Tracker, click_id: str, parameters: Mapping[str, str]) -> str:
    """Returns the deep link of a click."""
    return _with_parameters(_fill(link, tracker, click_id, parameters), click_id, parameters)


def intent_url(url: str, package: str, fallback: str) -> str:
    """Returns the URL by which browsers on Android open another in its app, or the fallback where there is no app.

    An `intent:` URL gets the fallback, unless it has one. Others stand in the new one as they are, behind their scheme.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    extra = f"S.browser_fallback_url={quote(fallback, safe='')};"
    if scheme == INTENT:
        has_fallback = "S.browser_fallback_url=" in url or not url.endswith(";end")
        return url if has_fallback else f"{url[:-3]}{extra}end"
    of_package = f"package={package};" if package else ""
    return f"intent:{rest}#Intent;scheme={scheme};{of_package}{extra}end"


def platform_of(user_agent: str) -> Platform | None:
    """Returns the platform that a user agent names; None when it names neither.

    Browsers inside of apps name it as others do; an iPad that asks for the pages of a computer says `Macintosh`, and
    most of its browsers `Mobile` with it. Phones with Windows named all three.
    """
    if "Android" in user_agent:
        return Platform.ANDROID if "Windows Phone" not in user_agent else None
    if "iPhone" in user_agent or "iPad" in user_agent or "iPod" in user_agent:
        return Platform.IOS if "Windows Phone" not in user_agent else None
    if "Macintosh" in user_agent:
        return Platform.IOS if "Mobile/" in user_agent else None
    if user_agent.startswith(("okhttp/", "Dalvik/")):
        return Platform.ANDROID
    return Platform.IOS if "CFNetwork/" in user_agent and "Darwin/" in user_agent else None


def may_be_ipad(user_agent: str) -> bool:
    """Returns whether this is the Safari of a Mac, or of an iPad that asks for the pages of a computer."""
    return "Macintosh" in user_agent and "Safari/" in user_agent and "Version/" in user_agent


def add_parameter(url: str, key: str, value: str) -> str:
    """Returns a URL with one more query parameter, encoded, before its fragment; a `referrer` it has is added to."""
    body, hash_sign, fragment = url.partition("#")
    encoded = quote(value, safe="")
    if key == "referrer" and (found := _find_referrer(body)) >= 0:
        end = body.find("&", found)
        end = len(body) if end < 0 else end
        joint = "%26" if body[found:end] else ""
        return f"{body[:found]}{encoded}{joint}{body[found:end]}{body[end:]}{hash_sign}{fragment}"
    joint = "?" if "?" not in body else "" if body[-1] in "?&" else "&"
    return f"{body}{joint}{key}={encoded}{hash_sign}{fragment}"


def signed_part(query: bytes) -> bytes:
    """Returns what a signature signs of a query: all before it. What stands behind it is anyone's."""
    found = _SIGNATURE.search(query)
    return query[: found.start()] if found is not None else query


def signature_holds(tracker: Tracker, path: bytes, made_path: bytes, query: bytes, now_s: float) -> bool:
    """Returns whether a click may count, as far as its signature says; always so for a tracker without a key.

    The signature is the hex HMAC-SHA256 over path and query up to `&signature=`; `expires` (epoch seconds) is among
    what it signs. Where a mail program changed the link, that of `made_path` and the query as it was holds, too.
    """
    if not tracker.validation_key:
        return True
    found = _SIGNATURE.search(query)
    if found is None or found[1] is None:
        return False
    signed = query[: found.start()]
    expires = parse_query(signed).get("expires", "")
    if not expires.isascii() or not expires.isdigit() or len(expires) > 12 or int(expires) < now_s:
        return False
    texts = (path + b"?" + signed, made_path + b"?" + _AMPERSANDS.sub(b"&", signed))
    return any(_is_signature(found[1], text, tracker.validation_key) for text in texts)


def _is_signature(signature: bytes, text: bytes, key: bytes) -> bool:
    wanted = hmac.new(key, text, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(wanted, signature.lower())


def _fallback(tracker: Tracker, click_id: str) -> Lead | None:
    url = tracker.app.fallback_url
    return Lead(add_parameter(url, CLICK_ID_KEY, click_id)) if url else None


def _install_url(tracker: Tracker, click_id: str, parameters: Mapping[str, str], user_agent: str) -> str:
    if not tracker.install_url.scheme:
        return ""
    url = _fill(tracker.install_url, tracker, click_id, parameters)
    if tracker.install_url.scheme == MARKET and platform_of(user_agent) is not Platform.ANDROID:
        url = MARKET_ON_THE_WEB + url.partition("//")[2]
    if tracker.destination is Destination.GOOGLE_REFERRER:
        told = {**tracker.custom_parameters, **custom_parameters(parameters), **dict(passed_on(parameters))}
        return add_parameter(url, "referrer", urlencode({CLICK_ID_KEY: click_id} | told | {CLICK_ID_KEY: click_id}))
    return _with_parameters(url, click_id, parameters)


def _with_parameters(url: str, click_id: str, parameters: Mapping[str, str]) -> str:
    """Returns a URL with the click id, and before it what the link passes on and the URL does not have."""
    if "append_app_conv_trk_params" in parameters:
        held = {key.lower() for key in _IN_QUERY.findall(url.partition("#")[0])}
        for key, value in passed_on(parameters):
            if quote(key, safe="").lower() not in held:
                url = add_parameter(url, quote(key, safe=""), value)
    return add_parameter(url, CLICK_ID_KEY, click_id)


def _opens_app(link: Template, tracker: Tracker) -> bool:
    if link.scheme == INTENT and tracker.app.platform is not Platform.ANDROID:
        return False
    return link.opens == "https" or link.opens in tracker.app.url_schemes


def _find_referrer(body: str) -> int:
    for start in ("?referrer=", "&referrer="):
        found = body.find(start)
        if found >= 0:
            return found + len(start)
    return -1


def _fill(template: Template, tracker: Tracker, click_id: str, parameters: Mapping[str, str]) -> str:
    if not template.names:
        return template.text
    values = [_value(name, tracker, click_id, parameters) for name in template.names]
    filled = written = template.literals[0]
    for value, literal in zip(values, template.literals[1:], strict=True):
        filled += _encode(value, written) + literal
        written += literal
    return filled


def _encode(value: str, written: str) -> str:
    """Returns a value encoded so that it can stand after what the owner wrote before it."""
    body, hash_sign, _ = written.partition("#")
    _, question_mark, query = body.partition("?")
    if not value.strip(".") and not question_mark and not hash_sign:
        return ""  # `..` climbs in a path, and encoded it does so too
    encoded = quote(value, safe="")
    # In a query within a query, as `referrer=utm_source%3D{site_id}`, it is a value of the inner one.
    is_nested = "%3d" in query.rpartition("&")[2].lower()
    return quote(encoded, safe="") if is_nested else encoded


def _value(name: str, tracker: Tracker, click_id: str, parameters: Mapping[str, str]) -> str:
    match name:
        case "ko_click_id":
            return click_id
        case "campaign_id" | "tracker_id":
            return tracker.tracker_id
        case "network_id":
            return tracker.network_id
        case _:
            return parameters.get(name) or parameters.get(name.lower()) or tracker.custom_parameters.get(name, "")
