"""Commands: they assemble and print, and decide nothing."""


def main() -> None:
    """Entry point."""
    from esm_host.cli.app import app
    from esm_protos.streams import run

    run(app)
