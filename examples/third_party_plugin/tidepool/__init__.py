"""Tidepool: small residual networks for small pictures. A made-up library, which knows nothing of its plugin."""

from tidepool.limpet import Limpet
from tidepool.pictures import CLASS_NAMES, MEAN, PICTURE_SHAPE, STD, draw_pictures
from tidepool.zoo import create_model, list_models

__version__ = "0.3.0"

__all__ = [
    "CLASS_NAMES",
    "MEAN",
    "PICTURE_SHAPE",
    "STD",
    "Limpet",
    "create_model",
    "draw_pictures",
    "list_models",
]
