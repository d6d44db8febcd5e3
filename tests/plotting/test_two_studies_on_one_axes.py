"""Two studies in the same Axes: each has its colour and entry, and what they share has one entry."""

from collections import Counter

import pytest
import synthetic_studies as synthetic
from matplotlib.colors import to_hex

from resnet_paths_plugin import plotting

N = 9
STUDIES = {
    plotting.plot_single_lesions: synthetic.single_lesions,
    plotting.plot_random_lesions: synthetic.random_lesions,
    plotting.plot_reorderings: synthetic.reorderings,
}


@pytest.mark.parametrize("plot", STUDIES, ids=lambda plot: plot.__name__)
def test_each_has_its_colour_and_entry_and_levels_have_one(plot):
    ax = plot(STUDIES[plot](N), chance=0.9, color="#112233", label="first $x$")
    alone = len(ax.get_lines())
    again = plot(STUDIES[plot](N, seed=4), ax, chance=0.9, color="#ddaa33", label="second")
    assert again is ax
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert max(Counter(entries).values()) == 1
    for name in (r"first \$x\$", "second"):
        assert f"{name}, intact" in entries
        assert any(entry.startswith(name) and not entry.endswith("intact") for entry in entries)
    assert "chance" in entries
    assert len(ax.get_lines()) == 2 * alone
    own = {to_hex(line.get_color()) for line in ax.get_lines()} | {
        to_hex(line.get_markerfacecolor()) for line in ax.get_lines()
    }
    assert {"#112233", "#ddaa33"} <= own


@pytest.mark.parametrize("plot", STUDIES, ids=lambda plot: plot.__name__)
def test_without_them_nothing_changes(plot):
    entries = [text.get_text() for text in plot(STUDIES[plot](N)).get_legend().get_texts()]
    assert "intact network" in entries
