"""Commands: they assemble and print, and decide nothing."""


def main() -> None:
    """Entry point."""
    import os

    # Else gRPC writes lines of its own beside ours, of every handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from esm_host.cli.app import app

    app()
