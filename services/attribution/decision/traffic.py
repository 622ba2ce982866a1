"""The traffic that a tracker counts: which of its rules an engagement breaks (G2, TRAFFIC_RULE).

OURS: a list of what is allowed takes only what it names, so not what is not known; a bound, or a list of what is
blocked, refuses only what is known to break it, as browsers hide versions (A5).
"""

from dataclasses import dataclass

from services.attribution.decision.model import DeviceType, TrafficRule, UserAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRules:
    """The rules of a tracker; what is empty or None is no rule.

    `operating_systems` are named as user agents name them. Versions are up to three numbers.
    """

    start_us: int | None = None
    end_us: int | None = None
    operating_systems: frozenset[str] = frozenset()
    min_os_version: tuple[int, ...] = ()
    max_os_version: tuple[int, ...] = ()
    device_types: frozenset[DeviceType] = frozenset()
    allowed_countries: frozenset[str] = frozenset()
    blocked_countries: frozenset[str] = frozenset()


def broken_rule(
    rules: TrafficRules, os: str, time_us: int, user_agent: UserAgent | None, country: str
) -> TrafficRule | None:
    """Returns the first of a tracker's rules that an engagement breaks, None if it breaks none.

    `os` is the app's: versions of another are not compared.
    """
    if (rules.start_us is not None and time_us < rules.start_us) or (
        rules.end_us is not None and time_us >= rules.end_us
    ):
        return TrafficRule.DATES
    if rules.operating_systems and (user_agent is None or user_agent.os not in rules.operating_systems):
        return TrafficRule.OS
    version = () if user_agent is None or user_agent.os != os else _version(user_agent)
    if _breaks_bounds(version, rules.min_os_version, rules.max_os_version):
        return TrafficRule.OS_VERSION
    if rules.device_types and (user_agent is None or user_agent.device_type not in rules.device_types):
        return TrafficRule.DEVICE_TYPE
    if country in rules.blocked_countries or (rules.allowed_countries and country not in rules.allowed_countries):
        return TrafficRule.COUNTRY
    return None


def _breaks_bounds(version: tuple[int, ...], lowest: tuple[int, ...], highest: tuple[int, ...]) -> bool:
    """Returns whether what is known of a version lies outside; `17` as the highest includes 17.4."""
    return version < lowest[: len(version)] or version[: len(highest)] > highest[: len(version)]


def _version(user_agent: UserAgent) -> tuple[int, ...]:
    """Returns the numbers that are known of the version of an OS, from the first one on."""
    known = []
    for part in (user_agent.os_major, user_agent.os_minor):
        if not part.isdecimal():
            break
        known.append(int(part))
    return tuple(known)
