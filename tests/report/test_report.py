"""The report shows every study of a result, tells its numbers, and lets no name become markup."""

import base64
import html
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic_studies as synthetic
import xarray as xr

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report, statistics
from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.plotting.figure import Figure
from resnet_paths_plugin.plotting.wording import percent
from resnet_paths_plugin.results import datasets

mpl.use("agg")

N = 9
EVIL = "<script>alert('x')</script>\"'&"


@pytest.fixture(autouse=True)
def settings_stay_and_figures_are_closed():
    before = dict(mpl.rcParams)
    yield
    assert not plt.get_fignums()
    assert dict(mpl.rcParams) == before


class Page(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text."""

    EMPTY = frozenset({"meta", "img"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open  # every element is closed

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def said(result):
    return {figure.name: figure.sentence for figure in report.figures(result)}


@pytest.fixture(scope="module")
def tree():
    return synthetic.tree(
        N,
        schedules=synthetic.schedules(N),
        trainings=synthetic.trainings(N),
        custom=xr.Dataset(
            {"heat": ("x", [1.5, 2.5], {"long_name": "heat of blocks", "units": "K"})}, attrs={"schema_version": 1}
        ),
    )


@pytest.fixture(scope="module")
def page(tree):
    return Page(report.report_html(tree))


class TestFigures:
    def test_every_study_has_its_figures_under_names_that_differ(self, tree):
        names = [figure.name for figure in report.figures(tree)]
        assert names == [
            "single-lesions",
            "single-lesions-by-class",
            "random-lesions",
            "reorderings",
            "influence",
            "influence-proxies",
            "path-lengths",
            "path-lengths-survival",
            "path-maps",
            "schedules-adjacent-swaps",
            "schedules-repeated-blocks",
            "schedules-reversed-ranges",
            "schedules-parallel-ranges",
            "schedules-scaled-branches",
            "schedules-skipped-ranges",
            "trainings",
        ]

    def test_a_single_dataset_has_figures_too(self):
        assert [figure.name for figure in report.figures(synthetic.path_lengths(N))] == [
            "path-lengths",
            "path-lengths-survival",
        ]

    def test_names_differ_even_if_groups_are_named_alike(self):
        studies = {name: synthetic.random_lesions(N) for name in ("a_b", "a.b", "日本")}
        names = [figure.name for figure in report.figures(xr.DataTree.from_dict(studies))]
        assert names == ["a-b", "a-b-2", "random-lesions"]

    def test_the_plain_network_is_drawn_beside_the_residual_one(self):
        figure = report.figures(synthetic.tree(N))[0].draw()
        told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        plt.close(figure)
        assert any(entry.startswith("plain net, one of 11 layers") for entry in told)

    def test_a_plain_network_alone_is_drawn_itself(self):
        (name,) = [
            name for name in said(xr.DataTree.from_dict({"plain_x": synthetic.plain_lesions()})) if "class" not in name
        ]
        assert name == "plain-x"

    def test_chance_is_drawn_where_the_file_tells_the_number_of_classes(self):
        ds = synthetic.random_lesions(N)
        for attrs, expected in (({}, False), ({"n_classes": np.int64(10)}, True)):
            (one,) = report.figures(ds.assign_attrs(attrs))
            figure = one.draw()
            told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
            plt.close(figure)
            assert ("chance" in told) is expected
            assert ("guessing would give 90.0 %" in one.sentence) is expected

    @pytest.mark.parametrize(
        ("names", "shown"),
        [('["zero", "one"]', "class 1"), (json.dumps([f"class {i}" for i in range(10)]), "class class 1")],
    )
    def test_classes_are_named_where_the_file_names_all_of_them(self, names, shown):
        ds = synthetic.single_lesions(N).assign_attrs(class_names=names)
        ds["correct"][4, ds["label"].values == 1] = False
        ds["intact_correct"][ds["label"].values == 1] = True
        assert f"of {shown} (20 samples) without layer2.4" in said(ds)["single-lesions-by-class"]

    def test_a_picture_is_a_png_in_the_default_style_whatever_the_users_is(self):
        (one,) = report.figures(synthetic.random_lesions(N))
        png = one.png()
        assert png.startswith(b"\x89PNG")
        with mpl.rc_context({"axes.facecolor": "red", "font.size": 30}):
            assert one.png() == png

    def test_what_is_no_result_is_refused(self):
        for read in (report.figures, report.report_html):
            with pytest.raises(InputError, match="expected a Dataset or a DataTree, not dict"):
                read({})


class TestSentences:
    def test_single_lesions(self):
        made = synthetic.blocks(4, 2)
        ds = synthetic.lesion_study([[0], [1], [2], [3]], made, [0.04, 0.05, 0.5, 0.2], samples=100)
        assert said(ds)["single-lesions"] == (
            "The error is 4.0 % (4 of 100 samples) in the intact network and 12.5 % in the median of 4 deletions of "
            "one block; it is highest without layer2.2 (50.0 % [40.4 to 59.6 %], projection skip), layer2.3 (20.0 % "
            "[13.3 to 28.9 %]) and layer1.1 (5.0 % [2.2 to 11.2 %]); by their 95 % intervals over 100 samples, 0 of 4 "
            "deletions change it by less than one percentage point, 2 by more, and 2 are not resolved."
        )

    def test_deletions_are_told_as_equal_only_where_their_intervals_show_it(self):
        made = synthetic.blocks(4, 2)
        ds = synthetic.lesion_study([[0], [1], [2], [3]], made, [0.04, 0.05, 0.5, 0.2], samples=10_000)
        assert (
            "by their 95 % intervals over 10000 samples, 1 of 4 deletions change it by less than one percentage point, "
            "2 by more, and 1 is not resolved"
        ) in said(ds)["single-lesions"]

    def test_the_plain_network_is_told_of(self):
        told = said(synthetic.tree(N))["single-lesions"]
        assert (
            "In the plain network it is 4.0 % (8 of 200 samples) in the intact network and 80.5 % in the median" in told
        )

    def test_one_block_equal_errors_and_ties(self):
        made = synthetic.blocks(1)
        assert said(synthetic.lesion_study([[0]], made, [0.3]))["single-lesions"] == (
            "The error is 4.0 % (8 of 200 samples) in the intact network and 30.0 % without layer1.0, the only "
            "block deleted; by its 95 % interval over 200 samples that is more than one percentage point away."
        )
        made = synthetic.blocks(5, 1)
        equal = said(synthetic.lesion_study([[i] for i in range(5)], made, [0.3] * 5))["single-lesions"]
        assert "30.0 % whichever one of 5 blocks is deleted; by their 95 % intervals over 200 samples, 0 of" in equal
        ties = said(synthetic.lesion_study([[i] for i in range(5)], made, [0.3] * 4 + [0.1]))["single-lesions"]
        assert "it is highest, 30.0 %, in 4 of them" in ties

    def test_without_targets_changed_predictions_are_told(self):
        told = said(synthetic.single_lesions(N, targets=False))
        assert set(told) == {"single-lesions"}
        assert told["single-lesions"].startswith("The share of changed predictions is ")
        assert "error" not in told["single-lesions"]
        assert "intact" not in told["single-lesions"]

    def test_a_users_measure_is_told_with_its_unit(self):
        ds = synthetic.single_lesions(N)[["deleted", "n_deleted", "n_deleted_units"]]
        ds["metres"] = (("lesion", "sample"), np.arange(2.0 * N).reshape(N, 2))
        ds["metres"].attrs = {"long_name": "error of depth", "units": "m"}
        ds["intact_metres"] = ("sample", [8.0, 8.0])
        assert said(ds)["single-lesions"].startswith(
            "The error of depth (in m) is 8 in the intact network and 8.5 in the median of 9 deletions of one block; "
            "it is farthest from the intact network's without layer3.8 (16.5 ["
        )

    def test_random_lesions(self):
        made = synthetic.blocks(5, 1)
        sets, damage = [[0], [1], [0, 1, 2], [1, 2, 3]], [0.1, 0.2, 0.4, 0.6]
        ds = synthetic.lesion_study(sets, made, damage, samples=100, argument_n_deleted="[1, 3]")
        (figure,) = [one for one in report.figures(ds) if one.name == "random-lesions"]
        assert figure.title == "Deleting random sets of blocks, by their size (Fig. 5a of the paper)"
        assert figure.sentence == (
            "The error is 4.0 % (4 of 100 samples) in the intact network and on average 15.0 % with 1 random block "
            "deleted and 50.0 % with 3."
        )
        drawn = synthetic.lesion_study(sets, made, damage, samples=100, draw=[0, 1, 0, 1])
        assert "15.0 % [0.0 to 100.0 %] with 1 block deleted" in said(drawn)["random-lesions"]
        assert "%] with 3 (95 % intervals over 100 samples, 2 draws of each size)." in said(drawn)["random-lesions"]
        (chosen,) = report.figures(ds.assign_attrs(argument_n_deleted="null"))
        assert "random" not in chosen.title + chosen.sentence

    def test_reorderings(self):
        ds = synthetic.reorderings(N)
        tau, error = ds["kendall_tau"].values, ds["error"].values
        near, far = np.quantile(tau, [0.75, 0.25])
        told = said(ds)["reorderings"]
        assert f"{100 * error[tau >= near].mean():.1f} % on average over the orders nearest to the intact one" in told
        assert f"{100 * error[tau <= far].mean():.1f} % over those farthest from it" in told
        assert "rank correlation of tau and error over 70 orders is \N{MINUS SIGN}0.9" in told
        ds = ds.drop_vars("correct")  # so that the errors given are those shown
        weak = ds.assign(error=("reordering", np.random.default_rng(0).random(70)))
        assert "is only" in said(weak)["reorderings"]
        equal = said(ds.assign(error=("reordering", np.full(70, 0.2))))["reorderings"]
        assert equal.endswith("20.0 % over 70 orders of the blocks.")

    def test_influence_counts_the_blocks_that_each_proxy_is_compared_on(self):
        ds = synthetic.influence(N).drop_vars("lesion_effect_by_sample")
        ds["source_sum_cosine"][[3, 6]] = np.nan
        ds = synthetic.correlated(ds, [0.1, -0.89, 0.5, np.nan, 0.2])
        told = said(ds)
        assert told["influence"] == (
            "Spearman's rank correlation over 9 blocks with the rise of error when each is deleted: source sum cosine "
            "\N{MINUS SIGN}0.89 over 7 blocks, block influence +0.50, lesion estimate +0.20 and branch to source norm "
            "+0.10; ranges are not known, as the study does not hold the effect on each of its samples."
        )
        assert told["influence-proxies"].endswith("branch to source norm +0.10 and angular distance none.")
        assert "influence" not in said(synthetic.correlated(ds, [np.nan] * 5))

    def test_a_proxy_is_called_the_best_only_where_its_range_lies_apart(self):
        ds = synthetic.influence(N, samples=400)
        told = said(ds)["influence"]
        assert "when the 400 samples are resampled, which leans towards 0)" in told
        assert "which is the farthest from 0 is not resolved" in told  # two proxies rank nearly alike
        apart = ds.sel(proxy=["lesion_estimate", "angular_distance"])
        assert (
            "; lesion estimate is the farthest from 0. On halves of the samples the effect agrees"
            in (said(apart)["influence"])
        )
        assert "farthest" not in said(ds.sel(proxy=["lesion_estimate"]))["influence"]

    def test_gates(self):
        ds = synthetic.influence(3, lesions=False, gated=True)
        ds["gate_openness"][:] = np.array([0.2, 0.5, 0.8])[:, None]
        assert said(ds)["gates-gates"] == (
            "The 3 gates are open to 0.50 on average over blocks and samples, least at layer1.0 (0.20) and most at "
            "layer3.2 (0.80)."
        )

    def test_path_lengths_tell_their_share_of_all_paths(self):
        told = said(synthetic.path_lengths(N))
        assert told["path-lengths"].startswith(
            "There are 512 paths of lengths 0 to 9 blocks; 95 % of the gradient (exact, summed over lengths) is in "
            "lengths 0 to 4, which 50 % of all paths have (95 % intervals of the ends over 4 samples: 0 and 4); "
        )
        draws = synthetic.path_lengths(N).path_gradient_norm_draws * synthetic.path_lengths(N).path_count
        heaviest = draws / draws.sum()
        place = heaviest.argmax(...)["path_length"]
        assert (
            "of the total of the paths that were drawn, 20 of each length, a single draw, of length "
            f"{int(place)}, holds {100 * float(heaviest.max()):.2g} %. All lengths add up"
        ) in told["path-lengths"]
        assert told["path-lengths"].endswith("add up to the ordinary gradient within 3e-07 of its norm.")
        assert told["path-lengths-survival"] == (
            "Deleting 3 of 9 blocks leaves 67 % of the paths of length 1 and 42 % of the paths of length 2."
        )

    def test_no_share_is_told_of_lengths_that_are_cut_and_no_survival_of_what_is_no_chain(self):
        told = said(synthetic.path_lengths(N, max_length=5))["path-lengths"]
        assert "paths of up to 5 blocks" in told
        assert "of all paths" not in told
        assert set(said(synthetic.path_lengths(N, chain=False))) == {"path-lengths"}

    def test_trainings(self):
        ds = synthetic.trainings(4, seeds=0)
        ds["error"][:] = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.1, 0.1]]
        assert said(ds)["trainings"] == (
            "The error with one block deleted is, on average over blocks, 25.0 % after training 'ordinary' (intact "
            "4.0 %) and 12.5 % after training 'stochastic depth' (intact 4.0 %); it is lower after 'stochastic "
            "depth' for 3 of 4 blocks."
        )

    def test_schedules(self):
        told = said(synthetic.schedules(N))
        assert "90.0 % at weight 0 and 45.0 % at weight 1.5" in told["schedules-scaled-branches"]
        assert "it is highest in swap" in told["schedules-adjacent-swaps"]
        ds = synthetic.schedules(N, families={"skipped_ranges"}).drop_vars("correct")
        ds["error"][:] = 0.9
        assert (
            "of no range it is shown that it raises it by less than one percentage point as measured"
            in said(ds)["schedules-skipped-ranges"]
        )
        ds["error"][ds["schedule"].values == "skip 2..5"] = 0.045
        ds["error"][ds["schedule"].values == "skip 1..1"] = 0.04
        assert (
            "less than one percentage point as measured has 4 blocks (skip 2..5)"
            in said(ds)["schedules-skipped-ranges"]
        )

    @pytest.mark.parametrize(
        ("fraction", "told"), [(0, "0.0 %"), (0.5, "50.0 %"), (0.0001, "0.01 %"), (0.00123, "0.1 %"), (1, "100.0 %")]
    )
    def test_small_fractions_are_not_told_as_none(self, fraction, told):
        assert percent(fraction) == told


class TestPage:
    def test_every_figure_is_inside_with_what_to_see_and_an_alternative_text(self, tree, page):
        figures = report.figures(tree)
        images = page.all("img")
        assert len(images) == len(figures) > 10
        shown = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
        for figure, image in zip(figures, images, strict=True):
            png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
            assert png.startswith(b"\x89PNG")
            assert image["alt"] == f"{figure.title}. {figure.sentence}"
            assert figure.title in shown
            assert figure.sentence in shown
            # Twice the dots that it takes on the page.
            assert int.from_bytes(png[16:20]) == pytest.approx(2 * int(image["width"]), abs=1)

    def test_the_page_needs_nothing_beside_it(self, page):
        for tag, attrs in page.elements:
            assert tag not in {"script", "link", "iframe", "object", "embed"}
            assert attrs.get("src", "data:").startswith("data:")
            assert attrs.get("href", "#").startswith("#") or tag == "a"
            assert not any(name.startswith("on") for name in attrs)
        assert [attrs["href"] for attrs in page.all("a") if "://" in attrs["href"]] == [
            "https://arxiv.org/abs/1605.06431"
        ]
        (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
        assert policy.startswith("default-src 'none'")

    def test_links_within_the_page_lead_somewhere(self, page):
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(set(ids)) == len(ids)
        assert {attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")} <= set(ids)

    def test_model_blocks_and_provenance_are_told(self, tree, page):
        assert "Residual paths of dict" in page.text
        assert "9 residual blocks; skips: 7 identity, 2 projection" in page.text
        ds = tree["single_lesions"]
        for name, error in zip(ds["block"].values, ds["error"].values, strict=True):
            assert name in page.text
            assert f"{100 * error:.1f} %" in page.text
        assert "error without it" in page.text
        assert "Layers of the plain network" in page.text
        assert "single lesions, plain network" in page.text  # its own attributes
        assert re.search(r"index\s*layer\s*stage", page.text)
        for name, value in ds.attrs.items():
            assert name.replace("_", " ") in page.text
            assert str(value) in page.text

    def test_blocks_with_a_projection_are_tinted_and_all_tables_folded_alike(self, page):
        assert len([attrs for attrs in page.all("tr") if attrs.get("class") == "projection"]) == 2
        assert len(page.all("details")) > 5
        assert all(attrs == {"class": "fold"} for attrs in page.all("details") if attrs)
        assert "Blocks: 9 rows; those with a projection skip are tinted" in page.text
        assert not any("open" in attrs for attrs in page.all("details"))

    def test_findings_come_first_then_figures_then_tables(self, page):
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert ids.index("found") < ids.index("study-1") < ids.index("tables")
        firsts = [attrs for tag, attrs in page.elements if tag in {"img", "table"}]
        assert "src" in firsts[0]
        assert "src" not in firsts[-1]

    def test_a_report_of_the_embedded_network_says_that_its_recipe_was_chosen(self, page):
        assert "recipe" not in page.text
        ds = synthetic.single_lesions(N).assign_attrs(model_library="resnet_paths_plugin")
        assert "Its training recipe and seed were chosen for a deletion curve" in Page(report.report_html(ds)).text


class TestFindings:
    def found(self, **studies):
        """The sentences at the head of a page, and where each leads."""
        text = report.report_html(xr.DataTree.from_dict(studies)).replace("\N{NO-BREAK SPACE}", " ")
        listed = re.findall(r"<li>(.*?) <a href=\"#study-(\d+)\">Figure</a></li>", text)
        return {int(place): html.unescape(sentence) for sentence, place in listed}

    def test_each_study_has_one_with_intervals_in_the_order_of_the_file_and_five_at_most(self):
        found = self.found(
            single_lesions=synthetic.single_lesions(N), random_lesions=synthetic.random_lesions(N),
            reorderings=synthetic.reorderings(N), influence=synthetic.influence(N, samples=50),
            path_lengths=synthetic.path_lengths(N), again=synthetic.single_lesions(N),
        )  # fmt: skip
        assert list(found) == [1, 2, 3, 4, 5]
        beginnings = ("Deleting one block", "The error is", "Over", "Which of 5 proxies", "95 % of the gradient")
        for sentence, beginning in zip(found.values(), beginnings, strict=True):
            assert sentence.startswith(beginning)
            assert re.search(r"[\[(].*( to | and ).*[\])]", sentence)
            assert "samples" in sentence

    def test_the_mean_effect_is_that_of_the_samples_with_its_bootstrap_interval(self):
        ds = synthetic.single_lesions(N)
        told = self.found(lesions=ds)[1]
        effect = ds.intact_correct.astype(float) - ds.correct.astype(float).mean("lesion")
        ends = statistics.bootstrap(xr.Dataset({"effect": effect}), "effect", n_resamples=1000)
        value, low, high = (
            f"{100 * float(ends[name]):+.2g}".replace("-", "\N{MINUS SIGN}")
            for name in ("effect", "effect_low", "effect_high")
        )
        assert f"changes the error by {value} percentage points [{low} to {high}] on average over blocks" in told
        assert "are not resolved" in told or "is not resolved" in told

    def test_a_loss_has_no_percentage_points(self):
        ds = synthetic.single_lesions(N)
        rng = np.random.default_rng(0)
        loss = rng.normal(1, 0.1, (N, ds.sizes["sample"]))
        own = ds[["deleted"]].assign(
            loss=(("lesion", "sample"), loss), intact_loss=("sample", loss.mean(0) - 0.5 + 0.01 * loss[0])
        )
        (told,) = self.found(lesions=own).values()
        assert "points" not in told
        assert "changes the loss by +0." in told

    def test_nothing_is_found_that_no_interval_carries(self):
        without = synthetic.single_lesions(N).drop_vars(["correct", "intact_correct"])
        assert self.found(lesions=without, influence=synthetic.influence(N).drop_vars("lesion_effect_by_sample")) == {}
        same = synthetic.single_lesions(N)
        same["correct"][:] = True
        same["intact_correct"][:] = True
        assert self.found(lesions=same) == {}
        assert "What was found" not in report.report_html(without)

    def test_a_plugins_figure_may_find_something_and_may_fail_to(self):
        class Heat(Figure):
            name, title, raises = "heat", "Heat", False

            def fits(self, ds):
                return "heat" in ds

            def draw(self, ds, **options):
                return ds["heat"].plot(**options)

            def finding(self, ds):
                if self.raises:
                    raise ZeroDivisionError
                return "It is hot [30 to 31]."

        ds = xr.Dataset({"heat": ("x", [1.5, 2.5], {"long_name": "heat"})})
        figure = Heat()
        manager = rpp.create_plugin_manager(entry_points=False)
        manager.register(Offering(figure))
        assert "It is hot [30 to 31]." in report.report_html(ds, manager)
        figure.raises = True
        with pytest.warns(rpp.PluginWarning, match="figure 'heat' of plugin .* failed to tell what a study found"):
            assert "hot" not in report.report_html(ds, manager)


class Offering:
    """A plugin with one figure."""

    def __init__(self, figure):
        self.figure = figure

    @rpp.hookimpl
    def resnet_paths_figures(self):
        return [self.figure]


class TestRestOfThePage:
    def test_a_study_that_no_figure_fits_is_listed(self, page):
        assert "No figure of this package fits this study" in page.text
        for cell in ("heat", "x: 2", "heat of blocks", "K", "1.5 to 2.5"):
            assert cell in page.text

    def test_a_study_without_targets(self):
        text = Page(report.report_html(synthetic.single_lesions(N, targets=False))).text
        assert "changed predictions without it" in text
        assert "The share of changed predictions is" in text

    def test_studies_by_group_tell_what_the_group_does(self):
        made = [
            replace(block, group=f"stage{block.index // 3}", module=f"stage{block.index // 3}")
            for block in synthetic.blocks(N)
        ]
        ds = synthetic.lesion_study([[0, 1, 2], [3, 4, 5], [6, 7, 8]], made, [0.3, 0.6, 0.1])
        text = Page(report.report_html(ds.assign(n_deleted_units=("lesion", [1, 1, 1])))).text
        assert "error without its group" in text
        assert "the median of 3 deletions of one group" in text

    def test_measures_that_are_nan_throughout_leave_a_table(self):
        ds = synthetic.single_lesions(N)[["deleted", "n_deleted", "n_deleted_units"]]
        ds["metres"] = (("lesion", "sample"), np.full((N, 2), np.nan))
        text = Page(report.report_html(ds)).text
        assert "No figure of this package fits this study" in text

    def test_an_empty_tree_is_a_page_too(self):
        assert "Residual paths" in Page(report.report_html(xr.DataTree())).text


@pytest.fixture(scope="module")
def hostile():
    made = synthetic.blocks(N, name=EVIL + "{index}")
    ds = synthetic.single_lesions(N, made=made)
    ds.attrs |= {
        "model_architecture": EVIL, "note": EVIL, "title": EVIL, "class_names": str([EVIL] * 10), EVIL: "x",
    }  # fmt: skip
    group = EVIL.replace("/", "")  # neither groups nor variables can have a slash
    custom = xr.Dataset({group: ("x", [EVIL, EVIL])}, attrs={EVIL: EVIL})
    custom[group].attrs = {"long_name": EVIL, "units": EVIL}
    trainings = synthetic.trainings(N).assign_coords(training=[EVIL, "_$x^{"])
    schedules = synthetic.schedules(N, families={"adjacent_swaps"})
    schedules["family"] = ("schedule", [EVIL] * schedules.sizes["schedule"])
    schedules = schedules.assign_coords(schedule=[f"{EVIL}{i}" for i in range(schedules.sizes["schedule"])])
    return xr.DataTree.from_dict({"single_lesions": ds, group: custom, "trainings": trainings, "schedules": schedules})


class TestHostileNames:
    def test_no_name_becomes_markup(self, hostile):
        text = report.report_html(hostile)
        page = Page(text)
        assert "<script" not in text
        assert not page.all("script")
        assert EVIL in page.text
        # Nothing was escaped twice either.
        assert html.escape(EVIL) not in page.text
        assert len(page.all("img")) == 4
        for _, attrs in page.elements:
            assert not any("alert" in name or name.startswith("on") for name in attrs)

    def test_formulas_in_names_are_drawn_as_text(self):
        made = synthetic.blocks(4, name=r"$\frac{{$ block {index}")
        text = report.report_html(synthetic.single_lesions(4, made=made))
        assert "could not be drawn" not in text

    def test_a_script_that_the_font_lacks_is_no_warning(self):
        made = synthetic.blocks(4, name="層{index}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "層3" in report.report_html(synthetic.single_lesions(4, made=made))


class TestFile:
    def test_the_report_of_the_loaded_file_is_the_same(self, tmp_path):
        tree = synthetic.tree(N)
        first = report.write_report(tree, tmp_path / "first.html")
        loaded = datasets.load(datasets.save(tree, tmp_path / "result.nc"))
        second = report.write_report(loaded, tmp_path / "second.html")
        assert first.read_bytes() == second.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first.html", "result.nc", "second.html"]

    def test_it_is_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "report.html"
        path.write_text("older")
        monkeypatch.setattr("pathlib.Path.replace", _full_disk)
        with pytest.raises(FileError, match=r"cannot write .*report.html: No space left"):
            report.write_report(synthetic.random_lesions(N), path)
        assert path.read_text() == "older"
        assert [one.name for one in tmp_path.iterdir()] == ["report.html"]

    def test_folders_that_do_not_exist_or_stand_in_the_way_are_told(self, tmp_path):
        with pytest.raises(FileError, match=r"does not exist\. Create it first"):
            report.write_report(synthetic.random_lesions(N), tmp_path / "none" / "report.html")
        with pytest.raises(FileError, match="is a folder"):
            report.write_report(synthetic.random_lesions(N), tmp_path)

    def test_the_template_is_package_data(self):
        assert resources.files("resnet_paths_plugin.report").joinpath("report.html.jinja").is_file()

    def test_a_figure_that_cannot_be_drawn_says_why_and_the_rest_stays(self, monkeypatch):
        def refuse(*args, **kwargs):
            raise InputError("no <ink>")

        monkeypatch.setattr("resnet_paths_plugin.plotting.lesions.plot_random_lesions", refuse)
        page = Page(report.report_html(synthetic.tree(N)))
        assert re.search(r"could not be drawn: no <ink>", page.text)
        assert len(page.all("img")) == 8


def _full_disk(*args):
    raise OSError(28, "No space left on device")
