"""Customers in the tests' own process and in another one, at the same time."""

import asyncio
import contextlib
import json
import sys

from tests.faults.customers import MIXED, Account, Customers, Ended
from tests.faults.rig import Process


@contextlib.asynccontextmanager
async def shopping(shop, *, rates=MIXED, endless=0, takes=(2.0, 3.0), seed=1):
    """Have both shop for as long as the block lasts; give the `Account`, which is whole after it."""
    both = Account()
    given = {"rates": rates, "endless": endless, "takes": takes}
    inside = Customers(shop.new_name("inside"), **given, seed=seed, **shop.membership)
    name = shop.new_name("outside")
    outside = Process(
        name,
        (
            *(sys.executable, "-m", "tests.faults.customers"),
            json.dumps({**given, "name": name, "seed": seed + 1}),
        ),
        shop.folder,
        shop.environment,
    )
    try:
        async with inside.shopping():
            await asyncio.to_thread(outside.line)
            yield both
            file = shop.folder / f"{name}.json"
            await asyncio.to_thread(outside.tell, str(file))
    finally:
        outside.end()
    both.add(inside.account)
    told = json.loads(file.read_text())
    both.add(Account(**{**told, "ended": [Ended(**each) for each in told["ended"]]}))
