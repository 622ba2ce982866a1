"""Erasures as messages of the API."""

from libs.time import to_timestamp
from reengage.attribution.v1 import erasure_pb2
from services.attribution.storage.erasures import Erasure


def erasure_message(erasure: Erasure) -> erasure_pb2.Erasure:
    """Returns an erasure as the API shows it."""
    is_done = erasure.work is None
    message = erasure_pb2.Erasure(
        erasure_id=str(erasure.erasure_id),
        app_id=erasure.app_id,
        state=erasure_pb2.Erasure.STATE_DONE if is_done else erasure_pb2.Erasure.STATE_RUNNING,
        erased_counts=erasure.erased_counts,
    )
    message.request_time.CopyFrom(to_timestamp(erasure.request_time_us))
    if erasure.finish_time_us is not None:
        message.finish_time.CopyFrom(to_timestamp(erasure.finish_time_us))
    return message
