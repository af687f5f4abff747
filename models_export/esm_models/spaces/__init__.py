"""Built-in search spaces, and the loader of user-defined ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esm_models.errors import InvalidSpaceError, UnknownSpaceError
from esm_protos.plugins import Family, PluginError, described, split

if TYPE_CHECKING:
    from esm_models.space import SearchSpace

SPACES = {
    "resnet": "esm_models.spaces.resnet:ResNetSpace",
    "mobilenetv3": "esm_models.spaces.mobilenetv3:MobileNetV3Space",
    "densenet": "esm_models.spaces.densenet:DenseNetSpace",
    "nasbench201": "esm_models.spaces.nasbench201:NASBench201Space",
    "fbnet": "esm_models.spaces.fbnet:FBNetSpace",
    "ofa": "esm_models.spaces.ofa:OFASpace",
    "ofa-resnet50": "esm_models.spaces.ofa_resnet50:OFAResNet50Space",
    "proxyless": "esm_models.spaces.proxyless:ProxylessSpace",
    "autoformer": "esm_models.spaces.autoformer:AutoFormerSpace",
    "hat": "esm_models.spaces.hat:HATSpace",
    "hat-encoder": "esm_models.spaces.hat:HATEncoderSpace",
    "hat-step": "esm_models.spaces.hat:HATStepSpace",
    "mobilenetv4": "esm_models.spaces.mobilenetv4:MobileNetV4Space",
    "detector": "esm_models.spaces.detector:DetectorSpace",
    "lm-prefill": "esm_models.spaces.decoder:PrefillSpace",
    "lm-decode": "esm_models.spaces.decoder:DecodeSpace",
}
"""Module and class of each search space, by name."""

FAMILY = Family(
    what="search space",
    group="esm.spaces",
    base="esm_models.space:SearchSpace",
    builtin=SPACES,
    required=("name", "depths", "features"),
)


def load_space(
    name: str, *, contexts: Mapping[str, int | Sequence[int]] | None = None, **settings: Any
) -> SearchSpace:
    """Return a search space by name.

    Args:
        name: Name in :data:`SPACES` or of an installed package (entry points ``esm.spaces``), or
            ``path/to/file.py:Class``.
        contexts: Values of contexts, as in :meth:`SearchSpace.with_contexts`; None for those of the
            class.
        settings: Arguments of :class:`SearchSpace`: ``resolution``, ``width_mult``, ``batch`` and
            ``dtype``.

    Raises:
        UnknownSpaceError: the name, the file or the class does not exist.
        InvalidSpaceError: the class cannot be built with these settings.
    """
    try:
        cls = FAMILY.load(name)
    except PluginError as error:
        raise UnknownSpaceError(str(error)) from error
    path, _ = split(name)
    try:
        space: SearchSpace = cls(**settings)
        if contexts:
            space = space.with_contexts(contexts)
        if name not in SPACES:  # find errors now, not in the middle of a campaign
            space.check_options()
            for architecture in (*space.extremes(), *space.uniform()):
                space.build(architecture)
    except InvalidSpaceError:
        raise
    except Exception as error:  # a user's class can raise any error
        text = f"{name} cannot be built: {described(error, path)}"
        raise InvalidSpaceError(text) from error
    return space
