"""Erasures as messages of the API."""

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
    message.request_time.FromDatetime(erasure.request_time)
    if erasure.finish_time is not None:
        message.finish_time.FromDatetime(erasure.finish_time)
    return message
