"""Load over HTTP from a process of its own: `python -m tests.bench.http_load PORT KIND COUNT CONNECTIONS`.

Each connection sends its next request when its last was answered. Prints JSON: seconds, and answers by status.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_AGENT = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Mobile"


def click(number: int) -> bytes:
    """Returns a click of a device of its own."""
    path = f"/c/bench?network_id=net&site_id=s1&click_id=c-{number}&adid=a1b2c3d4-0000-4000-8000-{number:012}&cp_0=x"
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: {_AGENT}\r\n\r\n".encode()


def track(number: int) -> bytes:
    """Returns an event with revenue, of one of a thousand devices."""
    data = {
        "event_name": "Purchase",
        "device_ua": _AGENT,
        "origination_ip": "203.0.113.7",
        "device_ids": {"adid": f"a1b2c3d4-0000-4000-8000-{number % 1000:012}"},
        "event_data": {"sum": 9.99, "currency": "EUR", "order": number},
    }
    event = {"action": "event", "kochava_app_id": "bench", "kochava_device_id": f"KD{number % 1000}", "data": data}
    body = json.dumps(event)
    return f"POST /track/json HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


KINDS: dict[str, Callable[[int], bytes]] = {"click": click, "track": track}


class Connection(asyncio.Protocol):
    """A connection that sends what `requests` gives, one after the other; `done` when there is nothing left."""

    def __init__(self, requests: Iterator[bytes], statuses: Counter[str]) -> None:
        self._requests, self._statuses = requests, statuses
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass of it
        self._send()

    def data_received(self, data: bytes) -> None:
        """Sends the next once the answer is whole."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received)
        if len(self._received) - end - 4 >= (int(length[1]) if length else 0):
            self._statuses[self._received[9:12].decode()] += 1
            self._received = b""
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails, as a server that hangs up has failed."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self.done.done():
            self.done.set_result(None)


async def main(port: int, kind: str, count: int, connections: int) -> None:
    """Sends, counts, prints."""
    requests = iter([KINDS[kind](number) for number in range(count)])
    statuses: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: Connection(requests, statuses), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in opened))
    print(json.dumps({"seconds": time.perf_counter() - began, "statuses": statuses}))  # noqa: T201


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
