"""The words of the gateway: apps and trackers as a link needs them, and URLs with macros."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from libs.domain.link_targets import LinkError, opened_scheme, scheme_of

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
    scheme: str = field(init=False)
    """The scheme, in lower case; empty where no click may lead to this URL, as a value would choose what opens."""
    opens: str = field(init=False)
    """The scheme by which it opens an app: that which an `intent:` tells, or its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", quote(self.text, safe=URL_CHARACTERS + "{}"))
        pieces = _PLACE.split(self.text)
        object.__setattr__(self, "literals", tuple(pieces[::2]))
        object.__setattr__(self, "names", tuple(pieces[1::2]))
        try:
            scheme, opens = scheme_of(self.text), opened_scheme(self.text)
        except LinkError:
            scheme = opens = ""
        object.__setattr__(self, "scheme", scheme)
        object.__setattr__(self, "opens", opens)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app, as requests name it. `bundle_id` is one as its platform has them, or ""."""

    app_id: str
    platform: Platform
    bundle_id: str = ""
    fallback_url: str = ""
    link_domains: frozenset[str] = frozenset()
    apple_team_id: str = ""
    certificate_fingerprints: tuple[str, ...] = ()
    url_schemes: frozenset[str] = frozenset()
    records_per_second: int = 0
    """0 is no limit."""
    currency_code: str = "USD"
    live: bool = True
    is_strict: bool = False
    """True: takes what is signed with one of `auth_keys` alone."""
    auth_keys: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """API keys and their secrets."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages; `*` is every one."""
    keeps_push_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """A tracker, as a link needs it. Archived ones too: their clicks are kept, and led to the app's fallback URL."""

    tracker_id: str
    app: App
    network_id: str = ""
    destination: Destination = Destination.CUSTOM
    install_url: Template
    deep_link: Template | None = None
    custom_parameters: Mapping[str, str] = field(default_factory=dict)
    validation_key: bytes = field(default=b"", repr=False)
    live: bool = True
