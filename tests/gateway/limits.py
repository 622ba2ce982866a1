"""The bounds of connections that a gateway has without settings."""

from dataclasses import fields

from services.gateway.__main__ import Config
from services.gateway.connections import Limits

LIMITS = Limits(**{limit.name: getattr(Config(), limit.name) for limit in fields(Limits)})
