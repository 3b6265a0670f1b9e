"""Whether somebody answers at an address.

A connection alone tells little: the kernel accepts it for a process that is frozen. So the first
words of HTTP/2 are said, and any answer will do: a gRPC server's settings, or the alert of one that
wants TLS. It does not ask for health, which the registry knows.
"""

from __future__ import annotations

import asyncio
import os
import socket

from meshrpc.settings import parse_address

ANSWER_WITHIN = 2.0
"""Seconds to connect and be answered: what a healthy server needs, many times over."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_NO_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""A settings frame that sets nothing, which must follow the preface (RFC 9113, 3.4)."""
_SETTINGS = 4
_TLS_ALERT = 0x15


async def unreachable(address: str, within: float = ANSWER_WITHIN) -> str | None:
    """Return why nobody can be called at `address`; None: a server answers there."""
    is_connected = False
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(within):
            host, port = parse_address(address)
            reader, writer = await asyncio.open_connection(host.strip("[]"), port)
            is_connected = True
            writer.write(_PREFACE + _NO_SETTINGS)
            return _problem(await reader.read(9))
    except TimeoutError:
        if is_connected:
            return f"accepts connections and says nothing for {within:g} s: it may be frozen"
        return f"no answer in {within:g} s"
    except socket.gaierror:
        return "there is no such name"
    except OSError as error:
        # With several addresses behind one name, asyncio joins their errors and leaves errno out.
        return (os.strerror(error.errno) if error.errno else str(error)).lower()
    except ValueError as error:
        return str(error)
    finally:
        if writer is not None:
            writer.transport.abort()


def _problem(answer: bytes) -> str | None:
    """Say what is wrong with the first bytes of an answer."""
    if not answer:
        return "closes the connection: nothing there speaks gRPC"
    if answer[0] == _TLS_ALERT or (len(answer) > 3 and answer[3] == _SETTINGS):
        return None
    return "something else than a gRPC server answers"
