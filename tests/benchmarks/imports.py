"""Print what starting costs, in processor time: `python -m tests.benchmarks.imports`.

Imports are compared with those of the libraries that they need, in interleaved runs; the help has a bound in seconds.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

OURS = "from resnet_paths_plugin import unravel, BlockLesion, PathLengthGradient"
LIBRARIES = "import torch, xarray, captum.attr"
WAYS = {
    "ours": [sys.executable, "-c", OURS],
    "libraries": [sys.executable, "-c", LIBRARIES],
    "help": [sys.executable, "-m", "resnet_paths_plugin", "--help"],
}


def processor_seconds(command):
    """Return the processor time that a process takes, its own children included."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as users have it
    done = subprocess.run(  # noqa: S603 - written here
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, env=kept
    )
    return float(done.stdout)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.imports", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    started = time.perf_counter()
    times = {way: [] for way in WAYS}
    for command in WAYS.values():
        processor_seconds(command)  # which writes the bytecode
    for _ in range(rounds):
        for way, command in WAYS.items():
            times[way].append(processor_seconds(command))
    seconds = {way: median(found) for way, found in times.items()}
    ratios = sorted(ours / theirs for ours, theirs in zip(times["ours"], times["libraries"], strict=True))
    print(f"`{OURS}` / `{LIBRARIES}`: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), bound 1.15")
    print(f"resnet-paths --help: {seconds['help']:.2f} s, bound 0.5")
    print(f"medians of {rounds} rounds: {seconds}, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
