"""The gRPC server: its calls, leases, uploads and the measuring slot."""
