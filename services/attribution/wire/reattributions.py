"""Re-attributions as messages of the API."""

from libs.time import to_timestamp
from reengage.attribution.v1 import reattribution_pb2
from services.attribution.redecide.totals import Totals
from services.attribution.storage.reattributions import Reattribution


def reattribution_message(job: Reattribution) -> reattribution_pb2.Reattribution:
    """Returns a re-attribution as the API shows it."""
    message = reattribution_pb2.Reattribution(
        reattribution_id=job.reattribution_id,
        app_id=job.app_id,
        send_postbacks=job.send_postbacks,
        state=reattribution_pb2.Reattribution.State.ValueType(job.state),
        conversion_count=job.conversion_count,
        estimated_total_count=job.estimated_total_count,
        changed_count=job.changed_count,
        totals=Totals.from_json(job.totals).messages(),
    )
    message.start_time.FromMicroseconds(job.start_us)
    message.end_time.FromMicroseconds(job.end_us)
    message.create_time.CopyFrom(to_timestamp(job.create_time_us))
    if job.finish_time_us is not None:
        message.finish_time.CopyFrom(to_timestamp(job.finish_time_us))
    return message
