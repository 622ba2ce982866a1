"""Rules on traffic, as settings hold them: which countries, times and versions are taken, and how that is checked."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from libs.time import timestamp_us
from reengage.tracker.v1.app_pb2 import Platform
from reengage.tracker.v1.tracker_pb2 import TrafficRules

if TYPE_CHECKING:
    from libs.errors import Violations  # with it comes grpc, which takes the simulator 0.1 s to load

MAX_COUNTRIES = 250
_COUNTRY = re.compile(r"[A-Z]{2}")
_VERSION = re.compile(r"[0-9]{1,5}(\.[0-9]{1,5}){0,2}")


class CountryLists(Protocol):
    """A message with two lists of countries, ISO 3166-1, of which one may be given."""

    @property
    def allowed_countries(self) -> Sequence[str]:
        """Returns the only ones that are taken."""

    @property
    def blocked_countries(self) -> Sequence[str]:
        """Returns those that are not taken."""


def check_traffic_rules(path: str, rules: TrafficRules, violations: "Violations") -> None:
    """Notes what is wrong with the rules at `path`; times by themselves are the caller's to check."""
    has_both = rules.HasField("start_time") and rules.HasField("end_time")
    if has_both and timestamp_us(rules.end_time) <= timestamp_us(rules.start_time):
        violations.add(f"{path}.end_time", "OUT_OF_RANGE", "must be after start_time")
    _check_versions(path, rules, violations)
    _check_names(path, rules, violations)
    check_countries(path, rules, violations)


def check_countries(path: str, lists: CountryLists, violations: "Violations") -> None:
    """Notes what is wrong with the lists of countries of a message at `path`."""
    if lists.allowed_countries and lists.blocked_countries:
        violations.add(f"{path}.blocked_countries", "NOT_ALLOWED", "give these, or allowed_countries")
    for name in ("allowed_countries", "blocked_countries"):
        countries = getattr(lists, name)
        if len(countries) > MAX_COUNTRIES:
            violations.add(f"{path}.{name}", "TOO_MANY", f"must be at most {MAX_COUNTRIES}")
        for index, country in enumerate(countries):
            if not _COUNTRY.fullmatch(country):
                violations.add(f"{path}.{name}[{index}]", "UNKNOWN_VALUE", "must be an ISO 3166-1 code, as DE")
            elif country in countries[:index]:
                violations.add(f"{path}.{name}[{index}]", "DUPLICATE", f"{country} is named twice")


def _check_names(path: str, rules: TrafficRules, violations: "Violations") -> None:
    for name, enum in (("allowed_os", Platform), ("allowed_device_types", TrafficRules.DeviceType)):
        numbers = getattr(rules, name)
        for index, number in enumerate(numbers):
            if not number or number not in enum.values():
                violations.add(
                    f"{path}.{name}[{index}]", "UNKNOWN_VALUE", f"must be one of {', '.join(enum.keys()[1:])}"
                )
            elif number in numbers[:index]:
                violations.add(f"{path}.{name}[{index}]", "DUPLICATE", f"{enum.Name(number)} is named twice")


def _check_versions(path: str, rules: TrafficRules, violations: "Violations") -> None:
    versions = [name for name in ("min_os_version", "max_os_version") if getattr(rules, name)]
    wrong = [name for name in versions if not _VERSION.fullmatch(getattr(rules, name))]
    for name in wrong:
        violations.add(f"{path}.{name}", "INVALID_VERSION", "must be 1 to 3 numbers with dots, as 17.4")
    if len(versions) == 2 and not wrong:
        low, high = ([int(part) for part in getattr(rules, name).split(".")] for name in versions)
        if low[: len(high)] > high:  # 17 includes 17.4
            violations.add(f"{path}.max_os_version", "OUT_OF_RANGE", "must not be below min_os_version")
