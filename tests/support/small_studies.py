"""One small study by each analyzer, to be run in different ways; every task boundary lies inside the data."""

from functools import cache, partial

import numpy as np
import torch
from networks import PostActivation, PreActivation, Transformer, randomised

import resnet_paths_plugin as rpp

N_SAMPLES = 11
TIMES = ("date_created", "history")


def network():
    torch.manual_seed(1)
    return randomised(PreActivation(blocks=4)).eval()


@cache
def captured(make=network, units="blocks"):
    """Return a network that is captured once: studies leave it as it is, so that tests may share it."""
    return rpp.unravel(make(), batches()[0][0], units=units)


def batches(n_samples=N_SAMPLES, size=4):
    """Batches of 4, 4 and 3 images with labels."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(n_samples, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (n_samples,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def margin(outputs, _target):
    """A measure that a worker can import."""
    best = outputs.topk(2).values
    return best[:, 0] - best[:, 1]


def first_score(outputs, _target):
    """An objective that a worker can import."""
    return outputs[:, 0] ** 2


def _lesions(model, data, run, **options):
    return rpp.BlockLesion(model).attribute(
        data, n_deleted=[1, 2, 3], draws=14, internal_batch_size=3, measures={"margin": margin}, run=run, **options
    )


def _orders(model, data, run):
    return rpp.BlockReordering(model).attribute(
        data, n_swaps=[1, 2], draws=20, internal_batch_size=3, perturbations_per_eval=3, run=run
    )


def _schedules(model, data, run):
    return rpp.BlockSchedules(model).attribute(
        data,
        schedules=[rpp.schedules.adjacent_swaps, partial(rpp.schedules.scaled_branches, factors=[0.5, 1.5])],
        internal_batch_size=2,
        run=run,
    )


def _influence(model, data, run):
    lesions = rpp.BlockLesion(model).attribute(data)
    return rpp.BlockInfluence(model).attribute(data, lesions=lesions, internal_batch_size=3, run=run)


def _paths(model, data, run):
    return rpp.PathLengthGradient(model).attribute(
        data, estimator=("exact", "sampled", "signs"), draws=3, keep_maps=True, internal_batch_size=2, run=run
    )


def _sampled_paths_of_an_objective(model, data, run):
    return rpp.PathLengthGradient(model).attribute(
        data, estimator="sampled", draws=3, objective=first_score, tap="stem", internal_batch_size=2, run=run
    )


def _parameters(model, data, run):
    return rpp.PathLengthGradient(model).attribute(
        data, tap="parameters", objective="cross_entropy", per_sample=True, internal_batch_size=3, run=run
    )


def _contributions(model, data, run):
    return rpp.BlockContribution(model).attribute(data, versus=1, keep_maps=True, internal_batch_size=3, run=run)


def _participation(model, data, run):
    return rpp.PathParticipation(model).attribute(data, baselines=0.1, n_steps=2, internal_batch_size=3, run=run)


def _layers(model, data, run):
    net = captured(units="layers") if model is captured() else rpp.unravel(model, data[0][0], units="layers")
    return rpp.BlockLesion(net).attribute(data, internal_batch_size=3, run=run)


def _of_other(make):
    def other():
        torch.manual_seed(3)
        return randomised(make()).eval()

    def study(_model, data, run):
        return rpp.PathLengthGradient(captured(other)).attribute(data, run=run)

    return study


STUDIES = {
    "lesions": _lesions,
    "mean ablation": partial(_lesions, ablation="mean"),
    "linear ablation": partial(_lesions, ablation="linear"),
    "resample ablation": partial(_lesions, ablation="resample"),
    "recalibrated": partial(_lesions, ablation="resample", batch_norm="recalibrated"),
    "orders": _orders,
    "schedules": _schedules,
    "influence": _influence,
    "paths": _paths,
    "sampled paths": _sampled_paths_of_an_objective,
    "parameters": _parameters,
    "contributions": _contributions,
    "participation": _participation,
    "layers": _layers,
    "paths, in-place operators": _of_other(PostActivation),
    "paths, attention": _of_other(Transformer),
}


def timeless(dataset):
    """The dataset without the times of its making, in memory."""
    return dataset.load().assign_attrs(dict.fromkeys(TIMES, "some time"))


def run(name, options=None, *, data=None, model=None):
    return timeless(STUDIES[name](captured() if model is None else model, batches() if data is None else data, options))


def n_units(n_samples=N_SAMPLES, chunk=3, size=4, groups=2):
    """Tasks of a study of 42 schedules, of which a task has 32."""
    sizes = [min(size, n_samples - start) for start in range(0, n_samples, size)]
    return int(sum(np.ceil(one / chunk) for one in sizes)) * groups
