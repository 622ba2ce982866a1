"""`reengage records`: records of an app that were refused, or kept without what was wrong with them."""

from services.cli.groups import new_group
from services.cli.options import Json, Limit, Target

app = new_group("Shows records that were refused, and those that something was left out of.")


@app.command("warnings")
def list_warnings(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists the newest accepted records that were kept without a wrong field, or with less of it."""
    from libs.client import first
    from reengage.ingest.v1 import warned_record_pb2
    from services.cli.connections import with_ingest
    from services.cli.console import print_json
    from services.cli.record_tables import print_warned

    request = warned_record_pb2.ListWarningsRequest(app_id=app_id)
    found, _ = with_ingest(target, lambda stub: first(stub.ListWarnings, request, limit))
    if as_json:
        print_json(warned_record_pb2.ListWarningsResponse(warned=found))
    else:
        print_warned(app_id, found)


@app.command("refused")
def list_refused(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists the newest refused records, each with all that was wrong with it; --json has the whole record."""
    from libs.client import first
    from reengage.ingest.v1 import rejected_record_pb2
    from services.cli.connections import with_ingest
    from services.cli.console import print_json
    from services.cli.record_tables import print_refused

    request = rejected_record_pb2.ListRejectedRequest(app_id=app_id)
    found, _ = with_ingest(target, lambda stub: first(stub.ListRejected, request, limit))
    if as_json:
        print_json(rejected_record_pb2.ListRejectedResponse(rejected=found))
    else:
        print_refused(app_id, found)
