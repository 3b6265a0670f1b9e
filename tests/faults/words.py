"""How processes of the tests are told things, and answer: a line each, on stdin and stdout."""

import asyncio
import sys


async def told():
    """Give the lines that come, until stdin ends or an empty one comes."""
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(words), sys.stdin
    )
    while line := (await words.readline()).decode().strip():
        yield line


def say(line):
    """Answer with a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
