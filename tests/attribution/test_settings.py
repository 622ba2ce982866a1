"""What attribution makes of tracker's settings."""

import pytest

from libs.snapshots import Resources
from reengage.tracker.v1 import tracker_pb2
from services.attribution.settings import build_settings


@pytest.mark.parametrize("sandbox", [False, True])
def test_what_is_handed_to_postback_says_whether_the_app_is_a_sandbox(sandbox: bool) -> None:
    app = tracker_pb2.App(app_id="app", sandbox=sandbox)
    tracker = tracker_pb2.Tracker(tracker_id="t", app_id="app", network_id="n", name="T")
    network = tracker_pb2.Network(network_id="n")
    kinds = ("app", "tracker", "network", "event_definition", "network_settings", "campaign", "segment")
    found: Resources = {"app": {("app",): app}, "tracker": {("t",): tracker}, "network": {("n",): network}}
    settings = build_settings({kind: found.get(kind, {}) for kind in kinds}, 1)
    assert settings.app_names["app"].sandbox == settings.tracker_names["t"].sandbox == sandbox
