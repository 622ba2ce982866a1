"""`reengage erasures`: what was forgotten, and the proof of it."""

from services.cli.groups import new_group
from services.cli.options import Json, Limit, Target

app = new_group("Shows erasures: how far one is, and the proof that a device was forgotten.")


@app.command("list")
def list_erasures(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists the erasures of an app, newest first."""
    from services.cli.connections import with_attribution
    from services.cli.erasures import print_erasures, read_erasures

    found = with_attribution(target, lambda stub: read_erasures(stub, app_id, limit))
    print_erasures(app_id, found, as_json)


@app.command("get")
def get_erasure(app_id: str, erasure_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows how far an erasure is, and when it is done the proof: the rows erased, by table."""
    from services.cli.connections import with_attribution
    from services.cli.erasures import print_erasure, read_erasure

    print_erasure(with_attribution(target, lambda stub: read_erasure(stub, app_id, erasure_id)), as_json)
