"""Connections to devices and their configuration."""

import os

# Otherwise gRPC writes a line to stderr for every failed handshake.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
