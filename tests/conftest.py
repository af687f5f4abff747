"""What all tests share."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Before numpy is loaded: tests run on all processors already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# gRPC in tests would take them, even to this machine.
for _name in ("grpc_proxy", "https_proxy", "http_proxy", "ESM_PROXY"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Agents that tests start leave the user's cache and history alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIRECTORY", str(tmp_path_factory.mktemp("agent-cache")))
        patch.setenv("STATE_DIRECTORY", str(tmp_path_factory.mktemp("agent-state")))
        yield
