"""Execution providers by name: built in, from an installed package, or from a user's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_agent.errors import ProviderMissingError
from esm_protos.plugins import Family, PluginError, described, own_name, split
from esm_protos.providers import DeclarationError, ProviderInfo

if TYPE_CHECKING:
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
