"""The pytest plugin: the fixtures `virtual_clock` and `local_mesh`.

Pytest imports this, and with it `meshrpc` (a tenth of a second), at the start of every run in an
environment that has it; what the fixtures need besides is imported when one is first used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from meshrpc.testing.clock import VirtualClock
    from meshrpc.testing.local_mesh import LocalMesh

_NEEDED = "the fixture local_mesh needs pytest-asyncio: pip install 'meshrpc[testing]'"


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that stands still until the test moves it; that of `local_mesh`, too."""
    from meshrpc.testing.clock import VirtualClock  # noqa: PLC0415 - see above

    return VirtualClock()


if find_spec("pytest_asyncio") is None:

    @pytest.fixture(name="local_mesh")
    def no_local_mesh() -> None:
        """Say what is missing."""
        pytest.fail(_NEEDED, pytrace=False)

else:
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def local_mesh(virtual_clock: VirtualClock) -> AsyncIterator[LocalMesh]:
        """A mesh in this process, entered: see `meshrpc.testing.LocalMesh`."""
        from meshrpc.testing.local_mesh import LocalMesh  # noqa: PLC0415 - see above

        async with LocalMesh(clock=virtual_clock) as mesh:
            yield mesh
