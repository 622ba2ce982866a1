"""`reengage san-accounts`."""

from services.cli.kinds import SAN_ACCOUNT
from services.cli.resource_commands import resource_group

app = resource_group(
    SAN_ACCOUNT,
    by_app=True,
    create_help="Creates an account with a self-attributing network (SAN): at least app_id=APP, network_id=NETWORK and "
    "name=NAME. Credentials are credentials=token=..,secret=.. or credentials=@FILE, a file of YAML, which no history "
    "keeps.",
    edit_help="Changes fields of an account with a self-attributing network, as verified=true or credentials=@FILE.",
)
