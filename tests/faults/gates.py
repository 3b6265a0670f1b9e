"""TCP gates that stand before a registry, in a process of their own: `python -m tests.faults.gates N`.

It says the ports of its N gates on stdout, then takes `<number> <word>` a line on stdin and says it
back when it is done. The words:

    to HOST:PORT    lead there from now on; the connections that there are, are reset
    pass            let everything through, what was kept back first
    hold            nothing gets through, either way; connections stay
    hold-requests, hold-answers    the same, one way
    delay SECONDS   each way, so that an answer comes twice as much later
    refuse          connections are refused; those that there are, reset

Unlike `meshrpc.testing`'s proxies gates can be led elsewhere, and cut one way only. When stdin ends the
process ends.
"""

import asyncio
import contextlib
import math
import socket
import sys
import time

from tests.faults.words import say, told

REQUESTS, ANSWERS = "requests", "answers"
_DELAYS = {
    "pass": {REQUESTS: 0.0, ANSWERS: 0.0},
    "hold": {REQUESTS: math.inf, ANSWERS: math.inf},
    "hold-requests": {REQUESTS: math.inf, ANSWERS: 0.0},
    "hold-answers": {REQUESTS: 0.0, ANSWERS: math.inf},
}


class Gate:
    """Leads whoever connects to it to an address."""

    def __init__(self):
        self._listener = bound(0)
        self.port = self._listener.getsockname()[1]
        self._target = None
        self._delays = _DELAYS["pass"]
        self._changed = asyncio.Event()
        self._accepting = None
        self._connections = set()
        self._listen()

    async def tell(self, word):
        """Do what a line says."""
        word, _, what = word.partition(" ")
        if word == "to":
            host, _, port = what.rpartition(":")
            self._target = host, int(port)
            self._reset()
        elif word == "refuse":
            self._refuse()
            return
        else:
            same = {REQUESTS: float(what or 0), ANSWERS: float(what or 0)}
            self._delays = same if word == "delay" else _DELAYS[word]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._listen()

    def _listen(self):
        if self._accepting is None:
            self._listener.listen(128)
            self._accepting = asyncio.create_task(self._accept())

    async def _accept(self):
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            task = asyncio.create_task(self._lead(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    def _refuse(self):
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
            self._listener.close()
            self._listener = bound(self.port)  # so that nobody else gets it meanwhile
        self._reset()

    def _reset(self):
        for connection in self._connections:
            connection.cancel()

    async def _lead(self, accepted):
        reader, writer = await asyncio.open_connection(sock=accepted)
        ends = [writer]
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            ends.append(there_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(REQUESTS, reader, there_writer))
                group.create_task(self._pipe(ANSWERS, there_reader, writer))
        except* OSError:
            pass  # nobody there, or it has gone
        finally:
            for end in ends:
                end.transport.abort()

    async def _pipe(self, way, reader, writer):
        """Pass on what comes one way, each piece when its time has come."""
        pieces = asyncio.Queue()

        async def receive():
            piece = b"?"
            while piece:
                try:
                    piece = await reader.read(65536)
                except OSError:
                    piece = b""
                pieces.put_nowait((time.monotonic(), piece))

        async def send():
            while True:
                came, piece = await pieces.get()
                await self._its_time(way, came)
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(receive())
            group.create_task(send())

    async def _its_time(self, way, came):
        """Return when what came then may go on."""
        while (wait := came + self._delays[way] - time.monotonic()) > 0:
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else wait):
                    await changed.wait()


def bound(port):
    """Return a socket bound to a port, 0 for any that nobody has."""
    listener = socket.socket()
    listener.setblocking(False)
    if not port:
        listener.bind(("127.0.0.1", 0))
    # After that, so that it is really free; and all the same, for what is accepted inherits it, and
    # would keep the port from being bound again.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if port:
        listener.bind(("127.0.0.1", port))
    return listener


async def main(count):
    gates = [Gate() for _ in range(count)]
    say(" ".join(str(gate.port) for gate in gates))
    async for line in told():
        number, _, word = line.partition(" ")
        await gates[int(number)].tell(word)
        say(line)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
