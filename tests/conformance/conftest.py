"""Selection of the classes that the suites run on: those of the project, or a plug-in.

``pytest tests/conformance/test_predictors.py --plugin path/to/file.py:Class`` runs what every
predictor does on that class alone, and likewise of encoders, samplers, spaces and providers.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plugin", metavar="FILE.py:Class", help="run the suite on this plug-in")


def _plugin(config: pytest.Config) -> str | None:
    # Unknown where the whole of the tests is run: options are of the folder that is named.
    plugin: str | None = config.getoption("--plugin", default=None)
    return plugin


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "plugin" in metafunc.fixturenames and hasattr(metafunc.module, "BUILTIN"):
        plugin = _plugin(metafunc.config)
        joint = "joint" in metafunc.fixturenames
        builtin = metafunc.module.JOINT if joint else metafunc.module.BUILTIN
        metafunc.parametrize("plugin", [plugin] if plugin else builtin)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about something built in."""
    if _plugin(config):
        items[:] = [item for item in items if "plugin" in getattr(item, "fixturenames", ())]
