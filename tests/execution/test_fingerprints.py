"""A checkpoint is refused by any call whose result would be another one; fingerprints tell the two apart."""

import math
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from networks import PreActivation, randomised
from small_studies import batches

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, InputError
from resnet_paths_plugin.execution.fingerprints import fingerprint
from resnet_paths_plugin.execution.payload import packed, unpacked
from resnet_paths_plugin.network.views import NetworkView


class StoppedError(Exception):
    pass


class Loader:
    """Batches that stop before one of them, or do not."""

    def __init__(self, stop=None):
        self._stop = stop

    def __iter__(self):
        for number, batch in enumerate(batches()):
            if number == self._stop:
                raise StoppedError
            yield batch


class Tempered(PreActivation):
    """Multiplies its outputs by a tensor that is neither parameter nor buffer."""

    def __init__(self, temperature):
        super().__init__(blocks=4)
        self.temperature = torch.tensor(temperature)

    def forward(self, x):
        return super().forward(x) * self.temperature


class Clamped(PreActivation):
    """Clamps its input in a region without gradients, which is a graph of its own in the captured one."""

    def __init__(self, most):
        super().__init__(blocks=4)
        self.most = most

    def forward(self, x):
        with torch.no_grad():
            x = x.clamp(-self.most, self.most) * 1
        return super().forward(x)


def seeded(make):
    torch.manual_seed(1)
    return randomised(make()).eval()


def lesions(model, checkpoint, stop=None, **options):
    return rpp.BlockLesion(model).attribute(Loader(stop), run=rpp.RunOptions(checkpoint=checkpoint), **options)


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Tempered, "content of constants of the graph is another one"), (Clamped, "operators of the graph was sha256:")],
)
def test_a_model_that_differs_in_what_is_no_parameter_is_refused(tmp_path, kind, told):
    with pytest.raises(StoppedError):
        lesions(seeded(lambda: kind(2.0)), tmp_path / "run.nc", stop=2)
    with pytest.raises(CheckpointError, match=told):
        lesions(seeded(lambda: kind(0.5)), tmp_path / "run.nc")
    lesions(seeded(lambda: kind(2.0)), tmp_path / "run.nc")


def test_a_network_with_a_nested_graph_is_sent_as_it_is():
    net = rpp.unravel(seeded(lambda: Clamped(0.5)), batches()[0][0])
    assert unpacked(packed(net)).graph_digest() == net.graph_digest()


def written(source, **names):
    """What a module of the user's would hold with this source."""
    module = types.ModuleType("users")
    vars(module).update(names)
    exec(textwrap.dedent(source), vars(module))  # noqa: S102 - the user's code, edited between two calls
    return module


CALLED = """
class Measure:
    def __call__(self, outputs, target):
        return outputs[:, K]
    def column(self, outputs, target):
        return outputs[:, K]
measure = Measure()
method = measure.column
"""
SLOTTED = """
class Measure:
    __slots__ = ("column", "__own")
    def __init__(self):
        self.column, self.__own = A, B
measure = Measure()
"""
READING = """
COLUMN = {"of": [K]}
def column(outputs):
    return outputs[:, COLUMN["of"][0]]
def measure(outputs, target):
    return (lambda: column(outputs))() if target is None else measure(outputs, None)
"""
MODULE = """
from torch import nn
class Inner(nn.Module):
    def forward(self, outputs):
        return outputs[:, K]
class Measure(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
    def forward(self, outputs, target):
        return self.inner(outputs)
measure = Measure()
"""


@pytest.mark.parametrize(
    ("source", "edited"),
    [
        ("def measure(outputs, target, *, k=K): return outputs[:, k]", ("K", "1", "2")),
        ("def measure(outputs, target): return outputs[:, K]", ("K", "1", "2")),
        (CALLED, ("K", "1", "2")),
        (CALLED.replace("measure = Measure()\nmethod = measure.column", "measure = Measure().column"), ("K", "1", "2")),
        (SLOTTED.replace("B", "0"), ("A", "1", "2")),
        (SLOTTED.replace("A", "0"), ("B", "1", "2")),
        (READING, ("K", "1", "2")),
        (READING.replace("K", "1"), ("[:, COL", "[:, COL", "[:, -COL")),
        (MODULE, ("K", "1", "2")),
        ("import torch\nmeasure = [torch.device(K)]", ("K", "'cpu'", "'meta'")),
    ],
)
def test_what_was_edited_has_another_fingerprint(source, edited):
    old, one, other = edited
    before, again, after = (written(source.replace(old, value)).measure for value in (one, one, other))
    assert fingerprint(before) == fingerprint(again)
    assert fingerprint(before) != fingerprint(after)


