"""`reengage erasures`: what was forgotten, and the proof of it."""

from typing import TYPE_CHECKING

from services.cli.groups import new_group
from services.cli.options import Json, Limit, Target

if TYPE_CHECKING:
    from reengage.attribution.v1 import erasure_pb2

app = new_group("Shows erasures: how far one is, and the proof that a device was forgotten.")


@app.command("list")
def list_erasures(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists the erasures of an app, newest first."""
    from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
    from services.cli.connections import connected, run
    from services.cli.erasures import print_erasures, read_erasures

    async def ask() -> "list[erasure_pb2.Erasure]":
        async with connected("attribution", target) as channel:
            return await read_erasures(AttributionServiceStub(channel), app_id, limit)

    print_erasures(app_id, run(ask()), as_json)


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
