"""Templates of requests: parsed once, rendered with every value escaped for the place it stands in."""

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, quote_plus

from services.postback.adapters.adapter import Report, Request, Stamp
from services.postback.macros import MASK, SECRET_PREFIX, Values
from services.postback.retry import Answer, Verdict, judge

Escape: TypeAlias = Callable[[str], str]

# Those a delivery sets itself, and those that say where a request ends and whom it is for.
_REFUSED_HEADERS = frozenset(
    {
        "idempotency-key", "webhook-id", "host", "connection", "content-length", "content-encoding",
        "transfer-encoding", "accept-encoding", "upgrade", "expect", "te", "trailer",
    }
)  # fmt: skip

_NAME = r"([A-Za-z0-9_][A-Za-z0-9_.-]*)"
_MACRO = re.compile(rf"%\{{{_NAME}\}}|\{{\{{{_NAME}\}}\}}|\{{{_NAME}\}}|\({_NAME}\)|\[{_NAME}\]")
_URL_START = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_VISIBLE_ASCII = re.compile(r"[!-~]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_JSON_TYPE = re.compile(r"application/(json|[^;]*\+json)\s*(;|$)")
_XML_TYPE = re.compile(r"(text/xml|application/(xml|[^;]*\+xml))\s*(;|$)")


@dataclass(frozen=True, slots=True)
class Macro:
    """A place in a template that a value goes into."""

    name: str
    escape: Escape


Pieces: TypeAlias = tuple[str | Macro, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A parsed template: the adapter of every link-based network."""

    method: str
    url: Pieces
    headers: tuple[tuple[str, Pieces], ...]
    body: Pieces
    default_value: str
    success_substring: str

    @property
    def macros(self) -> frozenset[str]:
        """The names of all its macros."""
        places = [self.url, self.body, *(value for _, value in self.headers)]
        return frozenset(piece.name for pieces in places for piece in pieces if isinstance(piece, Macro))

    @property
    def address(self) -> tuple[str, str]:
        """The URL up to its first macro, which comes after the host."""
        start = self.url[0] if self.url else ""
        return "template.url", start if isinstance(start, str) else ""

    @property
    def secret_names(self) -> frozenset[str]:
        """Those its macros name."""
        return frozenset(name.removeprefix(SECRET_PREFIX) for name in self.macros if name.startswith(SECRET_PREFIX))

    @property
    def is_claim_capable(self) -> bool:
        """No: such a network learns of conversions."""
        return False

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:  # noqa: ARG002
        """The filled-in template, and the same with its secrets masked."""

        def plain(name: str) -> str:
            if name.startswith(SECRET_PREFIX):
                return secrets.get(name.removeprefix(SECRET_PREFIX), "")
            return values.get(name)

        def masked(name: str) -> str:
            return MASK if name.startswith(SECRET_PREFIX) and plain(name) else values.get(name)

        request = render(self, plain)
        return request, render(self, masked) if secrets else request

    def judge(self, answer: Answer) -> Verdict:
        """Success: a 2xx status, and the success substring in the body when there is one."""
        return judge(answer, success_substring=self.success_substring)

    def claim(self, body: str) -> None:  # noqa: ARG002
        """None, whatever was answered."""
        return


def parse(
    *,
    post: bool,
    url: str,
    headers: Mapping[str, str],
    body: str,
    default_value: str,
    success_substring: str,
    is_known: Callable[[str], bool],
    report: Report,
) -> Template:
    """Parse a template, and `report` every wrong field of it.

    `{name}` is a macro whatever its name; `{{name}}`, `(name)`, `[name]` and `%{name}` are for names that `is_known`.
    Escaping: percent-encoding in the URL; no control characters in headers; in the body by its Content-Type header:
    JSON (the default; outside of quotes a value becomes a JSON value, null when empty), form, XML, else none.
    """
    if not 1 <= len(url) <= 4096:
        report("template.url", "TOO_LONG" if url else "REQUIRED", "1 to 4,096 characters")
    elif not _VISIBLE_ASCII.fullmatch(url):
        report("template.url", "INVALID_URL", "must be percent-encoded: visible ASCII characters only")
    if body and not post:
        report("template.body", "NOT_ALLOWED", "only a POST has a body")
    if len(body.encode()) > 64 * 1024:
        report("template.body", "TOO_LONG", "at most 64 KB")
    _check_headers(headers, report)
    url_pieces = _pieces(url, is_known, lambda _: _in_url)
    if url:
        _check_host(url_pieces, report)
    named = dict(headers)
    content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), None)
    if post and body and content_type is None:
        content_type = named["Content-Type"] = "application/json"
    return Template(
        method="POST" if post else "GET",
        url=url_pieces,
        headers=tuple((name, _pieces(value, is_known, lambda _: _in_header)) for name, value in named.items()),
        body=_pieces(body, is_known, _escapes_of(content_type or "")),
        default_value=default_value,
        success_substring=success_substring,
    )


def render(template: Template, value_of: Callable[[str], str]) -> Request:
    """Fill in a template. `value_of` gives a macro's value, empty when there is none."""
    unmatched: set[str] = set()

    def fill(pieces: Pieces) -> str:
        parts = []
        for piece in pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            value = value_of(piece.name)
            if not value:
                unmatched.add(piece.name)
                value = template.default_value
            parts.append(piece.escape(value))
        return "".join(parts)

    return Request(
        method=template.method,
        url=fill(template.url),
        headers={name: fill(value) for name, value in template.headers},
        body=fill(template.body),
        unmatched=tuple(sorted(unmatched)),
    )


def _check_host(url: Pieces, report: Report) -> None:
    start = url[0]
    host = _URL_START.match(start) if isinstance(start, str) else None
    if host is None:
        report("template.url", "INVALID_URL", "must begin with http:// or https:// and a host without macros")
    elif len(url) > 1 and host[0] == start:
        report("template.url", "MACRO_IN_HOST", "the host must not hold a macro; put a / after it")
    elif "@" in host[0]:
        report("template.url", "INVALID_URL", "must not hold a user or password; send them in a header")


def _check_headers(headers: Mapping[str, str], report: Report) -> None:
    if len(headers) > 32:
        report("template.headers", "TOO_MANY", "at most 32")
    if len({name.lower() for name in headers}) < len(headers):
        report("template.headers", "REPEATED", "names must differ in more than case")
    for name, value in headers.items():
        field = f"template.headers[{name}]"
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _REFUSED_HEADERS:
            report(field, "INVALID_NAME", "must be a header's name, and not one that is set for you")
        elif not value.isprintable() or len(value) > 4096:
            report(field, "INVALID_VALUE", "at most 4,096 printable characters")


def _pieces(text: str, is_known: Callable[[str], bool], escape_after: Callable[[str], Escape]) -> Pieces:
    """`escape_after` is given each literal text in turn, and answers the escaping of a macro that follows it."""
    pieces: list[str | Macro] = []
    literal, place = "", 0
    for match in _MACRO.finditer(text):
        percent, _, single, round_, square = match.groups()
        name = next(filter(None, match.groups()))
        if single or is_known(name):
            before, after = "", ""
        elif round_ or square:
            continue
        else:  # of an unknown name only the inner {name} is a macro
            before, after = ("%", "") if percent else ("{", "}")
        literal += text[place : match.start()] + before
        if literal:
            pieces.append(literal)
        pieces.append(Macro(name, escape_after(literal)))
        literal, place = after, match.end()
    literal += text[place:]
    if literal:
        pieces.append(literal)
    return tuple(pieces)


def _escapes_of(content_type: str) -> Callable[[str], Escape]:
    content_type = content_type.strip().lower()
    if _JSON_TYPE.match(content_type):
        return _JsonPlaces().escape_after
    if content_type.startswith("application/x-www-form-urlencoded"):
        return lambda _: quote_plus
    if _XML_TYPE.match(content_type):
        return lambda _: html.escape
    return lambda _: str


class _JsonPlaces:
    """Follows a JSON text piece by piece, to know whether a macro stands inside of quotes."""

    def __init__(self) -> None:
        self._in_string = False

    def escape_after(self, literal: str) -> Escape:
        skip = False
        for character in literal:
            if skip:
                skip = False
            elif self._in_string and character == "\\":
                skip = True
            elif character == '"':
                self._in_string = not self._in_string
        return _in_json_string if self._in_string else _as_json_value


def _in_url(value: str) -> str:
    return quote(value, safe="")


def _in_header(value: str) -> str:
    return "".join(filter(str.isprintable, value))


def _in_json_string(value: str) -> str:
    return json.dumps(value)[1:-1]


def _as_json_value(value: str) -> str:
    if not value:
        return "null"
    try:
        json.loads(value, parse_constant=_refuse_constant)
    except ValueError:
        return json.dumps(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
