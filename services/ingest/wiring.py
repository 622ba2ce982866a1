"""The parts of the service, put together: for its main, and for tests that replace the world around it."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from libs.broadcast import Broadcast
from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.server import Face
from reengage.ingest.v1 import service_pb2
from reengage.ingest.v1.service_pb2_grpc import add_IngestServiceServicer_to_server
from services.ingest.erasure import SETTLE_S, Eraser
from services.ingest.model import IngestSettings
from services.ingest.refusals import Refusals
from services.ingest.registrations import Registrations
from services.ingest.service import IngestService
from services.ingest.storage.log import PAGE_BYTES, LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.writer import MAX_WAITING, Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The service, ready to be served, and what it is made of."""

    face: Face
    loops: Mapping[str, Callable[[], Awaitable[None]]]
    log: LogStore
    rejected: RejectedStore
    registrations: Registrations


def wire_parts(
    pool: Pool,
    settings: Follower[IngestSettings],
    *,
    register: Callable[[str, Collection[str]], Awaitable[object]],
    country_of: Callable[[str], str],
    page_bytes: int = PAGE_BYTES,
    max_waiting: int = MAX_WAITING,
    settle_s: float = SETTLE_S,
) -> Parts:
    """Returns the parts. `register` tells tracker the names of new events of an app, `country_of` that of an address.

    `page_bytes` bounds a page of the log, `max_waiting` the records that wait to be written, and `settle_s` is the time
    after which no refusal is on its way any more.
    """
    log, rejected, grown = LogStore(pool, page_bytes=page_bytes), RejectedStore(pool), Broadcast()
    writer, refusals = Writer(log.append, grown.notify, max_waiting=max_waiting), Refusals(rejected.keep)
    registrations = Registrations(register)
    service = IngestService(
        settings=settings,
        writer=writer,
        refusals=refusals,
        registrations=registrations,
        log=log,
        rejected=rejected,
        eraser=Eraser(log, rejected, settle_s=settle_s),
        grown=grown,
        country_of=country_of,
    )
    descriptor = service_pb2.DESCRIPTOR.services_by_name["IngestService"]
    return Parts(
        face=Face.of(descriptor, add_IngestServiceServicer_to_server, service),
        loops={
            "settings": settings.run,
            "writer": writer.run,
            "refusals": refusals.run,
            "registrations": registrations.run,
        },
        log=log,
        rejected=rejected,
        registrations=registrations,
    )
