"""TCP proxies in front of instances, in a process of their own: `python -m tests.faults.wires N`.

It says the ports of its N proxies on stdout, then takes `<number> <fault>` a line on stdin, the fault
being `none`, `blackhole` or `refuse`, and says it back. When stdin ends it ends.
"""

import asyncio
import sys

from meshrpc.clock import SYSTEM_CLOCK
from meshrpc.testing.faults import blackhole, refuse
from meshrpc.testing.proxy import Proxy
from tests.faults.words import say, told

FAULTS = {"none": lambda: None, "blackhole": blackhole, "refuse": refuse}


async def main(count):
    proxies = [Proxy(SYSTEM_CLOCK, lambda: None) for _ in range(count)]
    say(" ".join(str(proxy.port) for proxy in proxies))
    async for line in told():
        number, _, word = line.partition(" ")
        proxy = proxies[int(number)]
        if ":" in word:
            proxy.lead_to(word)
        else:
            proxy.follow(FAULTS[word]())
        say(line)
    for proxy in proxies:
        await proxy.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
