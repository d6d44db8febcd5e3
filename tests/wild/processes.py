"""A process for each model, with limits of time and memory, forked from one that has imported what takes long."""

import multiprocessing
import os
import resource
from pathlib import Path

from wild import truth
from wild.examine import examine
from wild.table import Line

LONGEST = 300
"""Seconds after which a model is given up."""
MEMORY = 24 * 2**30
"""Bytes of address space that a process gets; the libraries of torch alone take some."""


def forking_context(libraries):
    """Return a context whose processes are forked from one that has imported the libraries."""
    # The process that forks takes its search path from the environment.
    tests = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wild.examine", *sorted(libraries)])
    return context


def look_at(context, key):
    """Return what a process of its own finds of a model."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, key))
    process.start()
    sender.close()
    try:
        if receiver.poll(LONGEST):
            return receiver.recv()
        why = "took too long"
    except EOFError:
        why = "died, for want of memory perhaps"
    finally:
        process.kill()
        process.join()
    return Line(key[0], "", key[1], truth.models(key[0])[key[1]].blocks, note=f"failed: its process {why}")


def _send(sender, key):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sender.send(examine(*key))
