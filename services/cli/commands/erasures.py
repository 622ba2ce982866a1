"""`reengage erasures`: what was forgotten, and the proof of it."""

from typing import TYPE_CHECKING

from services.cli.groups import new_group
from services.cli.options import Json, Target

if TYPE_CHECKING:
    from reengage.attribution.v1 import erasure_pb2

app = new_group("Shows erasures: how far one is, and the proof that a device was forgotten.")


@app.callback()
def _group() -> None:
    """Makes it a group, even of one command."""


@app.command("get")
def get_erasure(app_id: str, erasure_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows how far an erasure is, and when it is done the proof: the rows erased, by table."""
    from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
    from services.cli.connections import connected, run
    from services.cli.erasures import print_erasure, read_erasure

    async def ask() -> "erasure_pb2.Erasure":
        async with connected("attribution", target) as channel:
            return await read_erasure(AttributionServiceStub(channel), app_id, erasure_id)

    print_erasure(run(ask()), as_json)
