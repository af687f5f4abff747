"""Execution providers by name: built in, from an installed package, or from a user's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esm_agent.errors import ProviderMissingError
from esm_protos.plugins import Family, PluginError, described, own_name, split
from esm_protos.providers import DeclarationError, ProviderInfo

if TYPE_CHECKING:
    from esm_agent.measure.process import Candidate
    from esm_agent.providers.base import Provider

FIRST = "cpu"
"""Name of the provider that is always available."""
COMPILED = "providers"
"""Name of the folder with compiled models in the agent's cache folder."""

FAMILY = Family(
    what="execution provider",
    group="esm.providers",
    base="esm_agent.providers.base:Provider",
    builtin={
        "cpu": "esm_agent.providers.cpu:CpuProvider",
        "cuda": "esm_agent.providers.cuda:CudaProvider",
    },
    required=("name", "runtime_name"),
)


def find_providers(libraries: Sequence[tuple[str, str]] = (), device: int = 0) -> list[Candidate]:
    """Return the execution providers found on this device, untried.

    Args:
        libraries: Names and absolute paths of libraries to register.
        device: Number of the device to run on, where there are several.
    """
    from esm_agent.providers.discovery import find  # loads onnxruntime

    return find(libraries, device)


def optional_names(own: Sequence[str] = ()) -> list[str]:
    """Return the names of the providers besides the first, those of the user last."""
    return [*(name for name in FAMILY.names() if name != FIRST), *own]


def ep_libraries(given: Sequence[str]) -> list[tuple[str, str]]:
    """Return the names and paths of the libraries that ``--ep-library`` gives.

    Raises:
        ValueError: as :func:`ep_library`; the message names the option.
    """
    try:
        return [ep_library(text) for text in given]
    except ValueError as error:
        raise ValueError(f"--ep-library {error}") from error


def ep_library(text: str) -> tuple[str, str]:
    """Split ``NAME=PATH`` into a name for clients and the absolute path of a library.

    Raises:
        ValueError: it has another form, the name is none, or there is no such file.
    """
    name, _, path = text.partition("=")
    if not (name and path):
        raise ValueError(
            f"{text}: give NAME=PATH, such as qnn=/opt/libonnxruntime_providers_qnn.so"
        )
    try:
        ProviderInfo(name).check()
    except DeclarationError as error:
        raise ValueError(f"{text}: {error}") from error
    if not Path(path).is_file():
        raise ValueError(f"{text}: there is no file {path}")
    return name, str(Path(path).resolve())


def make_provider(name: str = FIRST, device: int = 0) -> Provider:
    """Return a working provider; all but the CPU provider are tested with a built-in model.

    Args:
        name: Name or file, as in :meth:`esm_protos.plugins.Family.load`.
        device: Number of the GPU, for a GPU provider.

    Raises:
        ProviderMissingError: the provider cannot be loaded, or no model runs on it.
    """
    try:
        cls: type[Provider] = FAMILY.load(name)
        ProviderInfo(cls.name, options=cls.options).check()
        provider = cls(device)
        if name != FIRST:
            provider.prove()
    except PluginError as error:
        raise ProviderMissingError(str(error)) from error
    except DeclarationError as error:
        raise ProviderMissingError(f"{own_name(cls)}: {error}") from error
    except ProviderMissingError:
        raise
    except Exception as error:  # a user's provider may raise anything
        raise ProviderMissingError(
            f"no provider '{name}': {described(error, split(name)[0])}"
        ) from error
    return provider
