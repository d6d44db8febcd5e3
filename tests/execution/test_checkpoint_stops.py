"""Finished tasks are kept while data are waited for, and an interruption says what is kept."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from counted_lesions import StoppedError, Stopping, calls_of_a_whole_run, interrupted, lesions, no_space
from small_studies import batches, n_units, timeless

from resnet_paths_plugin.execution import TaskFolder

pytestmark = pytest.mark.slow


def seen(condition):
    """Whether something comes true in a while."""
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.usefixtures("counting")
def test_a_finished_unit_is_written_while_the_data_are_waited_for(tmp_path):
    """Far fewer units than may be on their way: nothing else makes the caller look at them."""

    def data():
        *most, last = batches()
        yield from most
        assert seen(lambda: len(list(tmp_path.rglob("*.task"))) == n_units() - 2)
        yield last

    with ThreadPoolExecutor(4) as pool:
        found = lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)
    assert found.load().equals(lesions())


@pytest.mark.usefixtures("counting")
def test_a_unit_that_could_not_be_written_while_the_data_were_waited_for_is_told_of(tmp_path, monkeypatch):
    class Full:
        tried = 0

        def __call__(self, *_):
            self.tried += 1
            no_space()

    full = Full()

    def data():
        *most, last = batches()
        yield most[0]
        assert seen(lambda: len(list(tmp_path.rglob("*.task"))) == 4)
        monkeypatch.setattr(TaskFolder, "_write", full)
        yield most[1]
        assert seen(lambda: full.tried)
        yield last

    with ThreadPoolExecutor(4) as pool, pytest.raises(OSError, match="No space left on device"):
        lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)


def test_an_error_of_a_worker_is_told_of_before_all_data_are_read(tmp_path, counting):
    counting(Stopping(1 + 5))
    read = []

    def data():
        for batch in batches(200, 2):
            read.append(batch)
            time.sleep(0.02)
            yield batch

    with ThreadPoolExecutor(16) as pool, pytest.raises(StoppedError):
        lesions(data=data(), checkpoint=tmp_path / "run.nc", executor=pool)
    assert len(read) < 30  # 64 units may be on their way, of which a batch makes two


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interruption_says_what_is_kept(tmp_path, counting, kind):
    error = interrupted(counting, tmp_path / "run.nc", kind, at=44 * 2 + 1)
    assert error.__notes__ == [
        f"4 finished tasks are kept in {tmp_path / 'run.nc.partial'}: the same call goes on from them."
    ]
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interruption_keeps_what_other_workers_have_finished(tmp_path, counting):
    """Of several threads one is stopped; what the others have finished by then is kept."""
    undisturbed = timeless(lesions())
    counting(Stopping(44 * 2 + 1, StoppedError))
    with ThreadPoolExecutor(2) as pool, pytest.raises(StoppedError):
        lesions(checkpoint=tmp_path / "run.nc", executor=pool)
    rest = counting(Stopping())
    found = lesions(checkpoint=tmp_path / "run.nc")
    assert timeless(found).identical(undisturbed)
    assert rest.calls < calls_of_a_whole_run() - 33
