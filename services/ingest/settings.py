"""The settings that ingest needs, built from tracker's resources."""

from collections import defaultdict
from collections.abc import Iterable

from libs.domain.lanes import lane_of
from libs.domain.setting_ranges import DEFAULT_RECORDS_PER_SECOND
from libs.domain.snapshots import Resources
from libs.time import DAY_US, duration_us
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2, status_pb2, tracker_pb2
from services.ingest.blocklist import Blocklist
from services.ingest.model import App, IngestSettings
from services.ingest.senders import senders_in

_DEFAULT_AGE_US = 31 * DAY_US
_DEFAULT_LEAD_US = DAY_US


def build_settings(resources: Resources, revision: int) -> IngestSettings:
    """Returns live apps with their limits and events, and all trackers."""
    event_names = defaultdict[str, list[str]](list)
    for app_id, event_name in resources["event_definition"]:
        event_names[app_id].append(event_name)
    return IngestSettings(
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
        senders=senders_in(resources),
        stamp=record_pb2.Record(settings_revision=revision).SerializeToString(),
    )


def _app(app: app_pb2.App, event_names: Iterable[str]) -> App:
    limits = app.settings
    has_rate = limits.HasField("records_per_second")
    has_age, has_lead = limits.HasField("max_record_age"), limits.HasField("max_record_lead")
    return App(
        max_age_us=duration_us(limits.max_record_age) if has_age else _DEFAULT_AGE_US,
        max_lead_us=duration_us(limits.max_record_lead) if has_lead else _DEFAULT_LEAD_US,
        records_per_second=limits.records_per_second if has_rate else DEFAULT_RECORDS_PER_SECOND,
        app_lane=lane_of(app.app_id),
        event_names=frozenset(event_names),
        blocklist=Blocklist(limits.blocklist) if limits.blocklist else None,
        is_strict=limits.strict_authentication,
        account_id=app.account_id,
    )
