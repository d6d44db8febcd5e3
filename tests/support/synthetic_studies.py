"""Studies of networks that do not exist, as the analyzers lay them out: material for figures and reports."""

from itertools import pairwise

import numpy as np

from resnet_paths_plugin import paths
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.results import datasets, provenance
from resnet_paths_plugin.results.block_coords import block_coords

PROXIES = ("branch_to_source_norm", "source_sum_cosine", "block_influence", "angular_distance", "lesion_estimate")


def blocks(n=9, n_stages=3, skips=None, name="layer{stage}.{index}"):
    """Blocks of a chain; the first of each stage but the first has a projection skip."""
    stages = np.arange(n) * n_stages // n
    made = []
    for index, stage in enumerate(stages):
        first = index > 0 and stage != stages[index - 1]
        skip = skips[index] if skips else ("projection" if first else "identity")
        label = name.format(stage=stage + 1, index=index)
        made.append(
            ResidualBlock(
                index=index, name=label, module=label, group=label, skip_kind=skip, branch_type="convolution",
                stage=int(stage), depth=2, source_shape=(4, 8, 8), sum_shape=(4, 8, 8),
                source="x", skip="s", branch="f", sum="y",
            )
        )  # fmt: skip
    return made


def attrs(title="Study of toy", **more):
    return provenance.provenance(
        title=title, summary="Made up.", analyzer="Nothing", model_class=dict, description=None,
        weights_digest="sha256:0", plugins=["none"], device="cpu", dtype="torch.float32", seed=0,
        arguments={"inputs": "made up"},
    ) | more  # fmt: skip


def _classified(dim, damage, samples, rng, n_classes=10, *, targets=True):
    """Measures of changes whose errors are about `damage`."""
    labels = np.arange(samples) % n_classes
    hardness = rng.permuted(np.linspace(0, 1, samples, endpoint=False))
    correct = hardness >= np.asarray(damage)[:, None]
    changed = ~correct
    found = {"prediction_changed": ((dim, "sample"), changed)}
    if targets:
        intact = hardness >= 0.04
        found |= {
            "correct": ((dim, "sample"), correct), "intact_correct": ("sample", intact),
            "error": (dim, 1 - correct.mean(axis=1)), "intact_error": ((), 1 - intact.mean()),
            "label": ("sample", labels),
            "loss": ((dim, "sample"), np.where(correct, 0.01, 3.0) + hardness * 0.1),
            "intact_loss": ("sample", 0.01 + hardness * 0.1),
        }  # fmt: skip
    return found


def block_damage(made, rng):
    """Projections hurt, early blocks a little, others hardly."""
    falling = 0.3 * np.exp(-np.arange(len(made)) / (0.1 * len(made) + 0.5))
    projection = np.array([block.skip_kind == "projection" for block in made])
    return np.clip(0.04 + falling + 0.4 * projection + 0.01 * rng.random(len(made)), 0, 0.9)


def lesion_study(sets, made, damage, samples=200, seed=0, *, targets=True, draw=None, **more):
    rng = np.random.default_rng(seed)
    deleted = np.array([[block.index in chosen for block in made] for chosen in sets])
    variables = {
        "deleted": (("lesion", "block"), deleted),
        "n_deleted": ("lesion", deleted.sum(axis=1)),
        "n_deleted_units": ("lesion", deleted.sum(axis=1)),
        "draw": ("lesion", np.zeros(len(sets), int) if draw is None else draw),
        **_classified("lesion", damage, samples, rng, targets=targets),
    }
    labels = ["+".join(made[index].name for index in chosen) or "intact" for chosen in sets]
    coords = {"lesion": ("lesion", labels), **block_coords(made)}
    return datasets.build(variables, coords=coords, attrs=attrs("Lesion study of toy", **more))


def single_lesions(n=9, seed=0, *, targets=True, made=None, **kwargs):
    made = made or blocks(n)
    damage = block_damage(made, np.random.default_rng(seed))
    return lesion_study([[block.index] for block in made], made, damage, targets=targets, seed=seed, **kwargs)


