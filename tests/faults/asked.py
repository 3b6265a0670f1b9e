"""When a process asked its registry for something: noted by the process itself, as it asks."""

import functools
import time

from meshrpc.registry.consul import ConsulRegistry
from meshrpc.registry.embedded import EmbeddedRegistry

KINDS = (EmbeddedRegistry, ConsulRegistry)
WORDS = ("register", "drain", "undrain", "deregister")


def note_asked(note):
    """Call `note(at, word, instance)` before this process asks for one of `WORDS`, from now on."""
    for kind in KINDS:
        for word in WORDS:
            setattr(kind, word, _noted(getattr(kind, word), word, note))


def _noted(ask, word, note):
    @functools.wraps(ask)
    async def asked(registry, instance):
        note(time.monotonic(), word, instance)
        return await ask(registry, instance)

    return asked
