"""What ingest takes from the tracker's settings."""

from collections import defaultdict
from collections.abc import Iterable

from libs.domain.lanes import lane_of
from libs.domain.snapshots import Resources
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2, status_pb2, tracker_pb2
from services.ingest.model import DAY_S, App, Settings

_DEFAULT_AGE_S = 31 * DAY_S
_DEFAULT_LEAD_S = DAY_S


def build_settings(resources: Resources, revision: int) -> Settings:
    """Live apps with their limits and events, and all trackers."""
    event_names = defaultdict[str, list[str]](list)
    for app_id, event_name in resources["event_definition"]:
        event_names[app_id].append(event_name)
    return Settings(
        apps={
            app.app_id: _app(app, event_names[app.app_id])
            for app in resources["app"].values()
            if isinstance(app, app_pb2.App) and app.status != status_pb2.STATUS_ARCHIVED
        },
        app_of_tracker={
            tracker.tracker_id: tracker.app_id
            for tracker in resources["tracker"].values()
            if isinstance(tracker, tracker_pb2.Tracker)
        },
        stamp=record_pb2.Record(settings_revision=revision).SerializeToString(),
    )


def _app(app: app_pb2.App, event_names: Iterable[str]) -> App:
    limits = app.settings
    age_s = limits.max_record_age.seconds if limits.HasField("max_record_age") else _DEFAULT_AGE_S
    lead_s = limits.max_record_lead.seconds if limits.HasField("max_record_lead") else _DEFAULT_LEAD_S
    return App(
        max_age_us=age_s * 1_000_000,
        max_lead_us=lead_s * 1_000_000,
        app_lane=lane_of(app.app_id),
        event_names=frozenset(event_names),
    )
