"""The figures of contributions, participation and gradients at parameters show what their Datasets hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic

import resnet_paths_plugin as rpp
from resnet_paths_plugin import plotting
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.plotting.contributions import Contributions
from resnet_paths_plugin.plotting.lengths import PathLengths
from resnet_paths_plugin.plotting.parameter_lengths import ParameterLengths
from resnet_paths_plugin.plotting.participation import Participation
from resnet_paths_plugin.results import datasets
from resnet_paths_plugin.results.block_coords import block_coords, part_coords
from resnet_paths_plugin.statistics import summary

N, SAMPLES = 6, 5


def built(variables, title, parts=(), **attrs):
    blocks = synthetic.blocks(N)
    coords = part_coords(blocks, [*(block.name for block in blocks), *parts]) if parts else block_coords(blocks)
    return datasets.build(variables, coords=coords, attrs=synthetic.attrs(title, **attrs))


def contributions(samples=SAMPLES):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(N, N, samples)) + np.arange(N)[:, None, None]
    return built(
        {
            "contribution": (("block", "path_length", "sample"), parts),
            "direct": (("block", "sample"), parts[:, 0]),
            "indirect": (("block", "sample"), parts[:, 1:].sum(1)),
            "stem": ("sample", np.full(samples, 0.5)),
            "remainder": ("sample", np.full(samples, 0.25)),
        },
        "Contributions of toy",
        argument_objective="score",
    )


def participation():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(N, N + 1, SAMPLES))
    values[:, 0] = 0
    length = np.maximum(np.arange(N + 1), 1)[:, None]
    return built(
        {
            "participation": (("block", "path_length", "sample"), values),
            "directional_derivative": (("path_length", "sample"), values.sum(0) / length),
            "completeness_error": (("path_length", "sample"), np.full((N + 1, SAMPLES), 2e-7)),
        },
        "Participation of toy",
    )


def parameters():
    norms = np.zeros((N + 2, N + 1))
    for at in range(N):
        norms[at, 1 : N - at + 1] = np.arange(N - at, 0, -1)
    norms[N, :3], norms[N + 1, 0] = 1, 2
    shares = norms / norms.sum(1, keepdims=True)
    return built(
        {
            "parameter_gradient_norm": (("block", "path_length"), norms),
            "parameter_gradient_share": (("block", "path_length"), shares),
            "mean_path_length": ("block", shares @ np.arange(N + 1)),
            "completeness_error": ("block", np.full(N + 2, 3e-7)),
            "n_samples": ((), 8),
        },
        "Parameters of toy",
        parts=("stem", "head"),
    )


MADE = {"contributions": contributions, "participation": participation, "parameter_lengths": parameters}


@pytest.mark.parametrize("name", MADE)
def test_a_saved_study_is_drawn_by_its_own_figure(name, tmp_path):
    ds = MADE[name]()
    loaded = rpp.load(rpp.save(ds, tmp_path / "study.nc"))
    assert loaded.identical(ds)
    assert loaded.resnet_paths.kind == name
    axes = np.asarray(loaded.resnet_paths.plot(), dtype=object).ravel()
    assert "samples)" in axes[-1].get_xlabel()


def test_bars_are_means_and_whiskers_bootstrap_intervals():
    ds = contributions()
    ax = plotting.plot_contributions(ds)
    heights = [
        [bar.get_height() for bar in bars]
        for bars in ax.containers
        if len(bars) == N and hasattr(bars[0], "get_height")
    ]
    np.testing.assert_allclose(heights, [ds.direct.mean("sample"), ds.indirect.mean("sample")])
    found = summary(ds[["direct", "indirect"]], level=0.95, n_resamples=1000)
    segments = [np.array(c.lines[2][0].get_segments()) for c in ax.containers if hasattr(c, "lines")]
    for name, one in zip(("direct", "indirect"), segments, strict=True):
        np.testing.assert_allclose(one[:, :, 1], np.stack([found[f"{name}_low"], found[f"{name}_high"]], axis=1))


def test_one_sample_has_no_intervals():
    ax = plotting.plot_contributions(contributions(samples=1))
    assert not [c for c in ax.containers if hasattr(c, "lines")]
    assert "interval" not in Contributions().sentence(contributions(samples=1))


def test_the_sentence_about_contributions_says_what_the_numbers_say():
    ds = contributions()
    told = Contributions().sentence(ds)
    direct = ds.direct.mean("sample")
    largest = str(ds.block.values[int(np.abs(direct.values).argmax())])
    assert told.startswith(f"The largest direct contributions to the objective (score) are those of {largest} (")
    total = float(direct.sum()) + 0.75
    assert f"Of {total:.3g} the blocks give {float(direct.sum()):.3g} directly and the stem 0.5; 0.25 remain" in told


def test_the_map_of_participation_holds_means_and_the_bars_their_sum_over_lengths():
    ds = participation()
    upper, lower = plotting.plot_participation(ds)
    image = upper.images[0].get_array()
    np.testing.assert_allclose(image.T, ds.participation.mean("sample")[:, : image.shape[0]])
    sums = (ds.participation[:, 1:] / ds.path_length[1:]).sum("path_length").mean("sample")
    np.testing.assert_allclose([bar.get_height() for bar in lower.containers[0]], sums)
    np.testing.assert_allclose(sums.sum(), ds.directional_derivative.sum("path_length").mean("sample"))
    assert "within 2e-07 of their size" in Participation().sentence(ds)


def test_the_map_of_parameters_holds_shares_of_norms_under_the_mean_length():
    ds = parameters()
    ax = plotting.plot_parameter_lengths(ds)
    image = ax.images[0].get_array()
    norms = ds.parameter_gradient_norm.values
    np.testing.assert_allclose(image.T, (norms / norms.sum(1, keepdims=True))[:, : image.shape[0]])
    (mean,) = [line for line in ax.get_lines() if line.get_label().startswith("mean length")]
    np.testing.assert_allclose(mean.get_ydata(), ds.mean_path_length[:N])
    (parts,) = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    np.testing.assert_allclose(parts.get_ydata(), ds.mean_path_length[N:])
    assert [text.get_text() for text in ax.texts] == ["stem", "head"]
    assert [tick.get_text() for tick in ax.get_xticklabels()][-2:] == ["stem", "head"]
    told = ParameterLengths().sentence(ds)
    first, last = (f"{float(ds.mean_path_length[at]):.3g}" for at in (0, N - 1))
    assert f"paths of length {first} on average" in told
    assert f"along {last};" in told
    assert f"network of {N} blocks" in told


def test_the_sentence_about_lengths_names_both_ranges():
    """Of the norms, which sum to more than the gradient's, and of the shares of it."""
    ds = synthetic.path_lengths(N)
    length = np.arange(N + 1)
    share = np.where((length > 0) & (length < 4), 1 / 3, 0.0)
    variables = {name: (ds[name].dims, ds[name].values) for name in ds.data_vars}
    variables["gradient_share"] = (("path_length", "sample"), np.repeat(share[:, None], ds.sizes["sample"], axis=1))
    for end, value in (("low", 1), ("high", 3)):
        variables[f"effective_length_{end}"] = ("measure", [*ds[f"effective_length_{end}"].values, value])
    coords = {"measure": ("measure", [*ds.measure.values, "gradient_share"]), **block_coords(synthetic.blocks(N))}
    made = datasets.build(variables, coords=coords, attrs=synthetic.attrs("Lengths", argument_grade="blocks"))
    told = PathLengths().sentence(made)
    assert "95 % of the gradient (exact, summed over lengths)" in told
    assert "as shares of the gradient itself, which sum to 1 (m_k), 95 % are in lengths 1 to 3" in told


def test_own_axes_are_taken_and_counted():
    given = plt.figure().subplots(2)
    assert plotting.plot_participation(participation(), given).tolist() == given.tolist()
    with pytest.raises(InputError, match="1 Axes were given"):
        plotting.plot_participation(participation(), [plt.figure().subplots()])
    ax = plt.figure().subplots()
    assert plotting.plot_parameter_lengths(parameters(), ax=ax) is ax
    assert plotting.plot_contributions(contributions(), ax=ax) is ax


def test_what_a_figure_needs_is_named():
    with pytest.raises(InputError, match="participation"):
        plotting.plot_participation(contributions())
    with pytest.raises(InputError, match="direct"):
        plotting.plot_contributions(participation())
    with pytest.raises(InputError, match="parameter_gradient_norm"):
        plotting.plot_parameter_lengths(participation())
