"""Damaged files of every format that is read end in an error of this package, or are read; nothing else happens.

What damage there is, is said in `fuzzing`. A crash within a library in C is that library's: it is told by name.
"""

import linecache
import re
import signal
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import netCDF4
import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "fuzzing.py"
CASES, MANY_CASES = 150, 5000
READERS = {
    "netcdf": f"netCDF4 {metadata.version('netCDF4')} (netCDF-C {netCDF4.__netcdf4libversion__}, "
    f"HDF5 {netCDF4.__hdf5libversion__})",
    "safetensors": f"safetensors {metadata.version('safetensors')}",
    "images": f"Pillow {metadata.version('pillow')}",
}
"""Libraries in C or Rust that read a format; npz files are read by Python's own zipfile and numpy."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory and time are limited as Linux does"),
]


# Where Python waits for such a library; a loop without end in it is as much beyond a loader as a crash is.
CALLS = ("netCDF4.Dataset(", "found.get_create_plist(", "safetensors.safe_open(", "image.convert(")


class UpstreamCrashWarning(UserWarning):
    """A library in C crashed on a damaged file: no loader in Python can prevent that."""


def results_of(kind, cases, folder):
    """What became of each case, by its number; if it ended the process, the signal and the line of the loader."""
    found, first = {}, 0
    while first < cases:
        ended = subprocess.run(  # noqa: S603 - this very interpreter
            [sys.executable, SCRIPT, kind, str(first), str(cases), folder],
            capture_output=True, text=True, check=False, env={"PYTHONPATH": str(SCRIPT.parents[1])},
        )  # fmt: skip
        lines = [line.split(" ", 1) for line in ended.stdout.splitlines()]
        assert lines, ended.stderr
        assert lines.pop(0) == ["-1", "opened"], "the valid file is not read"
        if ended.returncode < 0:
            lines[-1][1] = f"{signal.Signals(-ended.returncode).name} at {line_of(ended.stderr)}"
        else:
            assert ended.returncode == 0, ended.stderr
        found |= {int(case): result for case, result in lines}
        first = max(found) + 1
    return found


def line_of(trace):
    """The innermost line of this package in what `faulthandler` wrote."""
    file, line = re.search(r'File "(.*/resnet_paths_plugin/.*)", line (\d+)', trace).groups()
    return linecache.getline(file, int(line)).strip()


def check(kind, cases, folder):
    found = results_of(kind, cases, folder)
    assert list(found) == list(range(cases))
    crashes = {
        case: result
        for case, result in found.items()
        if re.match("SIG(SEGV|BUS|ABRT|FPE)", result)
        or (result.startswith("SIGPROF") and any(call in result for call in CALLS))
    }
    wrong = {case: result for case, result in found.items() if result not in {"opened", "told"} and case not in crashes}
    assert not wrong
    assert list(found.values()).count("told") > cases / 4, "there is no damage"
    if crashes:
        assert kind in READERS, crashes
        warnings.warn(f"{READERS[kind]} crashed on damaged files: {crashes}", UpstreamCrashWarning, stacklevel=2)


@pytest.mark.filterwarnings("default::test_fuzzed_files.UpstreamCrashWarning")
@pytest.mark.parametrize("kind", ["netcdf", "safetensors", "npz", "images"])
def test_a_damaged_file_is_read_or_refused(kind, tmp_path):
    check(kind, CASES, tmp_path)


@pytest.mark.zoo
@pytest.mark.filterwarnings("default::test_fuzzed_files.UpstreamCrashWarning")
@pytest.mark.parametrize("kind", ["netcdf", "safetensors", "npz", "images"])
def test_many_damaged_files_are_read_or_refused(kind, tmp_path):
    check(kind, MANY_CASES, tmp_path)
