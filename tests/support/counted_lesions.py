"""Lesions whose measure counts its calls, and stops the study where a test says."""

import errno
import os

import pytest
from small_studies import batches, captured, margin, n_units

import resnet_paths_plugin as rpp


class StoppedError(Exception):
    pass


class Stopping:
    """A measure that stops the study at some call, and counts how often it is called in all."""

    def __init__(self, at=None, error=StoppedError):
        self.calls, self.at, self.error = 0, at, error

    def __call__(self, outputs, target):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return margin(outputs, target)

    def __reduce__(self):  # it is the same measure, however often it was called
        return Stopping, ()


def counted(outputs, target):
    counted.by(outputs, target)
    return margin(outputs, target)


counted.by = None
counted.version = "1"  # it is the same measure, whatever is counted by it


def lesions(model=None, data=None, checkpoint=None, executor=None, **options):
    """Lesions of a network in 10 units, whose measure can be made to stop: see `counted.by`."""
    options = {"n_deleted": [1, 2, 3], "draws": 14, "internal_batch_size": 3, **options}
    return rpp.BlockLesion(captured() if model is None else model).attribute(
        batches() if data is None else data,
        measures={"margin": counted},
        run=rpp.RunOptions(checkpoint=checkpoint, executor=executor),
        **options,
    )


def calls_of_a_whole_run():
    """In each chunk, every schedule once and the intact network once in each of two groups; the model's check aside."""
    return n_units() // 2 * (42 + 2)


def interrupted(counting, checkpoint, error=StoppedError, at=3 * 33 + 5):
    counting(Stopping(at, error))
    with pytest.raises(error) as caught:
        lesions(checkpoint=checkpoint)
    return caught.value


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
