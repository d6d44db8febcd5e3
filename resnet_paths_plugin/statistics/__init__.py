"""Statistics of results, from the stored values alone: intervals by bootstrap, rank correlations, exact tests.

They describe the samples and random draws of one study of one trained network. What another training of the same
architecture would give, no resampling of samples can say.
"""

from resnet_paths_plugin.statistics.bootstrap import bootstrap
from resnet_paths_plugin.statistics.correlation import rank_correlation
from resnet_paths_plugin.statistics.mcnemar import mcnemar
from resnet_paths_plugin.statistics.sampled_paths import sampled_paths
from resnet_paths_plugin.statistics.summary import summary

__all__ = ["bootstrap", "mcnemar", "rank_correlation", "sampled_paths", "summary"]
