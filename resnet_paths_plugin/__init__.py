"""Residual networks as collections of paths: lesions, reorderings and path gradients of any model, unmodified.

The examples of all docstrings go on from these lines: a small residual network of six blocks, not trained, and eight
images of digits.

Examples:
    >>> import torch
    >>> import resnet_paths_plugin as rpp
    >>> from resnet_paths_plugin import demo
    >>> model = demo.DigitsResNet(blocks_per_stage=2).eval()
    >>> images, labels = (part[:8] for part in demo.load_digits())
    >>> net = rpp.unravel(model, images)
"""

import sys
from typing import Any

import lazy_loader

_attached, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Return what the stub names, imported when it is first asked for; `ds.resnet_paths` is there from then on."""
    value = _attached(name)
    if not name.startswith("_"):
        _attached("plotting")
    return value


if "xarray" in sys.modules:
    __getattr__("plotting")
