"""The URL that a click leads to. Pure: the tracker, the click's parameters and the device in, a URL out.

A click link is never an open redirect: whatever the click's parameters say, the result has the scheme, the host, the
path and the query keys that the tracker's owner wrote. `libs.domain.link_targets` says where values may stand; a value
is encoded, so that it stays where it stands.
"""

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from services.gateway.model import CLICK_ID_KEY, Destination, Platform, Template, Tracker


def destination(tracker: Tracker, click_id: str, parameters: Mapping[str, str], user_agent: str) -> str | None:
    """Returns the URL for this click: the deep link on a device of the app's platform, else the install URL.

    Both get `ko_click_id`. Their macros are filled from `parameters` (the click's query), the tracker's custom
    parameters and the click id; unknown ones are left empty. A Play referrer carries the click id and the custom
    parameters. Returns None when the tracker has no URL that a click may lead to.
    """
    link = tracker.deep_link
    if link is not None and _opens_app(link, tracker) and platform_of(user_agent) is tracker.app.platform:
        return add_parameter(_fill(link, tracker, click_id, parameters), CLICK_ID_KEY, click_id)
    if not tracker.install_url.scheme:
        return None
    url = _fill(tracker.install_url, tracker, click_id, parameters)
    if tracker.destination is Destination.GOOGLE_REFERRER:
        custom = {**tracker.custom_parameters, **{k: v for k, v in parameters.items() if k.startswith("cp_")}}
        return add_parameter(url, "referrer", urlencode({CLICK_ID_KEY: click_id, **custom}))
    return add_parameter(url, CLICK_ID_KEY, click_id)


def platform_of(user_agent: str) -> Platform | None:
    """Returns the platform that a user agent names; None when it names neither."""
    if "Android" in user_agent:
        return Platform.ANDROID
    if "iPhone" in user_agent or "iPad" in user_agent or "iPod" in user_agent:
        return Platform.IOS
    return None


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


def signature_holds(tracker: Tracker, path_and_query: bytes, expires: str, now_s: float) -> bool:
    """Returns whether a click may count, as far as its signature says; always so for a tracker without a key.

    The signature is the last parameter, the hex HMAC-SHA256 over path and query up to `&signature=`; `expires` (epoch
    seconds) is among what it signs. Something unsigned after it could be anyone's, so the click does not count then.
    """
    if not tracker.validation_key:
        return True
    signed, _, signature = path_and_query.rpartition(b"&signature=")
    if not expires.isascii() or not expires.isdigit() or len(expires) > 12 or int(expires) < now_s:
        return False
    wanted = hmac.new(tracker.validation_key, signed, hashlib.sha256).hexdigest().encode()
    return hmac.compare_digest(wanted, signature.lower())


def _opens_app(link: Template, tracker: Tracker) -> bool:
    return link.scheme == "https" or link.scheme in tracker.app.url_schemes


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
            return parameters.get(name) or tracker.custom_parameters.get(name, "")
