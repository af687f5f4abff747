import os

# Else gRPC writes lines of its own to stderr, of every handshake that fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
