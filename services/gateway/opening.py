"""The page that opens an app on iOS, and leads on where it is not there: browsers have no other way to find out."""

import hashlib
from base64 import b64encode
from html import escape

from services.gateway.requests import Response

_SCRIPT = """
const open = document.getElementById("open").href, go = document.getElementById("go").href;
const onward = () => { if (!document.hidden) location.replace(go); };
if (document.body.dataset.touch && navigator.maxTouchPoints < 2) location.replace(go);
else { location.href = open; setTimeout(onward, 1500); }
"""
# What is written here runs, and nothing that a link could bring along.
_POLICY = f"default-src 'none'; script-src 'sha256-{b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", f"{_POLICY}; base-uri 'none'; frame-ancestors 'none'".encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Opening the app</title>
<body{touch}><p><a id="open" href="{url}">Open the app</a></p><p><a id="go" href="{fallback}">Go on without it</a></p>
<noscript><meta http-equiv="refresh" content="0;url={fallback}"></noscript>
<script>{script}</script></body></html>
"""


def opening_page(url: str, fallback: str, *, is_for_touch: bool) -> Response:
    """Returns a page that opens a URL in its app, and 1.5 s later the fallback if no app has come up.

    `is_for_touch`: a device without a touch screen goes to the fallback at once.
    """
    touch = ' data-touch="1"' if is_for_touch else ""
    page = _PAGE.format(touch=touch, url=escape(url), fallback=escape(fallback), script=_SCRIPT)
    return 200, _HEADERS, page.encode()
