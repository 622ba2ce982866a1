"""Reads user agents, and says which of them are alike: what a modeled match compares (A1, A5)."""

import re
from functools import lru_cache

from ua_parser import parse_device, parse_os

from services.attribution.decision.model import NO_HINTS, ClientHints, DeviceType, UserAgent

# Browsers that hide what device they run on name one of these instead.
_HIDDEN_MODELS = frozenset({"K", "Smartphone", "Tablet", "iOS-Device"})
_DARWIN = re.compile(r"\bDarwin/(\d+)")
_SAFARI_VERSION = re.compile(r"\bVersion/(\d+)")
_FIRST_FROZEN_SAFARI = 26
_DESKTOPS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Chrome OS"})
_TV = re.compile(r"\b(?:TV|SMART-TV|GoogleTV|BRAVIA|AFT[A-Z]\w*)\b", re.IGNORECASE)
_APPLE_FAMILIES = ("iPhone", "iPad", "iPod")
_HINTED_VERSION = re.compile(r"([1-9][0-9]{0,2})(?:\.([0-9]{1,3}))?(?:\.[0-9]+)*")


def user_agent_of(raw: str, hints: ClientHints = NO_HINTS) -> UserAgent | None:
    """Returns what a device's user agent and client hints say of it, None when they name no OS.

    Hints fill what the user agent leaves unknown, where they do not contradict its OS. OURS: only those of Android do,
    whose version is that of the OS: of Windows 11 browsers say 13 and more.
    """
    agent = parse_user_agent(raw) if raw else None
    if hints.platform != "Android":
        return agent
    if agent is None:
        agent = UserAgent(model="", os="Android", os_major="", os_minor="")
    if agent.os != "Android":
        return agent
    found = None if agent.os_major else _HINTED_VERSION.fullmatch(hints.platform_version)
    if found is not None:
        agent = agent._replace(os_major=found[1], os_minor=found[2] or "0")
    return agent if agent.model or not hints.model else agent._replace(model=_model_of(hints.model))


@lru_cache(maxsize=16_384)
def parse_user_agent(raw: str) -> UserAgent | None:
    """Returns what a decoded user agent says of its device, None when it names no OS.

    What a browser freezes or hides is unknown, not a value (A5): Chrome's `Android 10; K`, and the version of iOS in
    WebKit, which stays 18.6 from iOS 26 on. OURS: "14" and "14.0" are the same version, and white space of any kind is
    one space.
    """
    raw = " ".join(raw.split())
    os, device = parse_os(raw), parse_device(raw)
    if os is None:
        return None
    major, minor = os.major or "", (os.minor or "0") if os.major else ""
    if "AppleWebKit" in raw and (os.family, major) == ("iOS", "18") and int(minor) >= 6:
        # Only the version of Safari itself still tells the OS's.
        safari = _SAFARI_VERSION.search(raw)
        major, minor = (safari[1], "") if safari and int(safari[1]) >= _FIRST_FROZEN_SAFARI else ("", "")
    elif darwin := _DARWIN.search(raw):
        major, minor = _ios_of_darwin(int(darwin[1])) if os.family == "iOS" else major, ""
    model = device.model if device is not None and device.model is not None else ""
    if model in _HIDDEN_MODELS:
        model = ""
        if "AppleWebKit" in raw and (os.family, major) == ("Android", "10"):
            major = minor = ""
    type_ = _device_type(raw, os.family)
    return UserAgent(model=model, os=os.family, os_major=major, os_minor=minor, device_type=type_)


def are_alike(one: UserAgent | None, other: UserAgent | None, *, omit_os_minor: bool) -> bool:
    """Returns whether two user agents may be of one device (A5).

    They are if nothing known of both contradicts, and of both the OS and one of its version and the model is known.
    """
    if one is None or other is None or one.os != other.os:
        return False
    know_versions, know_models = bool(one.os_major and other.os_major), bool(one.model and other.model)
    if know_versions and one.os_major != other.os_major:
        return False
    if not omit_os_minor and one.os_minor and other.os_minor and one.os_minor != other.os_minor:
        return False
    if know_models and not _is_one_model(one.model, other.model):
        return False
    return know_versions or know_models


@lru_cache(maxsize=16_384)
def _model_of(hint: str) -> str:
    """Returns the model that a user agent names which is not frozen: some makers' names are no part of it."""
    agent = parse_user_agent(f"Dalvik/2.1.0 (Linux; U; Android 10; {hint} Build/Q)")
    return "" if agent is None else agent.model


def _device_type(raw: str, os: str) -> str:
    """Returns the type of a device, "" when its user agent does not tell, as those of apps do not on Android."""
    if os == "iOS":
        return DeviceType.TABLET if "iPad" in raw else DeviceType.PHONE if "iPhone" in raw or "iPod" in raw else ""
    if os != "Android":
        return DeviceType.DESKTOP if os in _DESKTOPS else ""
    if _TV.search(raw):
        return DeviceType.TV
    if "Mobile" in raw:
        return DeviceType.PHONE
    return DeviceType.TABLET if "AppleWebKit" in raw else ""


def _is_one_model(one: str, other: str) -> bool:
    """Returns whether two names may be of one model: Safari says `iPhone` of what an app calls `iPhone14,2`."""
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    return shorter in _APPLE_FAMILIES and longer.startswith(shorter)


def _ios_of_darwin(version: int) -> str:
    """Returns the iOS that runs on a version of Darwin: 6 below it until iOS 18, and from iOS 26 on 1 above it."""
    return str(version - 6) if version < 25 else str(version + 1)
