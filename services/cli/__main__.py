"""The command `reengage`, for `python -m services.cli`."""

from services.cli.app import app

app()
