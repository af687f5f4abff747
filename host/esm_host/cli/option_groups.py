"""Groups of options, each a dataclass that a command takes as one parameter.

Groups of a single command are defined in its module.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from esm_host.arguments import flag
from esm_host.cli.options import (
    AllowFallback,
    Batch,
    Contexts,
    CudaGraph,
    Dtype,
    Ep,
    EpOption,
    ExecutionMode,
    FreeDim,
    InterOp,
    NoWait,
    OptLevel,
    Patience,
    Quiet,
    Resolution,
    Seed,
    SessionOption,
    Space,
    Tf32,
    WidthMult,
)

if TYPE_CHECKING:
    from esm_host.timing.provider_options import Execution
    from esm_protos.session_settings import SessionSettings


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Expand the option groups of a command into options, in the place of the group."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(hints[name]):
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        groups[name] = hints[name]
        types = get_type_hints(hints[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, parameter.kind, default=field.default, annotation=types[field.name]
            )
            for field in fields(hints[name])
        ]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def option_of(setting: str) -> str:
    """Return the name of the option of a setting."""
    return flag(setting).removeprefix("--").replace("-", "_")


def settings_of(kind: type[Any], *groups: Any) -> dict[str, Any]:
    """Return the fields of ``kind`` that have an option in the groups; enumerations as values."""
    options: Mapping[str, Any] = {name: v for group in groups for name, v in vars(group).items()}
    found = {field.name: option_of(field.name) for field in fields(kind)}
    return {
        name: getattr(options[option], "value", options[option])
        for name, option in found.items()
        if option in options
    }


@dataclass(frozen=True)
class SpaceOptions:
    """Options of the search space."""

    space: Space = "resnet"
    resolution: Resolution = None
    width_mult: WidthMult = 1.0
    batch: Batch = 1
    dtype: Dtype = "float32"
    context: Contexts = None


@dataclass(frozen=True)
class ProviderOptions:
    """Options of the execution provider."""

    ep: Ep = None
    ep_option: EpOption = None
    tf32: Tf32 = False
    cuda_graph: CudaGraph = False
    allow_fallback: AllowFallback = False

    def executions(self, is_resumed: bool = False) -> tuple[Execution, ...]:
        """Return the execution providers with their options.

        Args:
            is_resumed: Whether a campaign is resumed; its provider may differ from ``ep``.

        Raises:
            UsageError: a provider or an option is invalid.
        """
        from esm_host.timing.provider_options import executions

        return executions(
            [name.strip() for text in self.ep or ["cpu"] for name in text.split(",")],
            self.ep_option or (),
            not is_resumed,
            tf32=self.tf32,
            cuda_graph=self.cuda_graph,
        )

    def spec(self, is_resumed: bool = False) -> dict[str, Any]:
        """Return the fields of ``MeasureSpec`` that these options set for a single provider.

        Args:
            is_resumed: Whether a campaign is resumed; its provider may differ from ``ep``.

        Raises:
            UsageError: there are several providers, or one or an option is invalid.
        """
        from esm_host.timing.provider_options import only

        execution = only(self.executions(is_resumed))
        return {
            "provider": execution.provider,
            "provider_options": execution.options,
            "allow_fallback": self.allow_fallback,
        }


@dataclass(frozen=True)
class RuntimeOptions:
    """Options of ONNX Runtime's sessions."""

    opt_level: OptLevel = "all"
    execution_mode: ExecutionMode = "sequential"
    inter_op: InterOp = None
    session_option: SessionOption = None
    free_dim: FreeDim = None

    def settings(self) -> SessionSettings:
        """Return the settings of the sessions.

        Raises:
            UsageError: a value is invalid.
        """
        from esm_host.timing.session_options import session_settings

        return session_settings(
            self.opt_level,
            self.execution_mode,
            self.inter_op,
            self.session_option or (),
            self.free_dim or (),
        )


@dataclass(frozen=True)
class SessionOptions:
    """Options of the connection to devices, the seed and the output."""

    patience: Patience = 60.0
    no_wait: NoWait = False
    seed: Seed = 0
    quiet: Quiet = False
