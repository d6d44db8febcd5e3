"""Every figure of the paper, drawn from a study's Dataset alone (a loaded file is enough); runs no model.

A function that is given no Axes makes a pyplot figure of its own, which is the caller's to show or close
(`matplotlib.pyplot.close(ax.figure)`). Matplotlib's settings are never changed. `ds.resnet_paths.plot()` picks
the function that fits a Dataset.
"""

import lazy_loader

from resnet_paths_plugin.plotting import accessor as accessor

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
