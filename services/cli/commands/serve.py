"""`reengage serve`: running a service."""

import sys

from services.cli.groups import single
from services.cli.service_names import ServiceName, check_service

app = single()


@app.command()
def serve(service: ServiceName) -> None:
    """Runs one service in this process, configured by its REENGAGE_* variables."""
    import runpy

    check_service(service)
    sys.argv = [f"services.{service}"]
    runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
