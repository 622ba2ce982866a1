"""A conversion with every macro filled, for previews."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID
from services.postback.model import Configuration

_EVENT_TIME = Timestamp(seconds=1_767_270_896, nanos=789_000_000)
_CLICK_TIME = Timestamp(seconds=1_767_267_296)
_INSTALL_TIME = Timestamp(seconds=1_766_664_000)


def sample_conversion(configuration: Configuration) -> conversion_pb2.Conversion:
    """Returns a reengagement (or an install, as the configuration's trigger says) won by a click on its network."""
    install = configuration.trigger == INSTALL
    record = record_pb2.Record(
        record_id="sample-conversion",
        app_id=configuration.app_id,
        event_time=_EVENT_TIME,
        device_ids={
            "idfa": "6D92078A-8246-4BA4-AE5B-76104861E7DC",
            "idfv": "599F9C00-92DC-4B5C-9464-7971F01F8370",
            "adid": "38400000-8cf0-11bd-b23e-10b96e40000d",
            "android_id": "3f9a2c5b7d1e4086",
            "oaid": "1fe9a970-efbb-29e0-0bdd-f5dbbf751ab5",
            "kochava_device_id": "KD1234567890",
        },
        ip_address="203.0.113.7",
        country="DE",
        user_agent="Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36",
        limit_ad_tracking=True,
        tracking_transparency=record_pb2.TrackingTransparency(
            authorized=True, detail=record_pb2.TrackingTransparency.DETAIL_AUTHORIZED
        ),
        app_version="3.2.1",
        install=record_pb2.Install() if install else None,
        event=None
        if install
        else record_pb2.Event(
            event_name=configuration.trigger,
            event_data={"quantity": "2"},
            revenue=record_pb2.Money(amount_micros=9_990_000, currency_code="EUR"),
        ),
    )
    decision = decision_pb2.Decision(
        app_id=configuration.app_id,
        conversion_id="sample-conversion",
        version=1,
        event_name=configuration.trigger,
        conversion_time=_EVENT_TIME,
        device_id="sample-device",
        outcome=decision_pb2.OUTCOME_ATTRIBUTED if install else decision_pb2.OUTCOME_REENGAGED,
        attribution_type=decision_pb2.ATTRIBUTION_TYPE_INSTALL
        if install
        else decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT,
        tracker_id="sample-tracker",
        network_id=configuration.network_id,
        campaign_id="sample-campaign",
        segment_id="sample-segment",
        engagement_id="sample-click",
        matched_by=decision_pb2.MATCH_KIND_DEVICE_ID,
        lookback=Duration(seconds=3600),
        install_time=_EVENT_TIME if install else _INSTALL_TIME,
    )
    click = record_pb2.Click(
        tracker_id="sample-tracker",
        click_id="network-click-1",
        ad=record_pb2.AdDetails(
            site_id="site-1",
            sub_site_id="sub-site-1",
            creative_id="creative-1",
            custom_parameters={f"cp_{n}": f"parameter {n}" for n in range(10)},
        ),
    )
    return conversion_pb2.Conversion(
        decision=decision,
        record=record,
        engagement=record_pb2.Record(
            record_id="sample-click", app_id=configuration.app_id, event_time=_CLICK_TIME, click=click
        ),
        names=conversion_pb2.Names(
            tracker="Sample tracker",
            campaign="Sample campaign",
            segment="Sample segment",
            network="Sample network",
            bundle_id="com.example.sample",
            store_app_id="1234567890",
            platform=PLATFORM_ANDROID,
            agency="Sample agency",
        ),
    )
