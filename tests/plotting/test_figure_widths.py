"""Figures in the width of a paper's column: their size, their text, and that all of it lies inside."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic

from resnet_paths_plugin import plotting, report
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting import style

N = 9


@pytest.mark.parametrize(("width", "inches", "points"), [("one-column", 3.5, 7), ("two-column", 7.2, 8)])
def test_a_figure_has_the_width_of_the_column_and_its_text_the_size(width, inches, points):
    with plotting.figure_width(width):
        ax = plotting.plot_random_lesions(synthetic.random_lesions(N))
    assert ax.figure.get_figwidth() == inches
    assert ax.xaxis.label.get_size() == points
    assert ax.get_legend().get_texts()[0].get_size() == pytest.approx(0.9 * points)
    plain = plotting.plot_random_lesions(synthetic.random_lesions(N))
    assert plain.xaxis.label.get_size() == 10


def test_the_users_settings_and_the_screens_width_come_back_after_an_error_too():
    before = dict(plt.rcParams)
    with pytest.raises(ZeroDivisionError), plotting.figure_width("one-column"):
        raise ZeroDivisionError
    assert dict(plt.rcParams) == before
    assert plotting.plot_random_lesions(synthetic.random_lesions(N)).figure.get_figwidth() == 7.2


def test_panels_stand_one_below_the_other_where_a_column_has_no_room():
    with plotting.figure_width("one-column"):
        panels = plotting.plot_path_lengths(synthetic.path_lengths(N))
    tops = [ax.get_position().y1 for ax in panels]
    assert tops == sorted(tops, reverse=True)
    assert len({round(ax.get_position().x0, 1) for ax in panels}) == 1
    with plotting.figure_width("two-column"):
        panels = plotting.plot_path_lengths(synthetic.path_lengths(N))
    assert len({round(ax.get_position().y1, 1) for ax in panels}) == 1


def test_another_width_is_refused():
    message = "width must be 'one-column' or 'two-column', not 'three-column'"
    with pytest.raises(InputError, match=message), plotting.figure_width("three-column"):
        pass


def inside(figure):
    """Whether labels and legends of a figure lie inside it."""
    figure.canvas.draw()
    box = figure.bbox
    for ax in figure.axes:
        texts = [ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
        legend = ax.get_legend()
        for one in [text for text in texts if text.get_text()] + ([legend] if legend else []):
            own = one.get_window_extent()
            if own.x0 < box.x0 - 1 or own.x1 > box.x1 + 1 or own.y0 < box.y0 - 1 or own.y1 > box.y1 + 1:
                return False
    return True


@pytest.mark.parametrize("name", ["random-lesions", "reorderings", "influence", "path-lengths", "single-lesions"])
@pytest.mark.parametrize("width", ["one-column", "two-column"])
def test_labels_and_legends_lie_inside(name, width):
    studies = {
        "random-lesions": synthetic.random_lesions, "reorderings": synthetic.reorderings,
        "influence": lambda n: synthetic.influence(n, samples=50), "path-lengths": synthetic.path_lengths,
        "single-lesions": synthetic.single_lesions,
    }  # fmt: skip
    (figure,) = [one for one in report.figures(studies[name](N)) if one.name == name]
    with plotting.figure_width(width):
        drawn = figure.draw()
    assert inside(drawn)
    plt.close(drawn)


def test_a_report_figure_is_written_in_that_width():
    (figure,) = report.figures(synthetic.random_lesions(N))
    png = figure.picture("png", 100, "one-column")
    assert int.from_bytes(png[16:20]) == 350
    assert figure.picture("png", 100) == figure.png(100)


def test_a_long_label_is_broken_into_lines_of_the_axes():
    with plotting.figure_width("one-column"):
        ax = style.own_axes(7.2, 3.6)
        style.below(ax, "word " * 30)
    assert all(len(line) < 70 for line in ax.get_xlabel().splitlines())
    assert np.ptp([len(line) for line in ax.get_xlabel().splitlines()[:-1]]) < 6
