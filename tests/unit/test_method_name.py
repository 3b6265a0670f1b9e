"""Which grpcio is asked for the names of calls: none that it was not tried with."""

import grpc
import pytest
from grpc._cython import cygrpc

from meshrpc.server import method_name
from meshrpc.server.method_name import TRIED_BELOW, readable

NEXT = f"{TRIED_BELOW[0]}.{TRIED_BELOW[1]}.0"


class Call:
    """Asked for its name through C, it would end the process."""


@pytest.mark.parametrize(
    ("version", "warns"),
    [("1.82.1", False), (NEXT, True), (f"{NEXT}rc1", True), ("2.0.0", True), ("unknown", True)],
)
def test_a_grpcio_that_was_not_tried_is_not_asked_and_every_call_passes(
    monkeypatch, caplog, version, warns
):
    """Before 1.83 nothing needs to be asked; after the last one tried, it is said."""

    def never(_empty):
        raise AssertionError("asked")

    monkeypatch.setattr(grpc, "__version__", version)
    monkeypatch.setattr(method_name, "_name_reader", never)
    assert readable(None)(Call())
    assert [each.message for each in caplog.records] == (
        [
            f"grpcio {version} was not tried: a call whose method is named in no UTF-8 may end the server"
        ]
        if warns
        else []
    )


@pytest.mark.skipif(
    not hasattr(cygrpc.AioServer, "_make_request_call_future"), reason="from grpcio 1.83 on"
)
def test_the_installed_grpcio_was_tried():
    """When this fails, try it (`tests/hostile` tells how it ends), and move the bound."""
    assert method_name._version(grpc.__version__) < TRIED_BELOW
