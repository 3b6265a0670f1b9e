"""A channel's own options win over the mesh's."""

from meshrpc.client.options import ALWAYS, MESH, merge


def test_without_own_options_all_of_the_meshs_are_set():
    """Each once."""
    assert sorted(merge((), MESH, ALWAYS)) == sorted((*MESH, *ALWAYS))


def test_an_option_that_is_given_stands_alone():
    """Of two with one name C-core would take the first and say nothing."""
    given = (("grpc.min_reconnect_backoff_ms", 9), ("grpc.enable_http_proxy", 1))
    merged = merge(given, MESH, ALWAYS)
    names = [key for key, _ in merged]
    assert len(names) == len(set(names)) == len(MESH) + len(ALWAYS)
    assert set(given) <= set(merged)


def test_supervision_is_the_meshs_or_the_users_never_a_mixture():
    """A keepalive of one's own is not ended by a ping timeout of the mesh's."""
    merged = merge((("grpc.keepalive_time_ms", 500),), MESH, ALWAYS)
    assert sorted(merged) == sorted((("grpc.keepalive_time_ms", 500), *ALWAYS))
