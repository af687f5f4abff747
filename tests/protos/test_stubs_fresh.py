"""The committed stubs are what the pinned generator makes of the .proto files."""

from esm_protos.compile import stale_stubs


def test_stubs_are_fresh() -> None:
    assert stale_stubs() == [], "run `make protos`"
