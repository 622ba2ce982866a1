"""The suite on one machine: `python -m deploy.local up|demo|bench`, which `make run`, `demo` and `bench` call.

Exit codes: 0 done; 1 it failed, or a check did not hold; 2 wrong usage; 130 interrupted.
"""

import asyncio
import runpy
import sys
from collections.abc import Coroutine
from typing import NoReturn

import typer

from deploy.local import demo as demonstration
from deploy.local import up as suite_with_sample
from deploy.local.processes import StartError
from deploy.local.suite import Ports
from services.cli.places import ROOT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Runs Reengage on this machine. Data is in .data, or where REENGAGE_DATA says.",
)
INTERRUPTED = 130


def _port(service: str, default: int) -> int:
    option: int = typer.Option(
        default, f"--{service}-port", envvar=f"REENGAGE_PORT_{service.upper()}", min=1, max=65535
    )
    return option


@app.command()
def up(
    gateway_port: int = _port("gateway", 8080),
    tracker_port: int = _port("tracker", 7101),
    ingest_port: int = _port("ingest", 7102),
    attribution_port: int = _port("attribution", 7103),
    postback_port: int = _port("postback", 7104),
    network_port: int = _port("network", 8090),
    metrics_port: int = _port("metrics", 7201),
) -> None:
    """Starts PostgreSQL and all services with a sample app, and keeps them running; Ctrl-C stops all.

    REENGAGE_ALLOWED_HOSTS (host:port, ..: where postbacks may go besides public addresses) and REENGAGE_TRUSTED_PROXIES
    (whose X-Forwarded-For is believed) are passed on to postback and gateway.
    """
    ports = Ports(
        gateway=gateway_port,
        tracker=tracker_port,
        ingest=ingest_port,
        attribution=attribution_port,
        postback=postback_port,
        network=network_port,
        metrics=metrics_port,
    )
    # A signal is how `up` is meant to end.
    raise typer.Exit(_run(suite_with_sample.run(ports), interrupted=0))


@app.command()
def demo() -> None:
    """Plays the sample traffic through a suite of its own, shows and checks what became of it, and stops.

    Uses a throwaway database and free ports, so it does not disturb a suite that runs already. Exit code 1 when a
    number is not what the sample must give.
    """
    raise typer.Exit(_run(demonstration.run()))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measures, and prints a table with each number's ratio to a limit of this machine; `--help` lists its options."""
    sys.argv = ["python -m deploy.local bench", *context.args]
    runpy.run_path(str(ROOT / "tests" / "bench" / "run.py"), run_name="__main__")


def _run(main: Coroutine[None, None, int], *, interrupted: int = INTERRUPTED) -> int:
    """Returns the exit code of `main`; `interrupted` when a signal ended it."""
    try:
        return asyncio.run(main)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return interrupted
    except StartError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m deploy.local")
