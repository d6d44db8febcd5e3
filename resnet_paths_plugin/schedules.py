"""Families of schedules, under their public name."""

from resnet_paths_plugin.network.schedule_families import adjacent_swaps as adjacent_swaps
from resnet_paths_plugin.network.schedule_families import parallel_ranges as parallel_ranges
from resnet_paths_plugin.network.schedule_families import repeated_blocks as repeated_blocks
from resnet_paths_plugin.network.schedule_families import reversed_ranges as reversed_ranges
from resnet_paths_plugin.network.schedule_families import scaled_branches as scaled_branches
from resnet_paths_plugin.network.schedule_families import skipped_ranges as skipped_ranges
