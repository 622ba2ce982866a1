"""From an acceptable record to the entry that is stored: what it is recognised by, where it goes, what is kept."""

from hashlib import blake2b

from google.protobuf.timestamp_pb2 import Timestamp

from libs.lanes import lane_of
from reengage.ingest.v1 import ingest_pb2
from services.ingest.model import App, Entry, made_id
from services.ingest.validate import DEVICE_ID_NAMES, is_usable

_ENGAGEMENTS = frozenset({"click", "impression"})


def make_entry(record: ingest_pb2.Record, app: App, now_us: int) -> Entry:
    """The entry of a record without violations that came at `now_us`. Removes unusable device ids from `record` (A2).

    The key is a digest of app and record_id when the sender gave one, whatever else the record says; otherwise of its
    whole content. So a record_id that is used again, for another device say, is a repeat of the first record.
    """
    ids = record.device_ids
    for name in [name for name, value in ids.items() if not is_usable(value)]:
        del ids[name]
    # Deterministic, because maps have no order of their own and the digest must not depend on one.
    content = record.SerializeToString(deterministic=True)
    given_id = record.record_id
    if given_id:
        key = blake2b(f"{record.app_id}\0{given_id}".encode(), digest_size=16, person=b"record_id").digest()
    else:
        key = blake2b(content, digest_size=16, person=b"content").digest()
    filled = ingest_pb2.Record()
    if not given_id:
        filled.record_id = made_id(key, now_us // 1_000_000)
    if not record.HasField("event_time"):
        filled.event_time.CopyFrom(Timestamp(seconds=now_us // 1_000_000, nanos=now_us % 1_000_000 * 1000))
    device = next((ids[name] for name in DEVICE_ID_NAMES if name in ids), "")
    return Entry(
        key=key,
        given_id=given_id,
        accept_time_s=now_us // 1_000_000,
        # An engagement without an id stays with its address; without that, it goes anywhere.
        lane=lane_of(record.app_id, device.strip().lower() or record.ip_address or key.hex()),
        app_lane=app.app_lane,
        is_engagement=record.WhichOneof("kind") in _ENGAGEMENTS,
        # Two serialised messages, one after the other, are their merge.
        record=content + filled.SerializeToString(),
    )
