"""Killed 80 times, at any file that is made, renamed or removed: the next call ends as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal
import sys

import command_lines
import pytest
import torch
from command_lines import OPTIONS, analysis, invoke
from killed_studies import PATIENCE_S, network, study
from small_studies import timeless

import resnet_paths_plugin as rpp

place = command_lines.place  # a fixture

KILLS = 20
EVENTS = {"open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link"}
"""What Python tells of before it does it, with the path."""

pytestmark = [
    pytest.mark.endurance,
    pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL"),
]


class Killer:
    """Sees what is done to files of a folder, and kills the process some time after a number of such things."""

    def __init__(self, folder, at, delay):
        self.folder, self.at, self.delay, self.seen = str(folder), at, delay, []

    def __call__(self, event, arguments):
        if event not in EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        self.seen.append(f"{event} {arguments[0]}")
        if len(self.seen) == self.at:
            # By the clock, as netCDF writes without a word; at once where it is 0.
            if self.delay:
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                signal.setitimer(signal.ITIMER_REAL, self.delay)
            else:
                os.kill(os.getpid(), signal.SIGKILL)


def killed_run(what, folder, home, at, delay, telling):
    torch.set_num_threads(1)
    killer = Killer(folder, at, delay)
    sys.addaudithook(killer)
    WHAT[what](folder, home)
    signal.setitimer(signal.ITIMER_REAL, 0)
    telling.send(killer.seen)


def stream(folder, _home):
    study(network(), folder / "run.nc").close()


def command(folder, home):
    os.chdir(home)
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    result = invoke(*analysis(*OPTIONS, "--resume", output=folder / "run.nc"))
    assert result.exit_code == 0, result.output


WHAT = {"stream": stream, "command": command}


@pytest.fixture(scope="module")
def processes():
    """Processes of a server that has imported what they need; they have not yet run anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resnet_paths_plugin", "resnet_paths_plugin.cli", "small_studies", "captum.attr"])
    return context


def run(processes, what, folder, home, at=0, delay=0.0):
    """Return what was done to files, if the process was not killed."""
    folder.mkdir(exist_ok=True)
    listening, telling = processes.Pipe(duplex=False)
    process = processes.Process(target=killed_run, args=(what, folder, home, at, delay, telling))
    process.start()
    telling.close()
    try:
        seen = listening.recv()
    except EOFError:  # it was killed
        seen = None
    process.join(PATIENCE_S)
    assert process.exitcode == (0 if seen else -signal.SIGKILL)
    return seen


def results(path):
    found = rpp.load(path)
    if hasattr(found, "children"):
        return {group: timeless(node.to_dataset()) for group, node in found.children.items()}
    return {"": timeless(found)}


def names(folder):
    return sorted(one.name for one in folder.iterdir())


PHASES = {
    # Of the things that are done to files, those between two places in their order.
    "stream": ("stream", lambda seen: (1, len(seen))),
    "join": ("stream", lambda seen: (last_unit(seen), len(seen))),
    "command": ("command", lambda seen: (1, first_save(seen))),
    "last save": ("command", lambda seen: (first_save(seen), len(seen))),
}


def last_unit(seen):
    return max(number for number, event in enumerate(seen, 1) if event.startswith("os.rename") and ".partial" in event)


def first_save(seen):
    return next(number for number, event in enumerate(seen, 1) if ".resnet-paths-" in event)


@pytest.mark.parametrize("phase", PHASES)
def test_twenty_kills_change_nothing_and_leave_nothing(phase, tmp_path, processes, place):
    what, span = PHASES[phase]
    seen = run(processes, what, tmp_path / "whole", place)
    expected, files = results(tmp_path / "whole" / "run.nc"), names(tmp_path / "whole")
    first, last = span(seen)
    moments = random.Random(phase)  # noqa: S311 - no secret
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        at = first + (last - first) * kill // KILLS
        delay = moments.choice([0.0, moments.uniform(0.0001, 0.05)])
        if run(processes, what, folder, place, at, delay) is not None:  # it ended before the delay did
            shutil.rmtree(folder)
            assert run(processes, what, folder, place, at) is None
        assert not (folder / "run.nc").exists() or results(folder / "run.nc").keys() == expected.keys()
        WHAT[what](folder, place)
        found = results(folder / "run.nc")
        assert found.keys() == expected.keys()
        for group, dataset in found.items():
            assert dataset.identical(expected[group]), f"kill {kill} at {seen[at - 1]}, {group}"
        assert names(folder) == files, f"kill {kill} at {seen[at - 1]}"
