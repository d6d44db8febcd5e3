"""A checkpoint is gone on from only by a call whose measures do what they did, whatever they reach.

Each edit is one of a source that a user might have; the oracle is what the measures return.
"""

import sys
import textwrap
import types

import pytest
import torch
from small_studies import batches, captured, timeless

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, InputError
from resnet_paths_plugin.execution.fingerprints import fingerprint


class StoppedError(Exception):
    pass


class Loader:
    """Batches that stop before the last one, or do not."""

    def __init__(self, stops=False):
        self._stops = stops

    def __iter__(self):
        yield from batches()[: -1 if self._stops else None]
        if self._stops:
            raise StoppedError


HEAD = """
import dataclasses, enum, functools, math, operator, threading, types
import torch
from torch import nn
from torch.nn import functional
import others
"""
OTHERS = """
import torch
FACTOR = 1
class Inner:
    factor = 1
class Config:
    def factor(self): return FACTOR
CONFIG = Config()
TABLE = {"factor": FACTOR}
def score(outputs): return outputs[:, 0] * FACTOR
"""
CLASS = """
class Measure:
    factor = {class_}
    def __init__(self, scale): self.scale = scale
    @property
    def offset(self): return {property_}
    @staticmethod
    def add(x): return x + {static}
    @classmethod
    def twice(cls, x): return x * {of_class}
    def __call__(self, outputs, target):
        return self.twice(self.add(outputs[:, 0] * self.factor * self.scale)) + self.offset
measure = Measure({instance})
"""
DATACLASS = """
@dataclasses.dataclass{options}
class Config:
    factor: float = 1.0
    def of(self, x): return x * self.factor + {method}
config = Config({given})
def measure(outputs, target): return config.of(outputs[:, 0])
"""
MODULE = """
class Measure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 1)
        nn.init.constant_(self.linear.weight, {weight})
        nn.init.constant_(self.linear.bias, 0.5)
        self.register_buffer("offset", torch.tensor({buffer}), persistent=False)
        self.factor = {attribute}
    def forward(self, outputs, target):
        return self.linear(outputs)[:, 0] * self.factor + self.offset
module = Measure().eval()
{hook}
def measure(outputs, target): return module(outputs, target).detach()
"""


def of(template, **edits):
    """The template as it is, and with one of its places edited."""
    plain = {"class_": 1, "property_": 1, "static": 1, "of_class": 1, "instance": 1, "options": "", "method": 1}
    plain |= {"given": "", "weight": 1.0, "buffer": 1.0, "attribute": 1, "hook": ""}
    return tuple(_filled(template, {**plain, **given}) for given in ({}, edits))


def _filled(template, values):
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def swapped(source, old, new):
    assert old in source
    return source, source.replace(old, new)


SIMPLE = "def measure(outputs, target): return outputs[:, 0] * 2 + 1"
GLOBAL = "K = 1\ndef measure(outputs, target): return outputs[:, 0] * K"
INNER = """
def make(k):
    def measure(outputs, target): return outputs[:, 0] * k
    return measure
measure = make(1)
"""
WRAPPED = """
def scaled(by):
    def around(function):
        @functools.wraps(function)
        def wrapper(*args): return function(*args) * by
        return wrapper
    return around
@scaled(1)
def measure(outputs, target): return outputs[:, 0] + 1
"""
DISPATCHED = """
@functools.singledispatch
def part(x): return x
@part.register
def _(x: torch.Tensor): return x[:, 0] * 1
def measure(outputs, target): return part(outputs)
"""
ENUM = """
class Column(enum.Enum):
    FIRST = 0
    SECOND = 1
    @property
    def factor(self): return 1
COLUMN = Column.FIRST
def measure(outputs, target): return outputs[:, COLUMN.value] * COLUMN.factor
"""
METHODS = """
class Base:
    def factor(self): return 1
class Measure(Base):
    def of(self, outputs, target): return outputs[:, 0] * self.factor()
measure = Measure().of
"""
LATE = """
class Config:
    def __init__(self): self.lock, self.k = threading.Lock(), {"deep": [(1, {"er": 1})]}
    def factor(self): return self.k["deep"][0][1]["er"]
CONFIG = Config()
def measure(outputs, target): return (lambda: outputs[:, 0] * CONFIG.factor())()
"""
PARTIAL = "def f(k, o, t): return o[:, 0] * k\nmeasure = functools.partial(f, 1)"
HANDLER = """
def measure(outputs, target):
    try:
        return outputs[:, 99]
    except IndexError:
        return outputs[:, 0]
"""

