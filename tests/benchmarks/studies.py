"""What is timed: for each study, ours and the obvious ways to the same result, and the ratios that the table prints."""

import copy
import itertools
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torchvision
from captum.attr import LayerFeatureAblation

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routing import ByLength
from tests.benchmarks import ways_through_blocks
from tests.benchmarks.study import Ratio, Study
from tests.benchmarks.subjects import pictures, resnet, trained

LOOP_BATCH = 256
DEPTHS = (6, 12, 24)
OPTIMIZE = ("channels_last", "fold_batch_norm")


def lesion_sweep(options):
    """Every single block deleted once."""
    model, images = trained(options.weights), pictures(options.samples, options.images)
    net, blocks = rpp.unravel(model, images[:2]), model.residual_blocks()

    fast = rpp.unravel(model, images[:2], optimize=OPTIMIZE)

    def ours():
        return rpp.BlockLesion(net).attribute(images).prediction.values

    def optimized():
        return rpp.BlockLesion(fast).attribute(images).prediction.values

    @torch.inference_mode()
    def loop():
        """A zeroing hook on the branch's last layer, and one full forward pass for each block."""
        found = []
        for block in blocks:
            handle = block.bn2.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
            found.append(torch.cat([model(part).argmax(1) for part in images.split(LOOP_BATCH)]))
            handle.remove()
        return torch.stack(found).numpy()

    def check(results):
        assert np.array_equal(results["ours"], results["loop"])
        assert np.array_equal(results["ours"], results["optimized"])

    n = len(net.blocks)
    return Study(
        f"lesions, ResNet-56 ({n} blocks), {len(images)} images",
        {"ours": ours, "optimized": optimized, "loop": loop},
        (
            Ratio("loop with hooks / ours", lambda t: t["loop"] / t["ours"], f"{n / (n / 2 + 1):.1f}, shared prefixes"),
            Ratio(f"loop with hooks / ours, {' and '.join(OPTIMIZE)}", lambda t: t["loop"] / t["optimized"], ""),
        ),
        check,
    )


