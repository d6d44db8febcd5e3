"""Every figure of the paper, drawn from a study's Dataset alone (a loaded file is enough); runs no model.

A function that is given no Axes makes a pyplot figure of its own, which is the caller's to show or close
(`matplotlib.pyplot.close(ax.figure)`). Matplotlib's settings are never changed.
"""

from resnet_paths_plugin.plotting.attribution import plot_path_attribution
from resnet_paths_plugin.plotting.lengths import plot_path_lengths, plot_path_survival
from resnet_paths_plugin.plotting.lesions import plot_random_lesions, plot_single_lesions

__all__ = [
    "plot_path_attribution",
    "plot_path_lengths",
    "plot_path_survival",
    "plot_random_lesions",
    "plot_single_lesions",
]
