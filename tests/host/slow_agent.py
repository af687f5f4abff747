"""An agent on a device of half the speed. Says its address, and serves until stdin closes."""

import sys
from functools import partial

from esm_agent.serving.server import AgentServer
from tests.agent.fake_backends import RepeatingBackend

if __name__ == "__main__":
    server = AgentServer("127.0.0.1", 0, make_backend=partial(RepeatingBackend, 2))
    print(f"listening on 127.0.0.1:{server.port}", flush=True)
    sys.stdin.read()
    server.stop()
