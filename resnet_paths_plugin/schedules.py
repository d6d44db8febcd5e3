"""Families of schedules, under their public name."""

from resnet_paths_plugin.network.schedule_families import (
    adjacent_swaps,
    parallel_ranges,
    repeated_blocks,
    reversed_ranges,
    scaled_branches,
    skipped_ranges,
)

__all__ = [
    "adjacent_swaps",
    "parallel_ranges",
    "repeated_blocks",
    "reversed_ranges",
    "scaled_branches",
    "skipped_ranges",
]
