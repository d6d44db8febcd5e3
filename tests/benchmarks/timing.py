"""Interleaved timing of several ways to do one thing, and the memory that each takes in a process of its own."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch


def medians(ways, rounds):
    """Run all ways in turn, `rounds` times after a warm-up.

    Returns the median seconds of each, and what each returned in the warm-up. With one thread these are seconds of the
    processor, which others on the machine disturb less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    results = {name: way() for name, way in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def rise_of_memory(way):
    """Run a way; return by how many MiB it raised the resident memory of this process at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _kibibytes("VmRSS")
    way()
    return (_kibibytes("VmHWM") - before) / 2**10


def _kibibytes(field):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory_alone(study, way, options):
    """Return the MiB that one way of a study adds in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks", "--alone", study, way, *options]
    run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this very program
    return float(run.stdout.split()[-1])
