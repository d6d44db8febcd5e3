"""Tasks: what is measured of tokens, pixels, values and embeddings, against sums written by hand."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from networks import Residual, mlp
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.results.derived import refreshed

WIDTH, TOKENS, LENGTH = 6, 9, 5


class Tokens(nn.Module):
    """Scores for each position of a text, behind two residual blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList([Residual(mlp(WIDTH)) for _ in range(2)])
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, ids, deleted=()):
        x = self.embed(ids)
        for at, block in enumerate(self.blocks):
            x = x if at in deleted else block(x)
        return self.head(x)


class Pixels(nn.Module):
    """Class scores of each pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 1)
        self.block = Residual(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()))

    def forward(self, images, deleted=()):
        x = self.stem(images)
        return self.head(x if 0 in deleted else self.block(x))


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(1)
    ids = torch.randint(TOKENS, (4, LENGTH))
    labels = ids.clone()
    labels[1, 3:] = -100
    labels[2, :3] = -100
    return ids, labels


@pytest.fixture(scope="module")
def language(text):
    return rpp.unravel(Tokens().eval(), text[0], task="next_token")


def by_hand(scores, labels, shift):
    """Return loss, share of right tokens, their mean score and their number, of one sample."""
    pairs = [(scores[at], int(label)) for at, label in enumerate(labels[shift:]) if label != -100]
    losses = [-functional.log_softmax(row.double(), 0)[label].item() for row, label in pairs]
    right = [float(row.argmax() == label) for row, label in pairs]
    return np.mean(losses), np.mean(right), np.mean([row[label].item() for row, label in pairs]), len(pairs)


@pytest.mark.parametrize(("task", "shift"), [("next_token", 1), ("masked_tokens", 0), ("token_classification", 0)])
def test_measures_of_tokens_are_means_over_those_that_count(task, shift, text):
    ids, labels = text
    model = Tokens().eval()
    found = rpp.BlockLesion(rpp.unravel(model, ids, task=task)).attribute(ids, labels)
    with torch.no_grad():
        outputs = {"intact": model(ids), 0: model(ids, deleted=(0,)), 1: model(ids, deleted=(1,))}
    expected = {
        key: np.array([by_hand(each, label, shift) for each, label in zip(scores, labels, strict=True)])
        for key, scores in outputs.items()
    }
    intact = expected.pop("intact")
    for at, name in enumerate(("loss", "correct", "target_score")):
        np.testing.assert_allclose(found[f"intact_{name}"], intact[:, at], rtol=1e-5)
        for lesion, values in expected.items():
            np.testing.assert_allclose(found[name][lesion], values[:, at], rtol=1e-5)
    assert found.n_tokens.values.tolist() == intact[:, 3].tolist()
    counted = labels[:, shift:] != -100
    for lesion in expected:
        rows = [outputs[key][:, : LENGTH - shift] for key in ("intact", lesion)]
        before, after = (functional.log_softmax(row.double(), -1) for row in rows)
        divergence = (before.exp() * (before - after)).sum(-1)
        mean = (divergence * counted).sum(1) / counted.sum(1)
        np.testing.assert_allclose(found.kl_divergence[lesion], mean, rtol=1e-4, atol=1e-7)
        changed = (rows[0].argmax(-1) != rows[1].argmax(-1)) & counted
        np.testing.assert_allclose(found.prediction_changed[lesion], changed.sum(1) / counted.sum(1))
    assert "prediction" not in found
    assert ("perplexity" in found) == (task != "token_classification")
    np.testing.assert_allclose(found.error, 1 - found.correct.mean("sample"))


def test_perplexity_weighs_samples_by_their_tokens(text, language):
    ids, labels = text
    found = rpp.BlockLesion(language).attribute(ids, labels)
    total = (found.intact_loss.astype(float) * found.n_tokens).sum() / found.n_tokens.sum()
    assert float(found.intact_perplexity) == pytest.approx(math.exp(total))
    assert found.n_tokens.values.tolist() == [4, 2, 2, 4]
    pairs = [(ids[:1], labels[:1]), (ids[1:], labels[1:])]
    xr.testing.assert_allclose(rpp.BlockLesion(language).attribute(pairs).perplexity, found.perplexity)
    own = rpp.BlockLesion(language).attribute(ids[:2], labels[:2])
    chosen = refreshed(found.isel(sample=[0, 1]))
    np.testing.assert_allclose(chosen.perplexity, own.perplexity, rtol=1e-6)
    np.testing.assert_allclose(chosen.intact_perplexity, own.intact_perplexity, rtol=1e-6)


def test_the_gradient_of_tokens_is_that_of_the_mean_loss(text):
    ids, labels = text
    model = Tokens().eval()
    net = rpp.unravel(model, ids, task="next_token")
    found = rpp.PathLengthGradient(net).attribute(ids, labels, objective="cross_entropy", tap="stem", keep_maps=True)
    source = model.embed(ids).detach().requires_grad_()
    x = source
    for block in model.blocks:
        x = block(x)
    scores = model.head(x)
    losses = [functional.cross_entropy(scores[at, :-1], labels[at, 1:], ignore_index=-100) for at in range(len(ids))]
    (expected,) = torch.autograd.grad(sum(losses), source)
    whole = torch.from_numpy(found.gradient.sum("path_length").values)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-7)
    score = rpp.PathLengthGradient(net).attribute(ids, labels, objective="score", tap="stem")
    assert float(score.completeness_error.max()) < 1e-5


def test_a_pair_of_indices_still_picks_one_score(text, language):
    ids, _ = text
    found = rpp.BlockLesion(language).attribute(ids, target=(LENGTH - 1, 3))
    with torch.no_grad():
        expected = Tokens().eval()(ids)[:, -1, 3]
    np.testing.assert_allclose(found.intact_target_score, expected, rtol=1e-6)
    assert "loss" not in found
    assert "kl_divergence" in found


def test_a_view_of_lengths_without_inputs_that_have_a_gradient_says_what_to_do(text, language):
    with pytest.raises(InputError, match=r"all inputs of Tokens hold integers.*restricted\(lengths, parameters=True\)"):
        language.restricted([1])
    view = language.restricted([1], parameters=True)
    assert view(text[0]).requires_grad


def test_without_labels_what_changes_is_measured(text, language):
    found = rpp.BlockLesion(language).attribute(text[0])
    assert {"kl_divergence", "prediction_changed"} <= set(found)
    assert not {"loss", "correct", "perplexity", "n_tokens"} & set(found)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((4, LENGTH), -100), "sample 0 of a batch has no label that counts"),
        (torch.full((4, LENGTH), TOKENS), f"label {TOKENS} is out of range: the model has {TOKENS} classes"),
        (torch.zeros(4, LENGTH + 1, dtype=torch.int64), rf"have shape \(B, {LENGTH}\), not \(4, {LENGTH + 1}\)"),
        (torch.zeros(4, LENGTH), r"are integers of shape \(B, 5\), not torch.float32"),
        (torch.zeros(4, dtype=torch.int64), "must be a tuple of 2 indices"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message, text, language):
    with pytest.raises(InputError, match=message):
        rpp.BlockLesion(language).attribute(text[0], labels)


def test_pixels_are_measured_as_sums_by_hand():
    torch.manual_seed(0)
    model, images = Pixels().eval(), torch.randn(3, 2, 4, 4)
    labels = torch.randint(3, (3, 4, 4))
    labels[0, 0] = 255
    found = rpp.BlockLesion(rpp.unravel(model, images, task="segmentation")).attribute(images, labels)
    with torch.no_grad():
        classes = model(images, deleted=(0,)).argmax(1)
    for at in range(3):
        counted = labels[at] != 255
        given, true = classes[at][counted], labels[at][counted]
        assert float(found.correct[0, at]) == pytest.approx(float((given == true).double().mean()))
        shares = [
            float(((given == one) & (true == one)).sum() / ((given == one) | (true == one)).sum())
            for one in range(3)
            if ((given == one) | (true == one)).any()
        ]
        assert float(found.mean_iou[0, at]) == pytest.approx(np.mean(shares))
    finer = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    larger = rpp.BlockLesion(rpp.unravel(model, images, task="segmentation")).attribute(images, finer)
    with torch.no_grad():
        scores = functional.interpolate(model(images), scale_factor=2, mode="bilinear")
    expected = functional.cross_entropy(scores, finer.where(finer != 255, -100), reduction="none")
    counted = (finer != 255).flatten(1).sum(1)
    np.testing.assert_allclose(larger.intact_loss, expected.flatten(1).sum(1) / counted, rtol=1e-5)


def test_values_and_embeddings():
    torch.manual_seed(0)
    model = nn.Sequential(Residual(mlp(WIDTH)), nn.Linear(WIDTH, 3)).eval()
    x, truth = torch.randn(4, WIDTH), torch.randn(4, 3)
    found = rpp.BlockLesion(rpp.unravel(model, x, task="regression")).attribute(x, truth)
    with torch.no_grad():
        intact, changed = model(x), model[1](x)
    np.testing.assert_allclose(found.squared_error[0], (changed - truth).square().mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.intact_squared_error, (intact - truth).square().mean(1), rtol=1e-5)
    assert "error" not in found
    with pytest.raises(InputError, match="predicts values: pass the true ones as the target"):
        rpp.BlockLesion(rpp.unravel(model, x, task="regression")).attribute(x)
    net = rpp.unravel(model, x, task="embedding")
    found = rpp.BlockLesion(net).attribute(x, torch.arange(4), measures={"retrieved": rpp.tasks.retrieval(intact)})
    cosine = functional.cosine_similarity(intact, changed)
    np.testing.assert_allclose(found.cosine_distance[0], 1 - cosine, rtol=1e-5, atol=1e-7)
    assert found.intact_retrieved.values.tolist() == [1.0] * 4
    game = rpp.BlockGame(net, x, value="cosine_distance")
    assert float(game(np.zeros((1, 1), dtype=bool))[0]) == pytest.approx(float((1 - cosine).mean()), rel=1e-5)


def test_a_task_of_ones_own():
    x, truth = torch.randn(4, WIDTH), torch.randn(4, 3)
    model = nn.Sequential(Residual(mlp(WIDTH)), nn.Linear(WIDTH, 3)).eval()

    def distance(scores, target):
        return (scores - target).abs().sum(1)

    distance.higher_is_better = False
    task = rpp.tasks.Task(name="heights", layout="values", measures={"distance": distance})
    found = rpp.BlockLesion(rpp.unravel(model, x, task=task)).attribute(x, truth)
    with torch.no_grad():
        np.testing.assert_allclose(found.intact_distance, distance(model(x), truth), rtol=1e-6)
    assert found.attrs["task"] == "heights"
    game = rpp.BlockGame(rpp.unravel(model, x, task=task), x, truth, value="distance")
    assert not game.higher_is_better
    with pytest.raises(InputError, match="task must be one of 'classification', 'next_token'"):
        rpp.unravel(model, x, task="captioning")


def test_a_measure_with_a_name_of_the_results_is_refused():
    task = rpp.tasks.Task(name="heights", layout="values", measures={"error": rpp.tasks.squared_error})
    net = rpp.unravel(nn.Sequential(Residual(mlp(WIDTH))).eval(), torch.randn(4, WIDTH), task=task)
    with pytest.raises(InputError, match="'error' is a name of the result's own schema"):
        rpp.BlockLesion(net).attribute(torch.randn(4, WIDTH), torch.randn(4, WIDTH))


def test_measures_of_a_game_and_a_selection(text, language):
    ids, labels = text
    lesions = rpp.BlockLesion(language).attribute(ids, labels)
    game = rpp.BlockGame(language, ids, labels, value="loss")
    without = game(np.array([[False, True], [True, False], [True, True]]))
    np.testing.assert_allclose(without[:2], lesions.loss.mean("sample"), rtol=1e-6)
    chosen = rpp.BlockSelection(language).attribute(ids, labels, k=1, holdout=None)
    assert chosen.attrs["measure"] == "loss"
    influence = rpp.BlockInfluence(language).attribute(ids, labels, objective="cross_entropy", lesions=lesions)
    np.testing.assert_allclose(influence.lesion_effect, (lesions.loss - lesions.intact_loss).mean("sample"), rtol=1e-4)


def test_tasks_survive_files_and_figures(text, language, tmp_path):
    found = rpp.BlockLesion(language).attribute(*text)
    xr.testing.assert_identical(rpp.load(rpp.save(found, tmp_path / "lesions.nc")), found)
    found.resnet_paths.plot()
    summary = found.resnet_paths.summary()
    assert {"error", "loss_low", "correct_high"} <= set(summary)
