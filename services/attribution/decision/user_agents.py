"""Reads a user agent: the part of it that a modeled match compares (A1)."""

from functools import lru_cache

from ua_parser import parse_device, parse_os

from services.attribution.decision.model import UserAgent


@lru_cache(maxsize=16_384)
def parse_user_agent(raw: str) -> UserAgent | None:
    """The signature of a decoded user agent, None when it names no device model or no OS version.

    OURS: agents of which nothing is known are not alike, so they never match as MODELED. iOS names no model finer than
    `iPhone`. "14" and "14.0" are the same version, and white space of any kind is one space.
    """
    raw = " ".join(raw.split())
    os, device = parse_os(raw), parse_device(raw)
    if os is None or os.major is None or device is None or device.model is None:
        return None
    return UserAgent(model=device.model, os=os.family, os_major=os.major, os_minor=os.minor or "0")
