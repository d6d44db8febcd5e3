"""Every figure of the paper, drawn from a study's Dataset alone (a loaded file is enough); runs no model.

A function that is given no Axes makes a pyplot figure of its own, which is the caller's to show or close
(`matplotlib.pyplot.close(ax.figure)`). Matplotlib's settings are never changed. `ds.resnet_paths.plot()` picks
the function that fits a Dataset.
"""

from resnet_paths_plugin.plotting import accessor as accessor
from resnet_paths_plugin.plotting.attribution import plot_path_attribution
from resnet_paths_plugin.plotting.classes import plot_class_lesions
from resnet_paths_plugin.plotting.influence import plot_gates, plot_influence, plot_influences
from resnet_paths_plugin.plotting.lengths import plot_path_lengths
from resnet_paths_plugin.plotting.lesions import plot_random_lesions, plot_single_lesions, plot_training_lesions
from resnet_paths_plugin.plotting.reorderings import plot_reorderings
from resnet_paths_plugin.plotting.schedules import plot_schedules
from resnet_paths_plugin.plotting.survival import plot_path_survival

__all__ = [
    "plot_class_lesions",
    "plot_gates",
    "plot_influence",
    "plot_influences",
    "plot_path_attribution",
    "plot_path_lengths",
    "plot_path_survival",
    "plot_random_lesions",
    "plot_reorderings",
    "plot_schedules",
    "plot_single_lesions",
    "plot_training_lesions",
]
