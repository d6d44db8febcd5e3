"""Models of other libraries (`tests/wild`): the table that was made of them, and some of it again.

The oracles are the libraries' code, from which the blocks were counted before detection ran, and the models themselves:
their outputs, their outputs with one module zeroed, and autograd's gradients of them.
"""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from wild import table, truth
from wild.differences import REASONS, reason
from wild.examine import examine

LINES = table.read()
MODELS = {(library, name): one for library in truth.libraries() for name, one in truth.models(library).items()}
FEW = (
    ("transformers", "Albert"),
    ("transformers", "GPTJ"),
    ("transformers", "Mamba"),
    ("transformers", "Bart"),
    ("transformers", "Wav2Vec2"),
    ("vit_pytorch", "CrossViT"),
    ("vit_pytorch", "SimpleViT_value_residual"),
    ("vit_pytorch", "ViT_parallel"),
    ("x_transformers", "decoder_residual_attention"),
    ("x_transformers", "continuous_cross_attention"),
)
"""Models that are looked at in every run, each for something that the others have not."""


def examined(key):
    """Return what is found of a model, where its library is installed."""
    pytest.importorskip(key[0], reason=f"a model of {key[0]}, which the extra 'wild' installs")
    return examine(*key)


def test_the_table_has_every_model():
    assert LINES.keys() == MODELS.keys()
    assert {key: line.declared for key, line in LINES.items()} == {key: one.blocks for key, one in MODELS.items()}


def test_every_model_passes_with_the_same_bits_or_a_reviewed_reason_says_why_not():
    different = {key for key, line in LINES.items() if not (line.passes and line.identical)}
    assert {"/".join(key) for key in different} == REASONS.keys()


def test_at_most_one_in_twenty_is_refused():
    assert sum(bool(line.refusal) for line in LINES.values()) <= len(LINES) / 20


def test_most_lesions_are_those_of_a_module_that_returns_zeros():
    lines = [line for line in LINES.values() if line.passes]
    assert sum(line.zeroed for line in lines) > 0.8 * sum(line.lesions for line in lines)


def test_the_page_has_the_counts_of_the_table():
    page = (Path(__file__).with_name("wild") / "README.md").read_text(encoding="utf-8")
    told = {
        library: (int(models), int(blocks))
        for library, models, blocks in re.findall(r"\| (\w+) \| (\d+) \| (\d+) \|", page)
    }
    counted = {}
    for (library, _), line in LINES.items():
        models, blocks = counted.get(library, (0, 0))
        counted[library] = models + 1, blocks + line.declared
    assert told == counted


def assert_as_in_the_table(key):
    line = examined(key)
    assert line.passes or reason(*key), f"{line.refusal} {line.note}"
    assert (line.found, line.lesions, line.identical) == (
        LINES[key].found,
        LINES[key].lesions,
        LINES[key].identical,
    )
    assert line.zeroed >= LINES[key].zeroed


@pytest.mark.parametrize("library", ["vit_pytorch", "x_transformers"])
def test_a_model_of_a_library_that_is_missing_is_skipped_with_what_installs_it(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    key = next(key for key in FEW if key[0] == library)
    with pytest.raises(pytest.skip.Exception, match=f"a model of {library}, which the extra 'wild' installs"):
        examined(key)


@pytest.mark.parametrize("key", FEW, ids="/".join)
def test_a_model_is_as_its_code_says(key):
    assert_as_in_the_table(key)
    assert LINES[key].passes


@pytest.mark.wild
@pytest.mark.parametrize("key", sorted(MODELS.keys() - set(FEW)), ids="/".join)
def test_a_model_is_as_the_table_says(key):
    assert_as_in_the_table(key)
