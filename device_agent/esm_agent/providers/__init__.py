"""Execution providers by name: built in, of an installed package, or a user's own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esm_agent.measure.backends import ProviderMissingError
from esm_protos.plugins import Family, PluginError, described, split

if TYPE_CHECKING:
    from esm_agent.providers.base import Provider

FIRST = "cpu"
"""The provider that works wherever the runtime does."""

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
    """Return a provider that works: all but the first one have run a built-in model.

    Args:
        name: as :meth:`esm_protos.plugins.Family.load` takes it.
        device: number of the GPU, for a provider that runs on one.

    Raises:
        ProviderMissingError: it cannot be loaded, or no model runs on it.
    """
    try:
        provider: Provider = FAMILY.load(name)(device)
        if name != FIRST:
            provider.prove()
    except PluginError as error:
        raise ProviderMissingError(str(error)) from error
    except ProviderMissingError:
        raise
    except Exception as error:  # a user's own may fail in any way
        raise ProviderMissingError(
            f"no provider '{name}': {described(error, split(name)[0])}"
        ) from error
    return provider
