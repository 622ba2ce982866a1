"""ResolveSettings says what attribution does: two readings of B3, over random layers."""

from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from reengage.tracker.v1.app_pb2 import App, AppSettings
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.resolve_pb2 import ResolvedSetting
from reengage.tracker.v1.status_pb2 import STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows
from services.attribution.decision.model import Layer, WindowKind
from services.attribution.decision.rules import DISABLED, UNLIMITED
from services.attribution.wire.rulebook import build_rulebook
from services.tracker.effective_settings import tracker_settings

LAYERS = {
    ResolvedSetting.LAYER_TRACKER: Layer.TRACKER,
    ResolvedSetting.LAYER_NETWORK_SETTINGS: Layer.NETWORK,
    ResolvedSetting.LAYER_APP: Layer.APP,
    ResolvedSetting.LAYER_BUILT_IN: Layer.BUILT_IN,
}
lasting = st.integers(1, 2592000).map(lambda seconds: Duration(seconds=seconds))
limits = st.one_of(
    lasting.map(lambda duration: Window(duration=duration)),
    st.just(Window(disabled=True)),
)
names = [field.name for field in Windows.DESCRIPTOR.fields if field.name != "event_association"]
layers = st.builds(
    lambda windows, association: Windows(**windows, event_association=association),
    st.dictionaries(st.sampled_from(names), limits),
    st.none() | lasting.map(lambda duration: Window(duration=duration)) | st.just(Window(unlimited=True)),
)


def microseconds(setting: ResolvedSetting) -> int:
    if setting.WhichOneof("value") == "duration":
        return setting.duration.ToMicroseconds()
    match setting.window.WhichOneof("limit"):
        case "duration":
            return setting.window.duration.ToMicroseconds()
        case "unlimited":
            return UNLIMITED
        case _:
            return DISABLED


@settings(max_examples=200, deadline=None)
@given(
    of_tracker=layers,
    of_network=layers,
    of_app=layers,
    self_attributing=st.booleans(),
    post=st.tuples(st.none() | lasting, st.none() | lasting),
    late=st.tuples(*[st.none() | st.just(Duration()) | lasting] * 3),
    event=st.tuples(st.none() | lasting, st.none() | lasting),
)
def test_both_readings_agree(
    of_tracker: Windows,
    of_network: Windows,
    of_app: Windows,
    self_attributing: bool,
    post: tuple[Duration | None, Duration | None],
    late: tuple[Duration | None, ...],
    event: tuple[Duration | None, Duration | None],
) -> None:
    of_all = AppSettings(windows=of_app, late_window=late[0], inactivity_window=late[1])
    app = App(app_id="a", settings=of_all, status=STATUS_LIVE)
    network = Network(network_id="n", self_attributing=self_attributing, status=STATUS_LIVE)
    of_both = NetworkSettings(app_id="a", network_id="n", windows=of_network, late_pings=late[2])
    tracker = Tracker(
        tracker_id="t", app_id="a", network_id="n", events=["E"], windows=of_tracker, status=STATUS_LIVE,
        post_engagement_window=post[0], post_view_window=post[1],
    )  # fmt: skip
    definition = EventDefinition(
        app_id="a", event_name="E", min_time_to_reengagement=event[0], reengagement_period=event[1], status=STATUS_LIVE
    )
    rules = build_rulebook(
        {
            "app": {("a",): app},
            "network": {("n",): network},
            "network_settings": {("a", "n"): of_both},
            "campaign": {},
            "segment": {},
            "agency": {},
            "tracker": {("t",): tracker},
            "event_definition": {("a", "E"): definition},
            "san_account": {},
        },
        1,
    ).apps["a"]
    found = {setting.name: setting for setting in tracker_settings(tracker, app, network, of_both, {"E": definition})}
    for kind in WindowKind:
        name = kind.name.lower()
        setting = found.get(f"windows.{name}") or found.get(f"{name}_window")
        if setting is None:
            assert not self_attributing, name
            continue
        window = rules.trackers["t"].windows[kind]
        assert (microseconds(setting), LAYERS[setting.layer]) == (window.us, window.layer), name
    for name, given_to, us in (
        ("late_window", ResolvedSetting.LAYER_APP, rules.app.late_window_us),
        ("inactivity_window", ResolvedSetting.LAYER_APP, rules.app.inactivity_window_us),
        ("late_pings", ResolvedSetting.LAYER_NETWORK_SETTINGS, rules.trackers["t"].network.late_pings_us),
    ):
        given = {field.name for settings in (of_all, of_both) for field, _ in settings.ListFields()}
        layer = given_to if name in given else ResolvedSetting.LAYER_BUILT_IN
        assert (microseconds(found[name]), found[name].layer) == (us, layer), name
    assert microseconds(found["events[E].min_time_to_reengagement"]) == rules.mtr_us("E")
    assert microseconds(found["events[E].reengagement_period"]) == rules.reengagement_period_us("E")
