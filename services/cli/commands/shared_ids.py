"""`reengage shared-ids`: the ids of an app that are nobody's."""

from services.cli.groups import single
from services.cli.options import Json, Limit, Target

app = single()


@app.command()
def shared_ids(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists device ids that are nobody's, because more than 5 advertising ids came with each.

    Such an id joins no devices and matches nothing: often a constant that one version of the app sends for all users.
    """
    from libs.client import first
    from reengage.attribution.v1 import shared_id_pb2
    from services.cli.connections import with_attribution
    from services.cli.console import print_json
    from services.cli.decision_tables import print_shared_ids

    request = shared_id_pb2.ListSharedIdsRequest(app_id=app_id)
    found, _ = with_attribution(target, lambda stub: first(stub.ListSharedIds, request, limit))
    if as_json:
        print_json(shared_id_pb2.ListSharedIdsResponse(shared_ids=found))
    else:
        print_shared_ids(app_id, found)
