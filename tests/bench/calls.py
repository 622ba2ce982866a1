"""Calls a second of an empty grpc.aio handler: the cost of one unary call, whatever it carries."""

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import grpc

from tests.bench.row import Row

CONCURRENT = 32


async def bench(*, calls: int = 20_000) -> list[Row]:
    """Measures an empty handler in a process of its own."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/bench/Empty")
            left = calls

            async def client() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    await call(b"")

            began = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(CONCURRENT)))
            rate = calls / (time.perf_counter() - began)
    finally:
        server.terminate()
        server.join()
    return [Row(name="empty grpc.aio handler, 32 at once", value=rate, unit="calls/s")]


def _serve(parent: Connection) -> None:
    async def empty(request: bytes, context: object) -> bytes:
        return b""

    async def main() -> None:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(empty)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Empty": handler}),))
        parent.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())