def coalitions(options):
    """The loss of all coalitions of the nine blocks of ResNet-20."""
    model, images = resnet(3), pictures(options.samples // 16, options.images)
    net, blocks = rpp.unravel(model, images[:2]), model.residual_blocks()
    labels, n = torch.arange(len(images)) % 10, len(blocks)
    every = np.array(list(itertools.product([False, True], repeat=n)))

    def ours():
        return rpp.BlockGame(net, images, labels, value="loss", run=rpp.RunOptions(verify=False))(every)

    @torch.inference_mode()
    def loop():
        """Zeroing hooks on the last layers of the branches outside, and one full forward pass for each coalition."""
        found = []
        for coalition in every:
            gone = [block for block, left in zip(blocks, coalition, strict=True) if not left]
            handles = [block.bn2.register_forward_hook(lambda *call: torch.zeros_like(call[2])) for block in gone]
            found.append(float(torch.nn.functional.cross_entropy(model(images).double(), labels)))
            for handle in handles:
                handle.remove()
        return np.array(found)

    def check(results):
        np.testing.assert_allclose(results["ours"], results["loop"], rtol=1e-4)

    return Study(
        f"all coalitions, ResNet-20 ({n} blocks), {len(images)} images",
        {"ours": ours, "loop": loop, "one": torch.no_grad(lambda: model(images))},
        (
            Ratio("ours / (2^n / n forward passes)", lambda t: t["ours"] / t["one"] * n / 2**n, "1"),
            Ratio("loop with hooks / ours", lambda t: t["loop"] / t["ours"], f"{n}, shared prefixes"),
        ),
        check,
    )


def lesions_by_captum(options):
    """Captum's ablation of a layer: for each block an intact pass, and one with the layer's outputs zeroed."""
    model, images = trained(options.weights), pictures(options.samples // 8, options.images)
    net, blocks = rpp.unravel(model, images[:2]), model.residual_blocks()

    @torch.no_grad()
    def captum():
        methods = [LayerFeatureAblation(model, block.bn2) for block in blocks]
        layer = torch.zeros(1, dtype=torch.long)
        return [
            method.attribute(part, target=0, layer_mask=layer)
            for method in methods
            for part in images.split(LOOP_BATCH)
        ]

    return Study(
        f"lesions, ResNet-56 ({len(blocks)} blocks), {len(images)} images",
        {"ours": lambda: rpp.BlockLesion(net).attribute(images), "captum": captum},
        (Ratio("Captum's LayerFeatureAblation / ours", lambda t: t["captum"] / t["ours"], ""),),
    )


def lesions_by_blocks(options):
    """Twice the blocks: half as many passes again as there are blocks, each of twice the cost."""
    images, ways = pictures(options.samples // 16, options.images), {}
    for depth in DEPTHS:
        net = rpp.unravel(resnet(depth), images[:2])
        ways[3 * depth] = lambda net=net: rpp.BlockLesion(net).attribute(images)
    return _growing(f"lesions, {len(images)} images", "blocks", ways, "2")


def lesions_by_images(options):
    """Twice the images: twice the time, the same memory."""
    net, count = rpp.unravel(resnet(), pictures(2)), options.samples // 16
    images = pictures(4 * count)
    ways = {
        size: lambda size=size: rpp.BlockLesion(net).attribute(images[:size]) for size in (count, 2 * count, 4 * count)
    }
    return _growing("lesions, 27 blocks", "images", ways, "1")


def forward_pass(options):
    """The intact network against the model's own forward."""
    model, images = trained(options.weights), pictures(64, options.images)
    net = rpp.unravel(model, images[:2])
    fast = rpp.unravel(model, images[:2], optimize=OPTIMIZE)
    ways = {
        "ours": torch.no_grad(lambda: net(images)),
        "optimized": torch.no_grad(lambda: fast(images)),
        "model": torch.no_grad(lambda: model(images)),
    }

    def check(results):
        assert torch.equal(results["ours"], results["model"])

    return Study(
        "forward pass, ResNet-56, 64 images",
        ways,
        (
            Ratio("ours / the model's", lambda t: t["ours"] / t["model"], "1"),
            Ratio(f"the same, {' and '.join(OPTIMIZE)}", lambda t: t["optimized"] / t["model"], ""),
        ),
        check,
    )


def attention_forward(_, size=2):
    """The unraveled ViT's forward pass against the model's own, by the same operators and by torch's fused ones."""
    model, images = _large("vit_b_16", size)
    net = rpp.unravel(model, images)

    @torch.no_grad()
    def unfused():
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return model(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)

    def check(results):
        assert torch.equal(results["ours"], results["unfused"])

    return Study(
        f"forward pass, vit_b_16, {size} images",
        {
            "ours": torch.no_grad(lambda: net.intact(images)),
            "unfused": unfused,
            "fused": torch.no_grad(lambda: model(images)),
        },
        (
            Ratio("ours / the model's, unfused", lambda t: t["ours"] / t["unfused"], "1.1"),
            Ratio("ours / the model's, fused", lambda t: t["ours"] / t["fused"], ""),
        ),
        check,
    )


def path_gradients(options, size=8, model=None, images=None, name="ResNet-56"):
    """All lengths exactly, against one forward and backward pass, gated passes and the paper's sampling."""
    model = trained(options.weights) if model is None else model
    images = pictures(size, options.images) if images is None else images
    net = rpp.unravel(model, images[:1])
    n = len(net.blocks)
    graph, program = net.path_graph(), net.program

    def ordinary():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]

    def ours():
        total = []
        for part in images.split(min(size, 8)):
            walk = BackwardWalk(graph, {program.inputs[0]: part}, program.parameters(), dtype=torch.float32)
            seed = torch.zeros_like(walk.outputs[0])
            seed[:, 0] = 1
            total.append(walk.run({program.outputs[0]: seed}, ByLength([(1,)] * n))[graph.taps[0]].rows.sum(0))
        return torch.cat(total)

    def check(results):
        error = (results["ours"] - results["one"]).norm() / results["one"].norm()
        assert error < 1e-5

    ratios = [Ratio("ours / (n times one forward and backward)", lambda t: t["ours"] / t["one"] / n, "0.25")]
    ways = {"ours": ours, "one": ordinary}
    if hasattr(model, "residual_blocks") and size <= 8:
        ways |= {"gated": partial(_gated, model, ordinary), "sampled": partial(_sampled, model, ordinary)}
        ratios += [
            Ratio("n + 1 gated backward passes / ours", lambda t: t["gated"] / t["ours"], ""),
            Ratio("the paper's sampling, one path a length / ours", lambda t: t["sampled"] / t["ours"], ""),
        ]
    return Study(f"path gradients, {name} ({n} blocks), {size} images", ways, tuple(ratios), check)


def _gated(model, ordinary):
    """The polynomial sum_k t^k G_k at n + 1 points, from which the G_k could be solved for."""
    n = len(model.residual_blocks())
    for t in np.cos(np.pi * np.arange(n + 1) / n):
        with _scaled_gradients(model, [t] * n):
            ordinary()


def _sampled(model, ordinary):
    """One of the paper's paths for each length, a backward pass each."""
    generator, n = np.random.default_rng(0), len(model.residual_blocks())
    for length in range(n + 1):
        taken = generator.choice(n, length, replace=False)
        with _scaled_gradients(model, np.isin(np.arange(n), taken).astype(float)):
            ordinary()


@contextmanager
def _scaled_gradients(model, factors):
    """Multiply the gradient through each branch by a factor; the values stay."""

    def hook_of(t):
        # Not taken, a branch costs no backward pass; taken, it costs nothing beside.
        return lambda *call: call[2].detach() if t == 0 else call[2] * t + (call[2] * (1 - t)).detach()

    handles = [
        block.bn2.register_forward_hook(hook_of(t))
        for block, t in zip(model.residual_blocks(), factors, strict=True)
        if t != 1
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def paths_by_blocks(options):
    """Twice the blocks: twice the rows through twice the blocks."""
    images, ways = pictures(2, options.images), {}
    for depth in DEPTHS:
        net = rpp.unravel(resnet(depth), images)
        ways[3 * depth] = lambda net=net: rpp.PathLengthGradient(net).attribute(images, target=0)
    return _growing("path gradients, 2 images", "blocks", ways, "2")


def _large(name, size):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval().requires_grad_(requires_grad=False)
    *_, head = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    torch.nn.init.normal_(head.weight)  # a vision transformer's begins with zeros, behind which nothing shows
    return model, pictures(size, size=224)


def large_lesions(_options, name, size=4):
    """A torchvision model with all lesions, against its own forward passes."""
    model, images = _large(name, size)
    net = rpp.unravel(model, images[:2])
    n = len(net.blocks)
    ways = {
        "ours": lambda: rpp.BlockLesion(net).attribute(images),
        "intact": torch.no_grad(lambda: net(images)),
        "model": torch.no_grad(lambda: model(images)),
    }
    bound = f"{0.5 + 1 / n:.2f}"
    return Study(
        f"lesions, {name} ({n} blocks), {size} images",
        ways,
        (
            Ratio("ours / (n intact passes of the unraveled network)", lambda t: t["ours"] / t["intact"] / n, bound),
            Ratio("ours / (n passes of the model itself)", lambda t: t["ours"] / t["model"] / n, ""),
        ),
    )


def large_paths(options, name, size=1):
    """A torchvision model's exact path gradients."""
    model, images = _large(name, size)
    return path_gradients(options, size, model, images, name)


def the_check(options):
    """What holding the network against the model adds to studies of one chunk: their own first pass is the check's."""
    model = resnet(9)
    net = rpp.unravel(model, pictures(2))
    many = pictures(64, options.images)  # as many as a pass of these studies takes at once, and of those of paths
    few = many[:8]

    @torch.no_grad()
    def forward():
        model(many)

    def both(images):
        x = images.clone().requires_grad_()
        torch.autograd.grad(model(x)[:, 0].sum(), x)

    def study(analyzer, images, *, verify, **asked):
        run = rpp.RunOptions(verify=verify)
        return analyzer(net).attribute(images, target=0, run=run, internal_batch_size=len(images), **asked)

    asked = {
        "influence": partial(study, rpp.BlockInfluence, many, objective="score"),
        "paths": partial(study, rpp.PathLengthGradient, few, max_length=2),
        "sampled paths": partial(study, rpp.PathLengthGradient, few, estimator="sampled", draws=1, max_length=2),
    }
    ways = {
        "ours": lambda: net.check.study((many,)),
        "intact": torch.no_grad(lambda: net.intact(many)),
        "structure": lambda: [net.check.changed for _ in range(100)],
        "forward": forward,
        "both": partial(both, many),
        "both, 8 images": partial(both, few),
    }
    for name, way in asked.items():
        ways |= {name: partial(way, verify=True), f"{name} without": partial(way, verify=False)}

    def added(name, passes):
        return Ratio(
            f"{name}: what the check adds / one forward and one backward pass of the model",
            lambda t: (t[name] - t[f"{name} without"]) / t[passes],
            "1",
        )

    return Study(
        f"the check, ResNet-56 ({len(net.blocks)} blocks), {len(many)} images, 8 of paths",
        ways,
        (
            Ratio(
                "outputs: the check, less the intact pass that the study takes over / one forward pass of the model",
                lambda t: (t["ours"] - t["intact"]) / t["forward"],
                "1",
            ),
            added("influence", "both"),
            added("paths", "both, 8 images"),
            added("sampled paths", "both, 8 images"),
            Ratio("look at the structure / a forward pass", lambda t: t["structure"] / t["forward"] / 100, ""),
        ),
    )


def pruned_resnet50(_):
    """Four identity-skip blocks gone: the pruned network and the copy against `nn.Identity` by hand."""
    torch.manual_seed(0)
    model, images = torchvision.models.resnet50().eval(), pictures(8, size=96)
    gone = ["layer2.2", "layer3.2", "layer3.4", "layer4.2"]
    net = rpp.unravel(model, images[:2])
    patched = copy.deepcopy(model)
    for path in gone:
        patched.set_submodule(path, torch.nn.Identity())
    modules = {
        "intact": model,
        "by hand": patched,
        "pruned": net.pruned(gone, training=False),
        "copy": rpp.pruned_copy(net, gone),
    }

    def check(results):
        assert torch.equal(results["pruned"], results["by hand"])
        assert torch.equal(results["copy"], results["by hand"])

    return Study(
        f"ResNet-50 without {len(gone)} blocks, {len(images)} images of 96x96",
        {name: partial(torch.no_grad()(module), images) for name, module in modules.items()},
        (
            Ratio("pruned / by hand", lambda t: t["pruned"] / t["by hand"], "1.05"),
            Ratio("copy / by hand", lambda t: t["copy"] / t["by hand"], "1.05"),
            Ratio("pruned / intact", lambda t: t["pruned"] / t["intact"], "branches left"),
        ),
        check,
    )


def _growing(what, noun, ways, bound):
    """A study of how the time grows: the exponent that fits the seconds of several sizes best."""
    sizes = {f"{size} {noun}": size for size in ways}

    def exponent(times):
        slope, _ = np.polyfit(np.log([*sizes.values()]), np.log([times[way] for way in sizes]), 1)
        return slope

    return Study(
        f"{what}, {', '.join(map(str, ways))} {noun}",
        dict(zip(sizes, ways.values(), strict=True)),
        (Ratio(f"time ~ {noun}^e: e", exponent, bound),),
    )


STUDIES = {
    "forward": forward_pass,
    "forward-vit": attention_forward,
    "lesions": lesion_sweep,
    "coalitions": coalitions,
    "lesions-by-captum": lesions_by_captum,
    "lesions-by-blocks": lesions_by_blocks,
    "lesions-by-images": lesions_by_images,
    "the check": the_check,
    "pruned": pruned_resnet50,
    "paths-8": path_gradients,
    "paths-64": lambda options: path_gradients(options, 64),
    "paths-by-blocks": paths_by_blocks,
    "lesions-resnet50": lambda options: large_lesions(options, "resnet50"),
    "lesions-vit": lambda options: large_lesions(options, "vit_b_16", 2),
    "paths-resnet50": lambda options: large_paths(options, "resnet50"),
    "paths-vit": lambda options: large_paths(options, "vit_b_16"),
    "ways-through-blocks": ways_through_blocks.walks,
    "studies-of-ways": ways_through_blocks.studies,
}
