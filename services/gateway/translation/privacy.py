"""Privacy: what the user allows, as a body says it."""

from typing import Any

from reengage.ingest.v1 import record_pb2
from services.gateway.translation.body import ABSENT, Body, take_time

_ATT_DETAILS = {
    name.removeprefix("DETAIL_").lower(): value
    for name, value in record_pb2.TrackingTransparency.Detail.items()
    if value != record_pb2.TrackingTransparency.DETAIL_UNSPECIFIED
} | {"notdetermined": record_pb2.TrackingTransparency.DETAIL_NOT_DETERMINED}


def take_limit_tracking(body: Body, record: record_pb2.Record, given: Any) -> None:
    """Reads whether the user limits ad tracking."""
    record.limit_ad_tracking = body.as_flag(body.path("device_limit_tracking"), given)


def take_data_controlled(body: Body, record: record_pb2.Record, given: Any) -> None:
    """Reads whether the user controls his data."""
    record.data_controlled = body.as_flag(body.path("data_controlled"), given)


def take_consent(body: Body, record: record_pb2.Record, given: Any) -> None:
    """Reads the consent of the user."""
    path, into = body.path("gdpr_privacy_consent"), record.privacy_consent
    if not isinstance(given, dict):
        if given not in ABSENT:
            body.warnings.add(path, "INVALID_TYPE", "left out: must be an object")
        return
    into.gdpr_applies = body.as_flag(f"{path}.gdpr_applies", given.get("gdpr_applies"))
    tc_string = given.get("tc_string")
    if isinstance(tc_string, str):
        into.tc_string = tc_string
    elif tc_string is not None:
        body.warnings.add(f"{path}.tc_string", "INVALID_TYPE", "left out: must be text")
    for name in ("ad_user_data", "ad_personalization"):
        if given.get(name) not in ABSENT:
            setattr(into, name, body.as_flag(f"{path}.{name}", given[name]))


def take_transparency(body: Body, record: record_pb2.Record, given: Any) -> None:
    """Reads the state of App Tracking Transparency."""
    path, into = body.path("app_tracking_transparency"), record.tracking_transparency
    if not isinstance(given, dict):
        if given not in ABSENT:
            body.warnings.add(path, "INVALID_TYPE", "left out: must be an object")
        return
    if not given:
        return
    into.authorized = body.as_flag(f"{path}.att", given.get("att"))
    detail = str(given.get("att_detail") or "").lower()
    if detail in _ATT_DETAILS:
        into.detail = _ATT_DETAILS[detail]
    elif detail:
        allowed = ", ".join(_ATT_DETAILS)
        body.warnings.add(f"{path}.att_detail", "INVALID_VALUE", f"left out: must be one of {allowed}")
    if given.get("att_time") not in ABSENT:
        take_time(body, into.answer_time, f"{path}.att_time", given["att_time"])
