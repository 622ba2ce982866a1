"""Shared ids as messages of the API."""

from libs.time import to_timestamp
from reengage.attribution.v1 import shared_id_pb2
from services.attribution.storage.shared_ids import SharedId


def shared_id_message(shared: SharedId) -> shared_id_pb2.SharedId:
    """Returns a shared id as it is listed."""
    message = shared_id_pb2.SharedId(
        kind=shared.kind, value=shared.value, advertising_id_count=shared.advertising_id_count
    )
    message.share_time.CopyFrom(to_timestamp(shared.place.share_time_us))
    return message