def plain_lesions(m=11):
    made = blocks(m, 1, skips=["none"] * m, name="features.{index}")
    damage = 0.9 - 0.25 * np.random.default_rng(3).random(m)
    return lesion_study([[index] for index in range(m)], made, damage, units="layers")


def random_lesions(n=9, draws=5, sizes=None, seed=0, *, targets=True):
    made, rng = blocks(n), np.random.default_rng(seed)
    sizes = list(sizes or range(1, min(n, 20) + 1))
    sets = [sorted(rng.choice(n, size, replace=False)) for size in sizes for _ in range(draws)]
    damage = [0.9 * (1 - 0.9 ** (len(chosen) * rng.uniform(0.5, 1.5) * 54 / n / 3)) + 0.04 for chosen in sets]
    draw = list(range(draws)) * len(sizes)
    return lesion_study(sets, made, np.clip(damage, 0, 0.9), draw=draw, targets=targets)


def reorderings(n=9, draws=10, swaps=(1, 2, 3, 5, 10, 20, 50), seed=0, *, targets=True):
    made, rng = blocks(n), np.random.default_rng(seed)
    orders, taus, everyone, counts = [], [], [], []
    pairs = [(a, b) for a, b in pairwise(range(n)) if made[a].movable and made[b].movable]
    for count in swaps:
        for _ in range(draws):
            order = list(range(n))
            for _ in range(count):
                a, b = pairs[rng.integers(len(pairs))]
                order[a], order[b] = order[b], order[a]
            movable = [place for place in order if made[place].movable]
            orders.append(order)
            taus.append(_tau(movable))
            everyone.append(_tau(order))
            counts.append(count)
    damage = np.clip(0.04 + 0.8 * (1 - np.array(taus)) * rng.uniform(0.6, 1.2, len(taus)), 0, 0.9)
    variables = {
        "order": (("reordering", "position"), orders),
        "kendall_tau": ("reordering", taus),
        "kendall_tau_all_blocks": ("reordering", everyone),
        "n_swaps": ("reordering", counts),
        "draw": ("reordering", list(range(draws)) * len(swaps)),
        **_classified("reordering", damage, 200, rng, targets=targets),
    }
    coords = {"reordering": [" ".join(map(str, order)) for order in orders]}
    coords = {"reordering": ("reordering", coords["reordering"]), **block_coords(made)}
    return datasets.build(variables, coords=coords, attrs=attrs("Reordering study of toy"))


def _tau(order):
    order = np.asarray(order)
    signs = np.sign(order[None, :] - order[:, None])[np.triu_indices(len(order), 1)]
    return signs.mean() if len(signs) else np.nan


def trainings(n=9, seeds=3):
    made = blocks(n)
    rng = np.random.default_rng(1)
    names = ["ordinary", "stochastic depth"]
    base = block_damage(made, rng)
    error = np.stack([base * scale for scale in (1.0, 0.6)])
    error = error[:, None, :] * rng.uniform(0.7, 1.3, (2, max(seeds, 1), n))
    intact = np.full((2, max(seeds, 1)), 0.04)
    dims, intact_dims = ("training", "seed", "lesion"), ("training", "seed")
    if not seeds:
        error, intact, dims, intact_dims = error[:, 0], intact[:, 0], ("training", "lesion"), ("training",)
    variables = {
        "error": (dims, error),
        "intact_error": (intact_dims, intact),
        "deleted": (("lesion", "block"), np.eye(n, dtype=bool)),
    }
    coords = {
        "training": ("training", names),
        "lesion": ("lesion", [block.name for block in made]),
        **block_coords(made),
    }
    if seeds:
        coords["seed"] = ("seed", list(range(seeds)))
    return datasets.build(variables, coords=coords, attrs=attrs("Trainings of toy"))


