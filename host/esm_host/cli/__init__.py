"""Commands of ``esm-host``: they assemble and print, and decide nothing."""


def main() -> None:
    """Run the program."""
    from esm_host.cli.app import app
    from esm_protos.streams import run

    run(app)
