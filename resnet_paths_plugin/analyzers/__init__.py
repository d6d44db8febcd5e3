"""Analyzers, and what analyzers of one's own are made of: the public names are in `__all__`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