def influence(n=9, samples=8, *, lesions=True, gated=False):
    made = blocks(n, skips=["gated"] * n if gated else None)
    rng = np.random.default_rng(2)
    damage = block_damage(made, rng) - 0.04
    variables, correlations = {}, []
    for strength, name in zip((1, -0.5, 0.3, 0.1, 2), PROXIES, strict=True):
        noise = rng.normal(0, 0.05, (n, samples))
        variables[name] = (("block", "sample"), strength * damage[:, None] + noise * 2 / abs(strength))
        values = variables[name][1].mean(axis=1)
        ranks = [np.argsort(np.argsort(one)) for one in (values, damage)]
        correlations.append(np.corrcoef(*ranks)[0, 1] if n > 1 else np.nan)
    if gated:
        variables["gate_openness"] = (("block", "sample"), 1 / (1 + np.exp(-rng.normal(0, 1, (n, samples)))))
    coords = {**block_coords(made)}
    if lesions:
        variables["lesion_effect"] = ("block", damage, {"measure": "error"})
        spread = np.random.default_rng(3).normal(0, 0.1, (n, samples))
        each = damage[:, None] + spread - spread.mean(axis=1, keepdims=True)
        variables["lesion_effect_by_sample"] = (("block", "lesion_sample"), each, {"measure": "error"})
        variables["rank_correlation"] = ("proxy", correlations)
        coords["proxy"] = ("proxy", list(PROXIES))
    return datasets.build(variables, coords=coords, attrs=attrs("Influence of blocks of toy"))


def correlated(ds, wanted):
    """Return a study of influence whose proxies have these rank correlations with the effect; NaN: one is constant.

    Blocks where a proxy is NaN are left out of its ranking.
    """
    rng, ds = np.random.default_rng(0), ds.copy(deep=True)
    for name, correlation in zip(ds["proxy"].values, wanted, strict=True):
        known = np.isfinite(ds[name].values).all(axis=1)
        values = np.ones(known.sum())
        if np.isfinite(correlation):
            effect = np.argsort(np.argsort(ds["lesion_effect"].values[known]))
            orders = rng.permuted(np.tile(effect, (200_000, 1)), axis=1)
            found = 1 - 6 * ((orders - effect) ** 2).sum(axis=1) / (len(effect) ** 3 - len(effect))  # Spearman's
            values = orders[np.abs(found - correlation).argmin()]
        ds[name][known] = np.asarray(values, dtype=float)[:, None]
    return ds


