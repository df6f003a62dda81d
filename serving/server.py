"""The policy server: a connection is a robot.

After the handshake the server sends the metadata. From then on each binary message of the client is an observation, a
map of HDF5 path to array, and is answered with a map of arrays; `reset: true` in it begins an episode, and a message
with nothing else is answered with the same. A text message of the server is an error; the connection stays open.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from serving.codec import pack, unpack


class Session(Protocol):
    """The policy for one connection."""

    def reset(self) -> None: ...

    def act(self, observation: dict[str, Any]) -> dict[str, Any]: ...


class PolicyServer:
    """Answers observations, one at a time over all connections, in a thread beside the event loop.

    Args:
        make_session: Called for each connection.
        metadata: Plain values, sent first.
        token: What a client must send as `Authorization: Bearer TOKEN`; None: nothing.
    """

    def __init__(self, make_session: Callable[[], Session], metadata: dict[str, Any], token: str | None = None):
        self.make_session, self.metadata, self.token = make_session, pack(metadata), token
        self.thread = ThreadPoolExecutor(1)

    def authorize(self, connection: ServerConnection, request: Request) -> Response | None:
        """401 without the right token. All of it is compared, so that the time tells nothing about its beginning."""
        given = request.headers.get_all("Authorization")
        expected = f"Bearer {self.token}".encode()
        if self.token is None or (len(given) == 1 and hmac.compare_digest(given[0].encode(), expected)):
            return None
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "send the token: Authorization: Bearer TOKEN\n")

    async def connected(self, connection: ServerConnection) -> None:
        """Serve one connection until it is closed."""
        session, loop = self.make_session(), asyncio.get_running_loop()
        try:
            await connection.send(self.metadata)
            async for message in connection:
                await connection.send(await loop.run_in_executor(self.thread, self.answer, session, message))
        except ConnectionClosed:
            return

    def answer(self, session: Session, message: bytes | str) -> bytes | str:
        """The reply to one message: bytes, or an error as one line of text."""
        try:
            if isinstance(message, str):
                raise ValueError("a text message; observations are binary: msgpack")
            observation = unpack(message)
            if not isinstance(observation, dict) or not all(isinstance(name, str) for name in observation):
                raise ValueError("a message must be a map from names to values")
            reset = observation.pop("reset", False)
            if not isinstance(reset, bool) or not (reset or observation):
                raise ValueError("a message needs an observation, or `reset: true`")
            if reset:
                session.reset()
            if not observation:
                return pack({"reset": True})
            start = time.perf_counter()
            reply = session.act(observation)
            return pack({**reply, "server_timing": {"infer_ms": 1000 * (time.perf_counter() - start)}})
        except ValueError as error:
            return f"error: {' '.join(str(error).split())}"
        except Exception as error:  # whatever a model raises on an odd input must not end the other connections
            traceback.print_exc(file=sys.stderr)
            return f"error: the policy failed ({type(error).__name__}: {' '.join(str(error).split())})"

    async def run(self, host: str, port: int, max_bytes: int, announce: Callable[[str], object] = print) -> None:
        """Serve until SIGINT or SIGTERM; then finish the observation in work and close all connections.

        Args:
            port: 0: a free one.
            max_bytes: A longer message closes its connection with code 1009.
            announce: Called with the address once connections are accepted.

        Raises:
            OSError: the address is taken or not this machine's.
        """
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        silent = logging.getLogger("keel.serving")  # a client that breaks off is no event for the log
        silent.setLevel(logging.CRITICAL + 1)
        settings: dict[str, Any] = {"process_request": self.authorize, "max_size": max_bytes, "logger": silent}
        # Without `Origin` alone: a page in somebody's browser must not reach a server on this machine.
        async with listen(self.connected, host, port, origins=[None], compression=None, **settings) as server:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            shown = f"[{host}]" if ":" in host else host
            announce(f"ws://{shown}:{server.sockets[0].getsockname()[1]}")
            await stop.wait()
        self.thread.shutdown()


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
