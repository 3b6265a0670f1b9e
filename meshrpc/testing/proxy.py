"""A TCP proxy in front of one instance: where faults happen.

Its address is what the instance advertises, so every connection to the instance comes through
here. It knows which fault holds, and refuses by itself; what else a fault does to bytes is in
`connection.py`. It reads no HTTP/2: a fault hits connections, not calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Callable

from meshrpc.clock import Clock
from meshrpc.settings import parse_address
from meshrpc.testing.connection import Connection
from meshrpc.testing.faults import Fault, Refuse, Script, timeline

_HOST = "127.0.0.1"


class Proxy:
    """Accepts connections on a port of its own and leads them to an address.

    Args:
        clock: on which delays and scripts of faults run.
        on_move: called whenever a connection or bytes have come or gone.
    """

    def __init__(self, clock: Clock, on_move: Callable[[], None]) -> None:
        self.clock = clock
        self.on_move = on_move
        self.fault: Fault | None = None
        self._target: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[Connection] = set()
        self._script: asyncio.Task[None] | None = None
        self._is_listening = False
        self._listen()

    def __repr__(self) -> str:
        state = "listening" if self._is_listening else "refusing"
        return f"<Proxy {self.address} {state} connections={len(self._connections)} {self.fault}>"

    @property
    def address(self) -> str:
        """Where callers connect, as `host:port`."""
        return f"{_HOST}:{self.port}"

    def lead_to(self, address: str) -> None:
        """Say where connections go; those made before waited for this."""
        self._target.set_result(parse_address(address))

    async def target(self) -> tuple[str, int]:
        """Return where connections go, once that is known."""
        return await asyncio.shield(self._target)

    def follow(self, script: Script | None) -> None:
        """Let the faults of `script` happen from now on, instead of those before."""
        steps = timeline(script)
        self._end_script()
        fault, seconds = next(steps)
        self._apply(fault)
        if seconds is not None:

            async def go_on(seconds: float | None) -> None:
                while seconds is not None:
                    await self.clock.sleep(seconds)
                    fault, seconds = next(steps)
                    self._apply(fault)

            self._script = asyncio.create_task(go_on(seconds), context=contextvars.Context())

    def reset(self) -> None:
        """Reset every connection."""
        for connection in tuple(self._connections):
            connection.reset()

    async def close(self) -> None:
        """Reset every connection and free the port."""
        self._end_script()
        self._stop_listening()
        self._listener.close()
        self._target.cancel()
        self.reset()
        over = [connection.over for connection in self._connections]
        if over:
            await asyncio.wait(over)

    def _apply(self, fault: Fault | None) -> None:
        self.fault = fault
        self.on_move()
        if isinstance(fault, Refuse):
            self._stop_listening()
            self.reset()
            return
        self._listen()
        for connection in tuple(self._connections):
            connection.look_again()

    def _end_script(self) -> None:
        if self._script is not None:
            self._script.cancel()
            self._script = None

    def _listen(self) -> None:
        if not self._is_listening:
            self._is_listening = True
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        """Refuse connections; the port stays bound, so that nobody else gets it meanwhile."""
        if self._is_listening:
            self._is_listening = False
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = _bound(self.port)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # whoever it was has gone
        accepted.setblocking(False)
        self.on_move()
        connection = Connection(self, accepted)
        self._connections.add(connection)
        connection.over.add_done_callback(lambda _: self._connections.discard(connection))


def _bound(port: int) -> socket.socket:
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is spelled out;
    # otherwise the messages of a stream would wait 40 ms for each other's acknowledgement.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setblocking(False)
    bound.bind((_HOST, port))
    return bound
