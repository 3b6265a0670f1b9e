"""Whether a call names its method in UTF-8. One that does not would end grpcio's whole server.

From 1.83 on its accept loop decodes the name itself, and takes the `UnicodeDecodeError` for the end
of everything: one request cuts every connection, and nobody listens any more. Such calls have to be
let go of before the loop sees them. The name is known to Cython code only: it is asked for by the
function that the loop asks, the first in the table of that class's own (`RPCState.method`). An
empty call shows beforehand whether the first one is it. All that holds for versions that it was
tried with, and for no other: there, every call passes.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc._cython import cygrpc

NEEDED_FROM: Final = (1, 83)
"""Before that grpcio answers such calls itself."""
TRIED_BELOW: Final = (1, 86)
"""Versions from `NEEDED_FROM` to below this one were seen to keep the name where it is looked for."""

_LOG = logging.getLogger("meshrpc.server")


def readable(core: cygrpc.AioServer) -> Callable[[Any], bool]:
    """Return what says whether a call of this server has a name that can be read."""
    version = _version(grpc.__version__)
    if version < NEEDED_FROM:
        return _any
    # Elsewhere the first function may be any other, and to call it would end the process.
    name = _name_reader(cygrpc.RPCState(core)) if version < TRIED_BELOW else None
    if name is None:
        _LOG.warning(
            "grpcio %s was not tried: a call whose method is named in no UTF-8 may end the server",
            grpc.__version__,
        )
        return _any

    def is_readable(call: Any) -> bool:
        try:
            name(call).decode()
        except UnicodeDecodeError:
            return False
        return True

    return is_readable


def _any(_call: Any) -> bool:
    return True


def _version(text: str) -> tuple[int, int]:
    """Return major and minor of `1.85.1`; of what is none, one that nobody has tried."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else TRIED_BELOW


def _name_reader(empty: Any) -> Callable[[Any], bytes] | None:
    table = getattr(cygrpc.RPCState, "__pyx_vtable__", None)
    if table is None:
        return None
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    functions = ctypes.cast(pointer_of(table, None), ctypes.POINTER(ctypes.c_void_p))
    first = functions[0]
    if first is None:
        return None
    # Whatever it returns is looked at as a number first: it need not be an object.
    if ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(first)(empty) != id(b""):
        return None
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(first)
