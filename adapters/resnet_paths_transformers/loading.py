"""Models by name: a small one of an architecture, or a trained one from a repository or a folder."""

import difflib
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from resnet_paths_plugin import ModelNotFoundError
from resnet_paths_transformers.library import NAME, architectures, base_class, class_for, library
from resnet_paths_transformers.small import small_config

_SAFETENSORS = ".safetensors"


def trained(name: str) -> nn.Module:
    """Return a model with its weights, from a repository's name, a folder, or a file in one.

    Weights are read from safetensors files only, and no code of a repository is run.
    """
    place = _folder(name)
    config = library().AutoConfig.from_pretrained(place, trust_remote_code=False)
    model, loaded = _class_of(config).from_pretrained(
        place, config=config, use_safetensors=True, output_loading_info=True
    )
    lacking = sorted(loaded["missing_keys"])
    if lacking:
        warnings.warn(
            f"the weights of {name} lack {', '.join(lacking[:3])}{' and more' if len(lacking) > 3 else ''}, which are "
            f"random in this {type(model).__name__}",
            UserWarning,
            stacklevel=2,
        )
    found: nn.Module = model
    return found


def untrained(name: str) -> nn.Module:
    """Return a model with random weights: a small one of an architecture or of a class, or that of a folder's config.

    Raises:
        ModelNotFoundError: if there is no such architecture, class or folder.
    """
    if (Path(name) / "config.json").is_file() or name.endswith(_SAFETENSORS):
        config = library().AutoConfig.from_pretrained(_folder(name), trust_remote_code=False)
        found: nn.Module = _class_of(config)(config)
        return found
    class_name = class_for(name) if name in architectures() else name
    model_class = getattr(library(), class_name or "", None)
    if not isinstance(model_class, type) or not issubclass(model_class, base_class()) or model_class is base_class():
        raise ModelNotFoundError(_unknown(name))
    architecture = name if name in architectures() else _architecture_of(model_class)
    if architecture is None:
        raise ModelNotFoundError(f"{name} of {NAME} has no configuration of its own: build the model yourself")
    try:
        model: nn.Module = model_class(small_config(architecture))
    except Exception as error:
        raise ModelNotFoundError(
            f"no small {name} can be made for trying ({type(error).__name__}: {_first_line(error)}): build the model "
            "from a configuration of your own, or load a trained one"
        ) from error
    warnings.warn(
        f"{NAME}/{name} is a small {type(model).__name__} with random weights, for trying: pretrained weights come "
        "with pretrained=True (--pretrained) and a repository's name or a folder",
        UserWarning,
        stacklevel=2,
    )
    return model


def names() -> list[str]:
    """Return the names of the architectures that have a class, in the library's order."""
    return [name for name in architectures() if class_for(name)]


def _class_of(config: Any) -> Any:
    """Return the class that a configuration names, or that of its architecture."""
    for name in (*(config.architectures or ()), class_for(config.model_type)):
        found = getattr(library(), name or "", None)
        if isinstance(found, type) and issubclass(found, base_class()):
            return found
    raise ModelNotFoundError(f"{NAME} {library().__version__} has no class for models of the type {config.model_type}")


def _architecture_of(model_class: Any) -> str | None:
    configured = getattr(model_class, "config_class", None)
    return next((name for name, one in architectures().items() if configured and one == configured.__name__), None)


def _folder(name: str) -> str:
    """Return the folder that a name stands for, that of a file included, or the name of a repository as it is.

    Raises:
        ModelNotFoundError: if a path leads to no model.
    """
    path = Path(name).expanduser()
    is_file = path.suffix == _SAFETENSORS
    if not (is_file or path.is_dir() or name.startswith((".", "/", "~"))):
        return name
    if not path.exists():
        raise ModelNotFoundError(f"there is no {'file' if is_file else 'folder'} {name}")
    folder = path.parent if is_file else path
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} has no config.json, which says what model it is")
    return str(folder)


def _unknown(name: str) -> str:
    known = architectures()
    nearest = difflib.get_close_matches(name, [*known, *filter(None, map(class_for, known))], n=5)
    return f"{NAME} {library().__version__} has no architecture and no class of models {name!r}; " + (
        f"the nearest names are {', '.join(nearest)}" if nearest else f"list_models('{NAME}/*') lists architectures"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