EDITS = {
    "number": swapped(SIMPLE, "* 2", "* 3"),
    "operator": swapped(SIMPLE, "+ 1", "- 1"),
    "index": swapped(SIMPLE, ":, 0", ":, 1"),
    "function used": swapped("def measure(o, t): return o[:, 0].abs().sqrt()", "sqrt", "log1p"),
    "default": swapped("def measure(o, t, k=1): return o[:, 0] * k", "k=1", "k=2"),
    "keyword default": swapped("def measure(o, t, *, k=1): return o[:, 0] * k", "k=1", "k=2"),
    "closure": swapped(INNER, "make(1)", "make(2)"),
    "code in a closure": swapped(INNER, "* k", "- k"),
    "global number": swapped(GLOBAL, "K = 1", "K = 2"),
    "global tensor": swapped(GLOBAL, "K = 1", "K = torch.tensor([3.0])"),
    "global list": swapped("K = [1]\ndef measure(o, t): return o[:, 0] * K[0]", "[1]", "[2]"),
    "function of the module": swapped("def f(x): return x * 1\ndef measure(o, t): return f(o[:, 0])", "* 1", "* 2"),
    "function two calls away": swapped(
        "def g(x): return x * 1\ndef f(x): return g(x)\ndef measure(o, t): return f(o[:, 0])", "* 1", "* 2"
    ),
    "lambda": swapped("measure = lambda o, t: o[:, 0] * 1", "* 1", "* 2"),
    "lambda inside": swapped("def measure(o, t): return (lambda x: x * 1)(o[:, 0])", "* 1", "* 2"),
    "comprehension": swapped("def measure(o, t): return sum(o[:, i] for i in range(2))", "range(2)", "range(3)"),
    "handler": swapped(HANDLER, "except IndexError:\n        return outputs[:, 0]",
                       "except IndexError:\n        return outputs[:, 1]"),
    "partial's argument": swapped(PARTIAL, "f, 1", "f, 2"),
    "partial's function": swapped(PARTIAL, "* k", "+ k"),
    "wrapper's argument": swapped(WRAPPED, "@scaled(1)", "@scaled(2)"),
    "wrapped function": swapped(WRAPPED, "+ 1", "+ 2"),
    "wrapper's code": swapped(WRAPPED, "* by", "+ by"),
    "cached function": swapped(
        "@functools.cache\ndef k(): return 1\ndef measure(o, t): return o[:, 0] * k()", "return 1", "return 2"
    ),
    "dispatched function": swapped(DISPATCHED, "* 1", "* 2"),
    "class attribute": of(CLASS, class_=2),
    "property": of(CLASS, property_=2),
    "static method": of(CLASS, static=2),
    "class method": of(CLASS, of_class=2),
    "instance attribute": of(CLASS, instance=2),
    "base class": swapped(METHODS, "return 1", "return 2"),
    "bound method": swapped(METHODS, ":, 0", ":, 1"),
    "dataclass field": of(DATACLASS, given="factor=2.0"),
    "dataclass method": of(DATACLASS, method=2),
    "frozen dataclass default": swapped(of(DATACLASS, options="(frozen=True)")[1], "float = 1.0", "float = 2.0"),
    "slotted dataclass": swapped(of(DATACLASS, options="(slots=True)")[1], "Config()", "Config(3.0)"),
    "enum member": swapped(ENUM, "Column.FIRST", "Column.SECOND"),
    "enum value": swapped(ENUM, "FIRST = 0", "FIRST = 2"),
    "enum method": swapped(ENUM, "return 1", "return 2"),
    "deep in an object": swapped(LATE, '{"er": 1}', '{"er": 2}'),
    "weights": of(MODULE, weight=2.0),
    "buffer that is not saved": of(MODULE, buffer=2.0),
    "attribute of a module": of(MODULE, attribute=2),
    "hook": of(MODULE, hook="module.register_forward_hook(lambda m, i, o: o * 2)"),
    "code of a module": swapped(of(MODULE)[0], "* self.factor", "/ (self.factor + 1)"),
    "module of torch": swapped(
        "act = nn.LeakyReLU(0.1)\ndef measure(o, t): return act(o[:, 0])", "LeakyReLU(0.1)", "LeakyReLU(0.2)"
    ),
    "operator's item": swapped("get = operator.itemgetter(0)\ndef measure(o, t): return get(o.T)", "(0)", "(1)"),
}  # fmt: skip
CALL_OF_OTHERS = {
    "constant of another module": "def measure(o, t): return o[:, 0] * others.FACTOR",
    "function of another module": "def measure(o, t): return others.score(o)",
    "table of another module": "def measure(o, t): return o[:, 0] * others.TABLE['factor']",
    "object of another module": "def measure(o, t): return o[:, 0] * others.CONFIG.factor()",
    "imported function": "from others import score\ndef measure(o, t): return score(o)",
    "imported object": "from others import CONFIG\ndef measure(o, t): return o[:, 0] * CONFIG.factor()",
    "class of another module": "def measure(o, t): return o[:, 0] * others.Inner.factor",
}


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """A second module of the user's, and what makes it anew with another source."""

    def made(source):
        module = types.ModuleType("others")
        exec(source, vars(module))  # noqa: S102 - the user's code, edited between two calls
        monkeypatch.setitem(sys.modules, "others", module)

    made(OTHERS)
    return made


