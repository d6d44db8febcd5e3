"""The models of this library, by name; trained weights come with it, and nothing is ever downloaded."""

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

from safetensors.torch import load_model

from tidepool.limpet import Limpet

_DEPTHS = {"limpet6": 2, "limpet12": 4}


def list_models(*, pretrained: bool = False) -> list[str]:
    """Return the names of all models, or of those that trained weights come with."""
    return [name for name in _DEPTHS if not pretrained or _weights(name).is_file()]


def create_model(name: str, *, pretrained: bool = False) -> Limpet:
    """Return a model by its name, in eval mode.

    Args:
        name: one of `list_models()`.
        pretrained: whether to load the trained weights; without them, parameters are torch's initial ones.

    Raises:
        LookupError: there is no such model, or it has no trained weights.
    """
    if name not in _DEPTHS:
        raise LookupError(f"tidepool has no model {name!r}: it has {', '.join(list_models())}")
    model = Limpet(name, _DEPTHS[name])
    if pretrained:
        if name not in list_models(pretrained=True):
            able = ", ".join(list_models(pretrained=True))
            raise LookupError(f"tidepool has no trained weights for {name!r}, only for {able}")
        with as_file(_weights(name)) as path:
            load_model(model, path)
    return model.eval()


def _weights(name: str) -> Traversable:
    return files("tidepool") / f"{name}.safetensors"
