"""The words of the gateway: apps and trackers as a link needs them, and URLs with macros."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

CLICK_ID_KEY = "ko_click_id"
URL_CHARACTERS = ":/?#[]@!$&'()*+,;=%-._~"
"""The characters that a URL may hold, beside letters and digits; all else, line ends above all, is percent-encoded."""

_PLACE = re.compile(r"\{([^{}]*)\}")


class Platform(enum.Enum):
    """The platform of an app or a device."""

    IOS = enum.auto()
    ANDROID = enum.auto()


class Destination(enum.Enum):
    """The kind of a tracker's install URL; a click leads to a landing page as to any other of its owner's."""

    CUSTOM = enum.auto()
    GOOGLE_REFERRER = enum.auto()


@dataclass(frozen=True, slots=True)
class Template:
    """A URL in which `{name}` stands for a value. `text` is made safe to send in a header."""

    text: str
    literals: tuple[str, ...] = field(init=False)
    names: tuple[str, ...] = field(init=False)
    origin: tuple[str, str] = field(init=False)
    """Scheme and host that the URL is bound to, lower case; empty where a place stands in them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", quote(self.text, safe=URL_CHARACTERS + "{}"))
        pieces = _PLACE.split(self.text)
        object.__setattr__(self, "literals", tuple(pieces[::2]))
        object.__setattr__(self, "names", tuple(pieces[1::2]))
        object.__setattr__(self, "origin", origin(self.text))

    @property
    def is_one_place(self) -> bool:
        """Returns whether a value is to be the whole URL."""
        return self.literals == ("", "")


def origin(url: str) -> tuple[str, str]:
    """Returns scheme and host (with a port, without user and password) of a URL; empty strings where it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    if "{" in parts.netloc or "{" in parts.scheme:
        return "", ""
    return parts.scheme, parts.netloc.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app, as requests name it."""

    app_id: str
    platform: Platform
    url_schemes: frozenset[str] = frozenset()
    records_per_second: int = 0
    currency_code: str = "USD"
    live: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """A tracker, as a link needs it. Archived ones too: their links lead on."""

    tracker_id: str
    app: App
    network_id: str = ""
    destination: Destination = Destination.CUSTOM
    install_url: Template
    deep_link: Template | None = None
    custom_parameters: Mapping[str, str] = field(default_factory=dict)
    validation_key: bytes = field(default=b"", repr=False)