def written(source):
    module = types.ModuleType("users")
    exec(HEAD + textwrap.dedent(source), vars(module))  # noqa: S102 - the user's code, edited between two calls
    return module.measure


def study(measure, checkpoint=None, stops=False):
    run = rpp.RunOptions(checkpoint=checkpoint)
    return rpp.BlockLesion(captured()).attribute(
        Loader(stops), measures={"mine": measure}, internal_batch_size=3, run=run
    )


OUTPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_there_are_forty_kinds():
    assert len(EDITS) + len(CALL_OF_OTHERS) >= 40


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_is_told_by_the_fingerprint(kind):
    before, again, after = (written(EDITS[kind][edited]) for edited in (0, 0, 1))
    assert not torch.equal(before(OUTPUTS, None), after(OUTPUTS, None)), "the edit changes nothing"
    assert fingerprint(before) == fingerprint(again)
    assert fingerprint(before) != fingerprint(after)
    before(OUTPUTS, None)
    assert fingerprint(before) == fingerprint(again), "a call changed it"


@pytest.mark.parametrize("kind", CALL_OF_OTHERS)
def test_an_edit_of_another_module_is_told_by_the_fingerprint(kind, others):
    before, again = (written(CALL_OF_OTHERS[kind]) for _ in range(2))
    values = before(OUTPUTS, None)
    prints = fingerprint(before), fingerprint(again)
    others(OTHERS.replace("FACTOR = 1", "FACTOR = 2").replace("factor = 1", "factor = 2"))
    after = written(CALL_OF_OTHERS[kind])
    assert not torch.equal(values, after(OUTPUTS, None))
    assert prints[0] == prints[1] != fingerprint(after)


def check_resume(tmp_path, before, again, after):
    with pytest.raises(StoppedError):
        study(before, tmp_path / "run.nc", stops=True)
    with pytest.raises(CheckpointError) as caught:
        study(after, tmp_path / "run.nc")
    assert timeless(study(again, tmp_path / "run.nc").load()).identical(timeless(study(before)))
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["number", "closure", "wrapped function", "weights", "dataclass method"])
def test_a_resume_after_an_edit_is_refused(kind, tmp_path):
    assert "another one in this call" in check_resume(tmp_path, *(written(EDITS[kind][at]) for at in (0, 0, 1)))


@pytest.mark.zoo
@pytest.mark.parametrize("kind", EDITS)
def test_a_resume_after_any_edit_is_refused(kind, tmp_path):
    check_resume(tmp_path, *(written(EDITS[kind][at]) for at in (0, 0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("number", "users.measure()"),
        ("closure", "k of make.<locals>.measure"),
        ("global number", "users.K"),
        ("function two calls away", "users.g()"),
        ("default", "defaults of users.measure"),
    ],
)
def test_what_differs_is_named(kind, told, tmp_path):
    assert f"the content of {told} is another one" in check_resume(
        tmp_path, *(written(EDITS[kind][at]) for at in (0, 0, 1))
    )


OPAQUE = {
    "generator": "source = iter(x for x in [1, 2])\ndef measure(o, t): return o[:, 0] * (source is not None)",
    "open file": "import sys\nfile = sys.__stderr__\ndef measure(o, t): return o[:, 0] * (not file.closed)",
}


@pytest.mark.parametrize("kind", OPAQUE)
@pytest.mark.filterwarnings("ignore:.*unclosed file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_compared_is_refused_with_the_way_out(kind, tmp_path):
    measure, again = (written(OPAQUE[kind]) for _ in range(2))
    study(measure)  # without a checkpoint nothing is compared
    with pytest.raises(InputError, match=r"cannot be compared .* give what reaches it, .*measure\.version = '1'"):
        study(measure, tmp_path / "run.nc")
    assert not list(tmp_path.iterdir())
    measure.version = again.version = "1"
    with pytest.raises(StoppedError):
        study(measure, tmp_path / "run.nc", stops=True)
    again.version = "2"
    with pytest.raises(CheckpointError, match="content of measures is another one"):
        study(again, tmp_path / "run.nc")
    again.version = "1"
    study(again, tmp_path / "run.nc").close()


def test_objects_that_name_one_another_in_many_ways_are_read_once():
    class Part:
        def __init__(self, below):
            self.left = self.right = below

        def __call__(self, outputs, target):
            return outputs[:, 0]

    part = None
    for _ in range(60):
        part = Part(part)
    assert fingerprint(part) == fingerprint(part)
