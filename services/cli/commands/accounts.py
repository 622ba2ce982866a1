"""`reengage accounts`."""

from services.cli.kinds import ACCOUNT
from services.cli.resource_commands import resource_group

app = resource_group(
    ACCOUNT,
    by_app=False,
    create_help="Creates an account: at least name=NAME.",
    edit_help="Changes fields of an account, as name=Acme.",
)