def schedules(n=9, families=None, seed=0):
    made, rng = blocks(n), np.random.default_rng(seed)
    hurt = block_damage(made, rng)
    rows = []  # label, family, changed, weights by (place, branch), damage
    for a in range(n - 1):
        weights = {(a, a + 1): 1.0, (a + 1, a): 1.0}
        rows.append((f"swap {a} {a + 1}", "adjacent_swaps", {a, a + 1}, weights, 0.04 + 0.3 * (hurt[a] - 0.04)))
    for a in range(n):
        weights = {(a, a): 2.0}
        rows.append((f"repeat {a}", "repeated_blocks", {a}, weights, hurt[a] * 0.5))
    for a in range(0, n - 3, max(1, n // 12)):
        for length in {3, min(6, n - a)}:
            places = list(range(a, min(a + length, n)))
            weights = dict.fromkeys(zip(places, places[::-1], strict=True), 1.0)
            rows.append((f"reverse {a}..{places[-1]}", "reversed_ranges", set(places), weights, 0.1 * length / 2))
            together = {(place, branch): 1.0 / len(places) for place in places[:1] for branch in places}
            rows.append((f"parallel {a}..{places[-1]}", "parallel_ranges", set(places), together, 0.08 * length / 2))
    for t in np.linspace(0, 1.5, 7):
        weights = {(a, a): t for a in range(n) if t not in {0, 1}}
        rows.append((f"all x {t:g}", "scaled_branches", set() if t == 1 else set(range(n)), weights, abs(1 - t) * 0.9))
    for first in range(n):
        for last in range(first, n):
            skipped = set(range(first, last + 1))
            told = f"skip {first}..{last}"
            rows.append(
                (told, "skipped_ranges", skipped, {}, 0.9 - 0.86 * 0.97 ** (100 * hurt[first : last + 1].sum()))
            )
    rows = [row for row in rows if families is None or row[1] in families]
    entries = [(index, *place, weight) for index, row in enumerate(rows) for place, weight in row[3].items()]
    entries = np.array(entries).reshape(-1, 4)
    variables = {
        "family": ("schedule", [row[1] for row in rows]),
        "changed": (("schedule", "block"), [[block in row[2] for block in range(n)] for row in rows]),
        "n_changed": ("schedule", [len(row[2]) for row in rows]),
        "entry_schedule": ("entry", entries[:, 0]),
        "entry_place": ("entry", entries[:, 1]),
        "entry_branch": ("entry", entries[:, 2]),
        "entry_weight": ("entry", entries[:, 3]),
        **_classified("schedule", np.clip([row[4] for row in rows], 0.04, 0.9), 100, rng),
    }
    coords = {"schedule": ("schedule", [row[0] for row in rows]), **block_coords(made)}
    return datasets.build(variables, coords=coords, attrs=attrs("Schedules of toy"))


def path_lengths(n=9, samples=4, *, chain=True, max_length=None):
    made = blocks(n)
    counts = paths.counts(n) if chain else [count + 1 for count in paths.counts(n)]
    kept = len(counts) if max_length is None else max_length + 1
    decay = 0.1 * 0.3 ** np.arange(kept)
    norms = np.array([float(count) for count in counts[:kept]]) * decay
    rng = np.random.default_rng(0)
    low, high = paths.effective_range(norms)
    drawn = np.random.default_rng(1).lognormal(0, 1, (kept, 20))
    drawn *= decay[:, None] / drawn.mean(axis=1, keepdims=True)
    variables = {
        "path_count": ("path_length", counts[:kept]),
        "log10_path_count": ("path_length", paths.log10_counts(counts)[:kept]),
        "gradient_norm": (("path_length", "sample"), norms[:, None] * rng.uniform(0.8, 1.2, samples)),
        "path_gradient_norm": ("path_length", decay),
        "path_gradient_norm_draws": (("path_length", "draw"), drawn),
        "path_gradient_norm_stderr": ("path_length", drawn.std(axis=1, ddof=1) / 20**0.5),
        "total_path_gradient": ("path_length", norms),
        "log10_total_path_gradient": ("path_length", np.log10(norms)),
        "completeness_error": ("sample", np.full(samples, 3e-7)),
        "n_draws": ((), 20),
        "effective_length_low": ("measure", [low, low]),
        "effective_length_high": ("measure", [high, high]),
    }
    if max_length is not None:
        variables["tail_gradient_norm"] = ("sample", np.full(samples, 0.5))
    coords = {"measure": ("measure", ["gradient_norm", "total_path_gradient"]), **block_coords(made)}
    more = {"argument_grade": "blocks"}
    return datasets.build(variables, coords=coords, attrs=attrs("Path lengths of toy", **more))


def path_maps(n=9, samples=2, longest=3):
    rng = np.random.default_rng(0)
    study = path_lengths(n, samples, max_length=longest)
    variables = {name: study[name].variable for name in study.data_vars if "effective" not in name}
    variables = {name: (value.dims, value.values) for name, value in variables.items()}
    dims = ("channel", "height", "width")
    variables["gradient"] = (("path_length", "sample", *dims), rng.normal(size=(longest + 1, samples, 1, 8, 8)))
    variables["input"] = (("sample", *dims), rng.normal(size=(samples, 1, 8, 8)))
    coords = block_coords(blocks(n))
    return datasets.build(variables, coords=coords, attrs=attrs("Maps of toy", argument_grade="blocks"))


def tree(n=9, **more):
    studies = {
        "single_lesions": single_lesions(n),
        "random_lesions": random_lesions(n),
        "reorderings": reorderings(n),
        "influence": influence(n),
        "path_lengths": path_lengths(n),
        "path_maps": path_maps(n),
        "plain_single_lesions": plain_lesions(),
    }
    return datasets.build_tree(studies | more)
