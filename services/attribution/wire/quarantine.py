"""Messages of the API about the quarantine, read and written."""

from libs.errors import Violations
from libs.time import to_timestamp
from reengage.attribution.v1 import quarantine_pb2
from services.attribution.storage.quarantine import Filter, Quarantined

_MAX_ITEMS = 1_000


def item_message(row: Quarantined) -> quarantine_pb2.QuarantinedItem:
    """Returns a thing that was set aside as it is listed."""
    what = row.what
    return quarantine_pb2.QuarantinedItem(
        item_id=f"{what.lane}.{row.number}",
        app_id=what.app_id,
        work=quarantine_pb2.QuarantineWork.ValueType(what.work),
        reason=quarantine_pb2.QuarantineReason.ValueType(what.reason),
        record_id=what.record_id,
        lane=what.lane if what.log_lane is None else what.log_lane,
        position=what.position or 0,
        error=what.error,
        create_time=to_timestamp(row.create_time_us),
        try_time=to_timestamp(row.try_time_us),
        try_count=row.try_count,
        retrying=row.is_retry_asked,
    )


def read_filter(asked: quarantine_pb2.QuarantineFilter, violations: Violations) -> Filter:
    """Returns what a filter means; notes what is wrong with it."""
    items = [_item(each) for each in asked.item_ids]
    violations.check_text("filter.app_id", asked.app_id, max_characters=256)
    if len(items) > _MAX_ITEMS:
        violations.add("filter.item_ids", "TOO_MANY", f"must be at most {_MAX_ITEMS:,}")
    if None in items:
        violations.add("filter.item_ids", "INVALID_ID", "must be ids of what is listed")
    check_enums(asked.work, asked.reason, violations, prefix="filter.")
    if not (asked.item_ids or asked.app_id or asked.work or asked.reason):
        violations.add("filter", "REQUIRED", "must say what is meant: ids, an app, a work or a reason")
    return Filter(
        items=[item for item in items if item is not None] if items else None,
        app_id=asked.app_id,
        work=asked.work,
        reason=asked.reason,
    )


def check_enums(work: int, reason: int, violations: Violations, *, prefix: str = "") -> None:
    """Notes a work or a reason that there is none of."""
    if work not in quarantine_pb2.QuarantineWork.values():
        violations.add(f"{prefix}work", "UNKNOWN_VALUE", "must be a value of QuarantineWork")
    if reason not in quarantine_pb2.QuarantineReason.values():
        violations.add(f"{prefix}reason", "UNKNOWN_VALUE", "must be a value of QuarantineReason")


def _item(item_id: str) -> tuple[int, int] | None:
    lane, _, number = item_id.partition(".")
    is_one = lane.isdecimal() and number.isdecimal() and len(lane) < 3 and len(number) < 19
    return (int(lane), int(number)) if is_one else None
