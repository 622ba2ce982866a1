"""Errors about hostile requests: printable, cut, few enough, and within what every gRPC client takes."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.channels import open_channel
from libs.domain.record_sizes import MAX_WARNINGS
from libs.errors import (
    MAX_STATUS_BYTES,
    MAX_VIOLATIONS,
    MORE,
    ErrorDetails,
    InvalidArgument,
    NotFound,
    ServiceError,
    Violation,
    Violations,
    shown,
    to_status,
)
from reengage.attribution.v1 import what_if_pb2
from reengage.ingest.v1 import record_batch_pb2
from reengage.tracker.v1 import settings_file_pb2, snapshot_pb2, tracker_edit_pb2, tracker_pb2
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from services.cli.connections import describe
from services.cli.settings_file import read_settings_file
from tests.attribution.conftest import (  # noqa: F401  # fixtures
    StartWorld,
    event,
    following_config,
    hand_over_s,
    start_world,
    what_if_config,
)
from tests.conftest import Database
from tests.postback.conftest import purchase, running
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, serving

TEXTS = ["x" * 100_000, "\0\r\n\x1b[31m" * 1000, "\ud800" * 500, "😀" * 10_000, "%" * 5000, ""]


def size(error: ServiceError) -> int:
    """Returns the bytes of a status in metadata: its message percent-encoded, and its details in base64."""
    status = to_status(error)
    encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in status.message.encode())
    return encoded + -(-len(status.SerializeToString()) // 3) * 4


@pytest.mark.parametrize("count", [1, 2, 50, 51, 10_000])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:2]))
def test_wrong_fields_are_bounded(text: str, count: int) -> None:
    violations = Violations()
    for number in range(count):
        violations.add(f"field[{number}].{text}", "WRONG", f"must not be {text}")
    with pytest.raises(InvalidArgument) as caught:
        violations.check()
    error = caught.value
    assert len(error.violations) == min(count, MAX_VIOLATIONS)
    assert size(error) <= MAX_STATUS_BYTES
    told = f"… and {count - MAX_VIOLATIONS + 1:,} more"
    if count > MAX_VIOLATIONS:
        assert (error.violations[-1].reason, error.violations[-1].description) == (MORE, told)
        assert error.message.endswith(" more")
    for one in error.violations:
        assert (one.field + one.description).isprintable()


def test_what_fits_is_told_whole() -> None:
    wrong = [Violation(field=f"field[{number}]", reason="REQUIRED", description="must be set") for number in range(20)]
    assert InvalidArgument(wrong).message == "; ".join(f"field[{number}]: must be set" for number in range(20))
    assert InvalidArgument(wrong).violations == tuple(wrong)


@given(st.lists(st.tuples(st.text(), st.text(max_size=400)), max_size=80), st.text(max_size=2000))
def test_a_status_is_never_too_large(wrong: list[tuple[str, str]], text: str) -> None:
    named = [Violation(field=field, reason="WRONG", description=description) for field, description in wrong]
    assert size(InvalidArgument(named)) <= MAX_STATUS_BYTES
    assert size(NotFound("NOT_FOUND", text, first_id=text, second_id=text, third_id=text)) <= MAX_STATUS_BYTES


@given(st.text(), st.integers(3, 300))
def test_a_shown_text_is_printable_and_short(text: str, max_bytes: int) -> None:
    found = shown(text, max_bytes)
    assert found.isprintable()
    assert len(found.encode()) <= max_bytes
    if text.isprintable() and len(text.encode()) <= max_bytes:
        assert found == text


async def wrong_of(call: Awaitable[Any]) -> ErrorDetails:
    """Returns what a call with a thousand wrong fields failed with."""
    found = await samples.failure(call)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert 1 < len(found.violations) <= MAX_VIOLATIONS
    assert found.violations[-1].reason == MORE
    assert found.message.endswith(" more")
    return found


async def test_postback_tells_of_a_thousand_wrong_conversions(database: Database, tmp_path: Path) -> None:
    conversions = [purchase(app_id="\0" + "😀" * 300) for _ in range(1000)]
    async with running(database, tmp_path / "s") as service:
        await wrong_of(service.enqueue(*conversions))


async def test_tracker_tells_of_thousands_of_wrong_resources(database: Database) -> None:
    wrong = samples.acquisition(tracker_id="\0", name="\x1b" * 500, events=["\0"] * 20)
    wanted = settings_file_pb2.WantedSettings(app_id="kodemo1", resources=[snapshot_pb2.Resource(tracker=wrong)] * 1000)
    async with serving(database) as served, open_channel(served.target, key=ADMIN_KEY) as channel:
        tracker = TrackerConfigServiceStub(channel)
        await samples.create_parents(tracker)
        await wrong_of(tracker.PlanSettings(settings_file_pb2.PlanSettingsRequest(wanted=wanted)))
        rows = b'{"tracker_id": "\\u0000", "name": "\\u001b", "segment_id": "x"}\n' * 4000
        file = tracker_edit_pb2.ImportTrackersRequest(
            app_id="kodemo1", format=tracker_edit_pb2.FILE_FORMAT_NDJSON, content=rows
        )
        await wrong_of(tracker.ImportTrackers(file))


async def test_attribution_tells_of_thousands_of_wrong_overrides(
    database: Database,
    start_world: StartWorld,  # noqa: F811
) -> None:
    wrong = snapshot_pb2.Resource(tracker=tracker_pb2.Tracker(tracker_id="t", app_id="\0" * 100))
    async with start_world(database) as world:
        request = what_if_pb2.WhatIfRequest(app_id="\0", overrides=[wrong] * 5000)
        request.start_time.seconds = request.end_time.seconds = 1
        found = await samples.failure(world.attribution.WhatIf(request).read())
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.message.isprintable()


async def test_ingest_tells_of_every_record_in_part(database: Database, start_world: StartWorld) -> None:  # noqa: F811
    data = {f"{number:04}" + "\U0001f600" * 60: "\0" for number in range(60)}
    wrong = event(0, {"adid": "\0"}, event={"event_data": data})
    async with start_world(database) as world:
        results = (await world.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[wrong] * 200))).results
    assert {len(result.warnings) for result in results} == {MAX_WARNINGS}
    assert {result.warnings[-1].code for result in results} == {MORE}
    assert all(one.field.isprintable() and len(one.field.encode()) <= 160 for one in results[0].warnings)


def many(field: str) -> tuple[Violation, ...]:
    return InvalidArgument([Violation(field=field, reason="WRONG", description="is wrong")] * 60).violations


def test_the_command_line_says_how_many_are_left_out() -> None:
    lines = describe(InvalidArgument(many("name")), "tracker", "here").splitlines()
    assert lines[-2:] == ["  name: is wrong (WRONG)", "  … and 11 more"]


def test_a_settings_file_is_told_so_beside_its_lines() -> None:
    file = read_settings_file("app:\n  app_id: shop\n  name: Shop\n  platform: IOS\n")
    problems = file.located(many("resources[0].app.name"))
    assert problems is not None
    assert len(problems) == 50
    assert {(line, message) for line, message in problems if "more" in message} == {(3, "… and 11 more")}
