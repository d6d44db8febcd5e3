"""Interleaved timing of several ways to do one thing."""

import statistics
import time


def medians(ways, rounds):
    """Run all ways in turn, `rounds` times after a warm-up, and return the median seconds of each."""
    for way in ways.values():
        way()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
