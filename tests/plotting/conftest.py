"""What all tests of figures share: they draw without a screen, and leave nothing behind."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

mpl.use("agg")


@pytest.fixture(autouse=True)
def figures_draw_and_settings_stay():
    """No setting of matplotlib is changed, and the figure can be drawn without a warning."""
    before = dict(mpl.rcParams)
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")
    assert dict(mpl.rcParams) == before
