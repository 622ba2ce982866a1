"""Makes one request: through the guard, bounded in time and in what is read, never following a redirect."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from services.postback.adapters.adapter import Request
from services.postback.guard import AddressForbiddenError, Guard, Lookup
from services.postback.retry import Answer, Failure

MAX_READ_BYTES = 64 * 1024


class Sender:
    """The client for requests to public addresses, and to the guard's allowed hosts."""

    def __init__(self, guard: Guard, public: ClientSession, trusting: ClientSession) -> None:
        self._guard, self._public, self._trusting = guard, public, trusting

    async def send(self, request: Request, *, timeout_s: float, sandbox: bool) -> Answer:
        """Makes a request; that of a sandbox app only to the guard's allowed hosts.

        Whatever the other side does ends in an Answer, within the time given.
        """
        url = URL(request.url, encoded=True)
        if sandbox and not self._guard.allows_host(url):
            return Answer(failure=Failure.SANDBOX)
        if self._guard.refusal(url):
            return Answer(failure=Failure.ADDRESS_FORBIDDEN)
        session = self._trusting if self._guard.allows_host(url) else self._public
        status_code, headers = 0, dict[str, str]()
        try:
            async with session.request(
                request.method,
                url,
                headers=request.headers,
                data=request.body.encode() or None,
                allow_redirects=False,
                timeout=ClientTimeout(total=timeout_s, ceil_threshold=60),
            ) as response:
                status_code = response.status
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(status_code=status_code, headers=headers, body=await _read(response))
        except TimeoutError:
            failure = Failure.TIMEOUT
        except (ClientError, OSError, ValueError) as error:
            failure = Failure.ADDRESS_FORBIDDEN if _is_forbidden(error) else Failure.CONNECTION_FAILED
        return Answer(status_code=status_code, headers=headers, failure=failure)


@asynccontextmanager
async def open_sender(guard: Guard, *, lookup: Lookup | None = None) -> AsyncIterator[Sender]:
    """Yields a sender with connections of its own, closed on leaving. `lookup` replaces the system's resolver."""
    async with _session(guard.connector(lookup=lookup)) as public, _session(guard.trusting_connector()) as trusting:
        yield Sender(guard, public, trusting)


def _session(connector: TCPConnector) -> ClientSession:
    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),  # deliveries share nothing
        # An answer is read as it comes: none can unpack to more than it was.
        auto_decompress=False,
        headers={"User-Agent": "reengage", "Accept-Encoding": "identity"},
    )


async def _read(response: ClientResponse) -> str:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= MAX_READ_BYTES:
            response.close()  # the rest is not wanted, nor the connection it would come on
            break
    return body[:MAX_READ_BYTES].decode(errors="replace")


def _is_forbidden(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AddressForbiddenError):
            return True
        seen = seen.__cause__
    return False
