"""`make run`: the suite with the sample app, until told to stop."""

import asyncio
import os
import secrets
import time

from rich.console import Console
from rich.markup import escape

from deploy.local.network import LocalNetwork
from deploy.local.sample import settings
from deploy.local.suite import HOST, SERVICES, Announce, Ports, Suite, running_suite
from libs.channels import open_channel
from services.cli.places import DATA

COMMAND = ".venv/bin/reengage"
USER_AGENT = "Mozilla/5.0 (Linux; Android 14; Pixel 8)"


async def run(ports: Ports) -> int:
    """Starts all, says what to open and what to call, and keeps all running until a signal cancels it."""
    console = Console(highlight=False)
    with console.status("Starting") as status:
        announce = told(console)
        async with (
            running_suite(DATA, ports, announce=announce) as suite,
            LocalNetwork().serving(HOST, ports.network),
        ):
            await load_sample(suite)
            announce("The sample app is loaded")
            status.stop()
            console.print(_what_to_try(ports), soft_wrap=True)
            await asyncio.get_running_loop().create_future()  # until cancelled
    return 0


async def load_sample(suite: Suite) -> int:
    """Creates the sample's settings; returns their revision."""
    ports = suite.ports
    async with (
        open_channel(ports.address("tracker"), key=suite.admin_key) as tracker,
        open_channel(ports.address("postback")) as postback,
    ):
        return await settings.load(
            tracker,
            postback,
            f"http://{ports.address('network')}",
            allowed_hosts=os.environ.get("REENGAGE_ALLOWED_HOSTS", ""),
        )


def told(console: Console) -> Announce:
    """Prints lines with the seconds since the start."""
    began = time.monotonic()
    return lambda line: console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {line}", soft_wrap=True)


def _what_to_try(ports: Ports) -> str:
    gateway, network = f"http://{ports.address('gateway')}", f"http://{ports.address('network')}"
    device, number = secrets.token_hex(16), secrets.token_hex(3)
    adid = f"{device[:8]}-{device[8:12]}-{device[12:16]}-{device[16:20]}-{device[20:]}"
    click = f"{gateway}/c/android-acme-return?adid={adid}&click_id=net-{number}&sku=4711"
    event = (
        f'{{"action":"event","kochava_app_id":"{settings.ANDROID}","record_id":"try-{number}","data":'
        f'{{"event_name":"Purchase","device_ids":{{"adid":"{adid}"}},"origination_ip":"203.0.113.7",'
        f'"device_ua":"{USER_AGENT}","event_data":{{"sum":"19.90","currency":"EUR"}}}}}}'
    )
    explain = f'{{"app_id":"{settings.ANDROID}","conversion_id":"try-{number}"}}'
    services = "".join(f"\n  {name:<12} {ports.address(name)}" for name in SERVICES if name != "gateway")
    return f"""
[bold green]Reengage runs.[/] Ctrl-C stops it. Its data is kept in {escape(str(DATA))}, logs in logs/ there.

  gateway      [bold]{gateway}[/]  (HTTP: SDKs, server-to-server, ad links){services}
  postbacks    {network}  (a local ad network: what it received)

[bold]Three things to try, in this order[/]

[dim]# 1. Someone clicks an ad: a redirect into the app[/]
curl -i -A '{USER_AGENT}' '{click}'

[dim]# 2. and buys something[/]
curl {gateway}/track/json -d '{event}'

[dim]# 3. What drove that, over gRPC? (`{COMMAND} explain {settings.ANDROID} try-{number}` shows the same as a table)[/]
{COMMAND} call attribution/ExplainDecision '{explain}'

[dim]# What the network was told: {COMMAND} deliveries {settings.ANDROID}[/]
"""
