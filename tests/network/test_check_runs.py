"""The check in runs of every kind: once per study, wherever it runs, also where it goes on from a checkpoint."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from small_studies import STUDIES, batches, captured, network

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import WorkerLostError
from resnet_paths_plugin.network.model_check import ModelCheck

pytestmark = pytest.mark.slow

ANALYZERS = {"lesions": rpp.BlockLesion, "paths": rpp.PathLengthGradient, "influence": rpp.BlockInfluence}
FOUND = {"lesions": "outputs", "paths": "outputs and gradients", "influence": "outputs and gradients"}


@pytest.fixture(scope="module")
def executors():
    """Where studies run: here, in threads and in processes."""
    with (
        ThreadPoolExecutor(2) as threads,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
    ):
        yield {"here": None, "threads": threads, "processes": processes}


@pytest.fixture
def checks(monkeypatch):
    """Count the checks of studies in this process."""
    made = []
    original = ModelCheck.study

    def study(self, *args, **options):
        made.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(ModelCheck, "study", study)
    return made


@pytest.mark.parametrize("where", ["here", "threads", "processes"])
@pytest.mark.parametrize("name", ANALYZERS)
def test_the_check_is_made_once_per_study_and_changes_nothing_wherever_it_runs(name, where, executors, checks):
    def run(verify):
        options = rpp.RunOptions(executor=executors[where], verify=verify)
        return ANALYZERS[name](captured()).attribute(batches(), internal_batch_size=2, run=options)

    found = run(verify=True)
    assert len(checks) == 1
    assert found.attrs["verified"] == FOUND[name]
    without = run(verify=False)
    assert len(checks) == 1
    assert without.attrs["verified"] == "no"
    assert found.drop_attrs().identical(without.drop_attrs())


class Breaking:
    """Batches, of which the second one cannot be read while `armed`."""

    def __init__(self):
        self.armed = True

    def __iter__(self):
        for number, batch in enumerate(batches()):
            if number and self.armed:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("name", ANALYZERS)
@pytest.mark.parametrize(("first", "then"), [(True, True), (False, True), (True, False)])
def test_a_result_that_went_on_from_a_checkpoint_says_what_was_verified_then(name, first, then, tmp_path, checks):
    net, data, path = captured(), Breaking(), tmp_path / "a.nc"

    def run(verify):
        options = rpp.RunOptions(checkpoint=path, verify=verify)
        return ANALYZERS[name](net).attribute(data, internal_batch_size=2, run=options)

    with pytest.raises(KeyboardInterrupt):
        run(first)
    assert list((tmp_path / "a.nc.partial").rglob("*.task"))
    data.armed = False
    checks.clear()
    found = run(then)
    assert found.attrs["verified"] == (FOUND[name] if then else "no")
    assert len(checks) == then
    whole = ANALYZERS[name](net).attribute(data, internal_batch_size=2)
    assert found.load().drop_attrs().equals(whole.drop_attrs())


@pytest.mark.parametrize("name", ANALYZERS)
def test_a_model_that_was_changed_is_refused_before_a_checkpoint_goes_on(name, tmp_path):
    model, data, path = network(), Breaking(), tmp_path / "a.nc"
    net = rpp.unravel(model, batches()[0][0])
    run = rpp.RunOptions(checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        ANALYZERS[name](net).attribute(data, internal_batch_size=2, run=run)
    data.armed = False
    model.register_forward_hook(lambda _m, _i, y: 2 * y)
    with pytest.raises(rpp.CaptureMismatchError, match="a forward hook of the model was added"):
        ANALYZERS[name](net).attribute(data, internal_batch_size=2, run=run)
    assert list((tmp_path / "a.nc.partial").rglob("*.task"))


def test_every_small_study_is_verified():
    for study in STUDIES.values():
        assert study(captured(), batches(), None).attrs["verified"].startswith("outputs")


def test_what_one_thread_has_verified_is_not_what_another_says():
    inputs = batches()[0][0]
    net = rpp.unravel(network(), inputs)
    net.check.study((inputs,))
    with ThreadPoolExecutor(1) as pool:
        unverified = rpp.RunOptions(verify=False)
        found = pool.submit(rpp.BlockLesion(net).attribute, batches(), run=unverified).result()
        assert pool.submit(lambda: net.check.verified).result() == found.attrs["verified"] == "no"
    assert net.check.verified == "outputs"


def test_a_study_that_fails_keeps_nothing_for_the_next_one():
    model, (images, labels) = network(), batches()[0]
    net = rpp.unravel(model, images)
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(WorkerLostError):
        rpp.BlockLesion(net).attribute(images, target=labels, run=rpp.RunOptions(executor=executor))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    unchecked = rpp.RunOptions(verify=False)
    after, anew = (
        rpp.BlockLesion(one).attribute(images, target=labels, run=unchecked)
        for one in (net, rpp.unravel(model, images))
    )
    assert after.intact_loss.identical(anew.intact_loss)