def test_a_global_constant_that_a_measure_reads_is_compared():
    source = "def measure(outputs, target): return outputs[:, COLUMN]"
    one, again, other = (written(source, COLUMN=column, torch=torch).measure for column in (0, 0, 1))
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)


def test_an_edited_measure_is_refused_by_a_checkpoint(tmp_path):
    source = "def measure(outputs, target): return outputs[:, COLUMN]"
    with pytest.raises(StoppedError):
        lesions(seeded(PreActivation), tmp_path / "run.nc", 2, measures={"mine": written(source, COLUMN=0).measure})
    with pytest.raises(CheckpointError, match="content of measures is another one"):
        lesions(seeded(PreActivation), tmp_path / "run.nc", measures={"mine": written(source, COLUMN=1).measure})


def measuring(view):
    """A measure that holds a network, and reads it."""
    return {"mine": lambda outputs, _: outputs[:, 0] + view(torch.zeros(len(outputs), 3, 6, 6))[:, 0].detach()}


VIEWS = {
    "network": lambda net: net,
    "optimized": lambda net: rpp.unravel(net.model, batches()[0][0], optimize=["channels_last"]),
    "layers": lambda net: rpp.unravel(net.model, batches()[0][0], units="layers"),
    "lesioned": lambda net: net.lesioned([0]),
    "lesioned elsewhere": lambda net: net.lesioned([1]),
    "restricted": lambda net: net.restricted([1]),
    "restricted to others": lambda net: net.restricted([1, 2]),
    "sampling": lambda net: net.sampling(n_active=2, generator=torch.Generator().manual_seed(1)),
    "sampling by another seed": lambda net: net.sampling(n_active=2, generator=torch.Generator().manual_seed(2)),
    "sampling more": lambda net: net.sampling(n_active=3, generator=torch.Generator().manual_seed(1)),
    "sampling in eval mode": lambda net: net.sampling(n_active=2, generator=torch.Generator().manual_seed(1)).eval(),
    "sampling by probability": lambda net: net.sampling(survival=0.5),
}


def test_views_of_a_network_have_fingerprints_of_their_own():
    made = [rpp.unravel(seeded(PreActivation), batches()[0][0]) for _ in range(2)]
    found, again = ({name: fingerprint(view(net)) for name, view in VIEWS.items()} for net in made)
    assert found == again
    assert len(set(found.values())) == len(VIEWS)
    with torch.no_grad():
        next(made[0].model.parameters()).add_(1e-3)
    edited = {name: fingerprint(view(made[0])) for name, view in VIEWS.items()}
    assert not set(edited.values()) & set(found.values())


@pytest.mark.parametrize("view", ["network", "lesioned", "restricted"])
def test_a_measure_that_holds_a_network_is_gone_on_from_until_the_network_is_another_one(tmp_path, view):
    def measures(edit=0.0):
        model = seeded(PreActivation)
        with torch.no_grad():
            next(model.parameters()).add_(edit)
        return measuring(VIEWS[view](rpp.unravel(model, batches()[0][0])))

    expected = lesions(seeded(PreActivation), None, measures=measures())
    with pytest.raises(StoppedError):
        lesions(seeded(PreActivation), tmp_path / "run.nc", 2, measures=measures())
    with pytest.raises(CheckpointError, match="content of measures is another one"):
        lesions(seeded(PreActivation), tmp_path / "run.nc", measures=measures(1e-3))
    found = lesions(seeded(PreActivation), tmp_path / "run.nc", measures=measures())
    assert (found["mine"] == expected["mine"]).all()


def test_a_view_of_another_kind_is_refused_with_the_way_out():
    class Mine(NetworkView):
        pass

    measure = measuring(Mine(seeded(PreActivation)))["mine"]
    with pytest.raises(InputError, match=r"a Mine computes cannot be compared.*measure\.version = '1'"):
        fingerprint(measure)
    measure.version = "1"
    assert fingerprint(measure)


def test_values_that_contain_themselves_have_fingerprints():
    around = {"other": 1}
    around["self"] = [around]
    assert fingerprint(around) == fingerprint(around)
    assert fingerprint(math.sin) != fingerprint(math.cos)


def test_fingerprints_are_the_same_in_every_process():
    """Where hashes of strings, and so the order of sets, differ."""
    source = """
        import math, sys, torch
        from functools import partial
        from test_fingerprints import CALLED, READING, MODULE, written
        from resnet_paths_plugin.execution.fingerprints import fingerprint
        values = [written(text.replace("K", "1")).measure for text in (CALLED, READING, MODULE)]
        kept = written("def measure(o, t): return o if t in {'a', 'b', 'c'} else {'d', 'e'}").measure
        print(fingerprint([*values, kept, partial(kept, t={'x', 'y', 'z'}), math.sin, torch.nn.CrossEntropyLoss()]))
    """
    found = {
        subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-c", textwrap.dedent(source)],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 64
