"""Names of events that the product itself gives, and names that nobody else may use."""

INSTALL = "_install"
"""An install, where a conversion is named like an event: in decisions, triggers and postbacks."""
SESSION_BEGIN = "SessionBegin"
"""The start of a session (D4)."""
DEEP_LINK = "_Deeplink"
"""An open by a deep link."""
UPDATE = "_Update"
"""New ids of a device; OURS."""
IDENTITY_LINK = "_identity_link"
"""An identity link (F3), where its decision is named."""

RESERVED_EVENT_DATA = frozenset(
    {
        "network", "source", "fb_campaign", "campaign", "site", "creative", "attribution_type", "integration_type",
        "integration_version", "cracked", "jailbroken",
    }
)  # fmt: skip
"""Names that event data may not carry: they are the product's own words about an event."""


def is_reserved(event_name: str) -> bool:
    """Returns whether no sender may name an event so."""
    return event_name.startswith(INSTALL)
