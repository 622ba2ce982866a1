"""Templates of requests: parsed once, rendered with every value escaped for the place it stands in."""

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import ClassVar, Self, TypeAlias
from urllib.parse import quote, quote_plus

import orjson

from services.postback.adapters.adapter import (
    Address,
    Allowed,
    Description,
    Field,
    FieldType,
    FieldValues,
    NotRenderableError,
    Report,
    Request,
    Stamp,
    register,
)
from services.postback.macros import MASK, SECRET_PREFIX, Values, is_known
from services.postback.retry import Answer, Verdict, judge

Escape: TypeAlias = Callable[[str], str]

MAX_FILLED_CHARACTERS = 128 * 1024
"""Of a URL, a header or a body."""

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
# Whose values give access: they are kept in clear, unless they come from a secret.
_CREDENTIAL_HEADER = re.compile(
    r"(proxy-)?authorization|cookie|(.*[-_])?(api[-_]?key|token|secret|password)", re.IGNORECASE
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_JSON_TYPE = re.compile(r"application/(json|[^;]*\+json)\s*(;|$)")
_XML_TYPE = re.compile(r"(text/xml|application/(xml|[^;]*\+xml))\s*(;|$)")


@dataclass(frozen=True, slots=True)
class Macro:
    """A place in a template that a value goes into."""

    name: str
    escape: Escape


Pieces: TypeAlias = tuple[str | Macro, ...]

DESCRIPTION = Description(
    name="template",
    label="Link-based network",
    help="""\
Sends a request made of templates. A {macro} in the URL, a header or the body is filled in for each conversion. Its
value is percent-encoded in the URL, JSON-escaped in a JSON body (outside of quotes there, a value that is no JSON
becomes a string, and an empty one null), and escaped in forms and XML. {{macro}}, (macro), [macro] and %{macro} of the
macros listed here are read as {macro}. Times are ISO 8601 in UTC with milliseconds, flags 1 or 0, amounts decimal
numbers of the currency's unit, which only is_revenue fills. The macros:
- The conversion: {event_name}, {event_time}, {event_timestamp} (whole seconds since 1970), {revenue} and {price} (the
  same amount), {currency}, {quantity} (event data of this name), {country} (of the address, else event data of this
  name), {install_time}.
- What it was attributed to: {attribution_type} (install, reengagement), {matched_by} (click_id, device_id, modeled, ip,
  claim), {lookback} (whole seconds), {tracker_id}, {tracker}, {campaign_id}, {campaign}, {segment}, {network_id},
  {network}, {agency}, {engagement_id}, {engagement_time}, {click_id} and {impression_id} (the
  network's own), {site_id}, {sub_site_id}, {creative_id}.
- The device: {device_id} (the platform's advertising id, or the next best), {idfa}, {idfv}, {adid}, {android_id},
  {oaid}, {kochava_device_id}, {ip_address}, {device_ua}, {os}, {os_version}, {limit_ad_tracking}, {att_status}.
- The app: {app_id}, {app_version}, {bundle_id}, {store_app_id}. The delivery: {delivery_id}.
- {cp_0} to {cp_9}: custom parameters of the winning link, else of its tracker. {secret.<name>}: a secret of the
  configuration.
Any other {name}, in this syntax only, is the event's data of that name, else the winning link's parameter, else the
tracker's custom parameter.""",
    takes_named_secrets=True,
    fields=(
        Field(
            name="method",
            type=FieldType.CHOICE,
            label="Method",
            help="GET has no body.",
            default="GET",
            allowed=(Allowed(value="GET", label="GET"), Allowed(value="POST", label="POST")),
        ),
        Field(
            name="url",
            type=FieldType.TEXT,
            label="URL",
            help="http or https; visible ASCII characters. The host must not hold a macro, user or password.",
            required=True,
            max_characters=4096,
        ),
        Field(
            name="headers",
            type=FieldType.HEADERS,
            label="Headers",
            help="Those that frame a request, Idempotency-Key and webhook-id are set for you. One that gives access, "
            "as Authorization or X-Api-Key, must hold a {secret.<name>}.",
            max_characters=4096,
            max_entries=32,
        ),
        Field(
            name="body",
            type=FieldType.TEXT,
            label="Body",
            help="POST only. At most 64 KB. Escaped by the Content-Type header; without one it is application/json.",
            max_characters=65_536,
        ),
        Field(
            name="default_value",
            type=FieldType.TEXT,
            label="Default value",
            help="The value of a macro that has none. Default: empty.",
            max_characters=1024,
        ),
        Field(
            name="success_substring",
            type=FieldType.TEXT,
            label="Success text",
            help="Text that the answer's body must contain, besides a 2xx status.",
            max_characters=1024,
        ),
    ),
)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A parsed template: the adapter of every link-based network."""

    description: ClassVar[Description] = DESCRIPTION

    method: str
    url: Pieces
    headers: tuple[tuple[str, Pieces], ...]
    body: Pieces
    default_value: str
    success_substring: str

    @classmethod
    def configure(cls, values: FieldValues, report: Report) -> Self:
        """Parses a template, and reports every wrong field of it.

        `{name}` is a macro whatever its name; `{{name}}`, `(name)`, `[name]` and `%{name}` are for built-in macros.
        Escaping: percent-encoding in the URL; no control characters in headers; in the body by its Content-Type header:
        JSON (the default; outside of quotes a value becomes a JSON value, null when empty), form, XML, else none.
        """
        method, url, headers, body = (
            values.text("method"),
            values.text("url"),
            values.headers("headers"),
            values.text("body"),
        )
        if not _VISIBLE_ASCII.fullmatch(url):
            report("url", "INVALID_URL", "must be percent-encoded: visible ASCII characters only")
        if body and method != "POST":
            report("body", "NOT_ALLOWED", "only a POST has a body")
        if len(body.encode()) > 64 * 1024:
            report("body", "TOO_LONG", "must be at most 64 KB")
        _check_headers(headers, report)
        url_pieces = _pieces(url, lambda _: _in_url)
        if url:
            _check_host(url_pieces, report)
        named = dict(headers)
        content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), None)
        if method == "POST" and body and content_type is None:
            content_type = named["Content-Type"] = "application/json"
        return cls(
            method=method,
            url=url_pieces,
            headers=tuple((name, _pieces(value, lambda _: _in_header)) for name, value in named.items()),
            body=_pieces(body, _escapes_of(content_type or "")),
            default_value=values.text("default_value"),
            success_substring=values.text("success_substring"),
        )

    @property
    def macros(self) -> frozenset[str]:
        """Returns the names of all its macros."""
        places = [self.url, self.body, *(value for _, value in self.headers)]
        return frozenset(piece.name for pieces in places for piece in pieces if isinstance(piece, Macro))

    @property
    def address(self) -> Address:
        """Returns the URL up to its first macro, which comes after the host."""
        start = self.url[0] if self.url else ""
        return Address(field_name="url", start=start if isinstance(start, str) else "")

    @property
    def secret_names(self) -> frozenset[str]:
        """Returns the secrets that its macros name."""
        return frozenset(name.removeprefix(SECRET_PREFIX) for name in self.macros if name.startswith(SECRET_PREFIX))

    @property
    def san_account_id(self) -> str:
        """Returns None: such networks are no self-attributing ones."""
        return ""

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:  # noqa: ARG002
        """Returns the filled-in template, and the same with its secrets masked. Raises NotRenderableError."""

        def plain(name: str) -> str:
            if name.startswith(SECRET_PREFIX):
                return secrets.get(name.removeprefix(SECRET_PREFIX), "")
            return values.get(name)

        def masked(name: str) -> str:
            return MASK if name.startswith(SECRET_PREFIX) and plain(name) else values.get(name)

        request = render(self, plain)
        return request, render(self, masked) if secrets else request

    def judge(self, answer: Answer) -> Verdict:
        """Returns the verdict. Success is a 2xx status, and the success text in the body when there is one."""
        return judge(answer, success_substring=self.success_substring)

    def claim(self, body: str) -> None:  # noqa: ARG002
        """Returns None, whatever was answered: such a network learns of conversions."""
        return


def render(template: Template, value_of: Callable[[str], str]) -> Request:
    """Returns the request of a template. `value_of` gives a macro's value, empty when there is none.

    Raises NotRenderableError when the URL, a header or the body becomes too long.
    """
    unmatched: set[str] = set()

    def part(piece: str | Macro) -> str:
        if isinstance(piece, str):
            return piece
        value = value_of(piece.name)
        if not value:
            unmatched.add(piece.name)
            value = template.default_value
        return piece.escape(value)

    def fill(pieces: Pieces) -> str:
        text = StringIO()
        for piece in pieces:
            # A long value many times over would be more than there is memory for.
            text.write(part(piece))
            if text.tell() > MAX_FILLED_CHARACTERS:
                raise NotRenderableError(f"filled in it has more than {MAX_FILLED_CHARACTERS:,} characters")
        return text.getvalue()

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
        report("url", "INVALID_URL", "must begin with http:// or https:// and a host without macros")
    elif len(url) > 1 and host[0] == start:
        report("url", "MACRO_IN_HOST", "the host must not hold a macro; put a / after it")
    elif "@" in host[0]:
        report("url", "INVALID_URL", "must not hold a user or password; send them in a header")


def _check_headers(headers: Mapping[str, str], report: Report) -> None:
    if len({name.lower() for name in headers}) < len(headers):
        report("headers", "REPEATED", "names must differ in more than case")
    for name, value in headers.items():
        field = f"headers[{name}]"
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _REFUSED_HEADERS:
            report(field, "INVALID_NAME", "must be a header's name, and not one that is set for you")
        elif not value.isprintable():
            report(field, "INVALID_VALUE", "must be printable")
        elif value and _CREDENTIAL_HEADER.fullmatch(name) and f"{{{SECRET_PREFIX}" not in value:
            report(field, "SECRET", "must hold {secret.<name>}: a value given here is kept and shown in clear")


def _pieces(text: str, escape_after: Callable[[str], Escape]) -> Pieces:
    """Returns a text as its parts. `escape_after` gets each literal one in turn, and returns the escaping of a macro
    that follows it."""
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
    """The place in a JSON text, read piece by piece: a macro stands inside of quotes or not."""

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
        orjson.loads(value)  # it refuses what is no JSON in earnest, NaN and the like, and what lies too deep
    except ValueError:
        return json.dumps(value)
    return value
