"""UnraveledNetwork: what a user holds of a captured model; one way in to everything that is studied on it."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, overload

import pandas as pd
import pluggy
import torch

from resnet_paths_plugin.argument_sizes import listed_values
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.rejected_sums import other_sums
from resnet_paths_plugin.graph.structure import Structure
from resnet_paths_plugin.network.captured_network import CapturedNetwork, Optimization, Units
from resnet_paths_plugin.network.model_check import ModelCheck
from resnet_paths_plugin.network.pruning import PrunedNetwork
from resnet_paths_plugin.network.restricted_training import RestrictedTrainingNetwork
from resnet_paths_plugin.network.sampling import SamplingNetwork
from resnet_paths_plugin.network.stand_ins import Fitted, stand_ins_on
from resnet_paths_plugin.network.views import RestrictedNetwork, ScheduledNetwork
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.tasks import Readout

_NOUNS: Mapping[Units, str] = {"blocks": "residual blocks", "layers": "layers that can be deleted"}


class UnraveledNetwork(CapturedNetwork):
    """A model as a data-flow graph with residual blocks; called, it returns the model's own outputs.

    Made by `unravel`, for any number of threads. Outputs equal those of the model in eval mode, bit for bit on a
    CPU unless it is optimized.

    Attributes:
        graph: the captured graph.
        blocks: the residual blocks in execution order.
        description: what plugins know of the model, or None.
        program: graph and blocks, ready to run in parts.
        plugin_names: the plugins that were asked, with their versions.
        units: what `blocks` are: residual `"blocks"`, or `"layers"` of any network.
        optimize: what was done to make runs faster, in alphabetical order.
        plugin_manager: the plugins that describe the model and detect its blocks; None for the installed ones.
        check: compares the network with the model.
        readout: how outputs and targets are read: the task, and which output is the scores.

    Examples:
        >>> [block.name for block in net.blocks]
        ['layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'layer3.0', 'layer3.1']
        >>> torch.equal(net(images), model(images))
        True
    """

    def __init__(
        self,
        graph: CapturedGraph,
        blocks: Sequence[ResidualBlock],
        description: ModelDescription | None = None,
        plugin_names: Sequence[str] = (),
        *,
        units: Units = "blocks",
        optimize: Iterable[Optimization] = (),
        plugin_manager: pluggy.PluginManager | None = None,
        verify: bool = True,
        readout: Readout | None = None,
    ) -> None:
        super().__init__(
            graph,
            blocks,
            description,
            plugin_names,
            units=units,
            optimize=optimize,
            plugin_manager=plugin_manager,
            readout=readout,
        )
        self.check = ModelCheck(self, verify, Structure.of(graph.model))

    def forward(self, *args: Any) -> Any:
        """Return the model's output for the arguments that the model takes.

        Raises:
            InputError: if the arguments do not fit what was captured.
            CaptureMismatchError: at the first call, if the network is not, or not any more, what the model is.
        """
        args = self.graph.arranged(args)
        self.check.view(args)
        return self.check.watched(args, self.intact(*args))

    def lesioned(
        self,
        blocks: BlockLike | Iterable[BlockLike],
        *,
        ablation: Literal["zero"] | Fitted = "zero",
        reference: Any = None,
        ridge: float | None = None,
    ) -> ScheduledNetwork:
        """Return the network without the branches of some blocks, as a module.

        Args:
            blocks: the blocks to delete, by name, index or object; their skips stay, a projection included.
            ablation: what stands in for a deleted branch: nothing (`"zero"`), its `"mean"` over the samples of the
                reference at each position, or with `"linear"` the affine map over channels from its source that is
                nearest to it on the reference, the same at each position.
            reference: data for means and linear maps: a tensor, a tuple of tensors, or an iterable of batches.
            ridge: of a linear map, what is added to the variance of each channel of the source, relative to their mean;
                None for 1e-6.

        Raises:
            UnknownBlockError: if the network does not have one of the blocks.
            InputError: if an option does not fit, a reference is missing, or a linear map does not fit a block.

        Examples:
            >>> without = net.lesioned(["layer2.1"])
            >>> without(images).shape
            torch.Size([8, 10])
            >>> approximated = net.lesioned(["layer2.1"], ablation="linear", reference=images)
            >>> approximated.schedule.linear[3].weight.shape
            torch.Size([16, 16])
        """
        schedule = Schedule.lesion(self, blocks)
        stand_ins = stand_ins_on(self, schedule.deleted, ablation, reference, ridge)
        return self.scheduled(schedule.substituted(stand_ins.constants, stand_ins.linear))

    def scheduled(self, schedule: Schedule) -> ScheduledNetwork:
        """Return the network under a schedule, as a module.

        Examples:
            >>> swapped = net.scheduled(rpp.Schedule.order(net, [1, 0, 2, 3, 4, 5]))
            >>> swapped(images).shape
            torch.Size([8, 10])
        """
        return ScheduledNetwork(self, self.check, schedule)

    def pruned(
        self,
        blocks: BlockLike | Iterable[BlockLike],
        *,
        ablation: Literal["zero"] | Fitted = "zero",
        reference: Any = None,
        ridge: float | None = None,
        share_parameters: bool = False,
        training: bool = True,
    ) -> PrunedNetwork:
        """Return a module of its own without the branches of some blocks: what only they used is gone.

        Means and linear maps that stand in for branches are parameters of it: `stand_in_I` in the form of the sum,
        `linear_stand_in_I.weight` and `.bias`, where `I` is the block's index.

        Args:
            blocks: the blocks to delete, by name, index or object; their skips stay, a projection included.
            ablation: what stands in for a deleted branch: nothing (`"zero"`), its `"mean"`, or a `"linear"` map of its
                source, which is run as a 1x1 convolution or a linear layer; see `lesioned`.
            reference: data for means and linear maps; see `lesioned`.
            ridge: the ridge parameter of a linear map; see `lesioned`.
            share_parameters: whether parameters and buffers are the model's own, and no copies.
            training: whether it can be trained; the model is then captured again, in training mode.

        Returns:
            The module, in eval mode: there its outputs equal those of `lesioned` with the same arguments, bit for bit
            on a CPU.

        Raises:
            UnknownBlockError: if the network does not have one of the blocks.
            InputError: if an option does not fit, a reference is missing, or a linear map does not fit a block.
            CaptureError: if the model cannot be captured in training mode.
            CaptureMismatchError: if the model was changed since it was unraveled.

        Examples:
            >>> small = net.pruned(["layer1.1", "layer3.1"])
            >>> torch.equal(small(images), net.lesioned(["layer1.1", "layer3.1"])(images))
            True
            >>> len(list(small.parameters())) < len(list(model.parameters()))
            True
            >>> linear = net.pruned("layer1.1", ablation="linear", reference=images)
            >>> linear.state_dict()["linear_stand_in_1.weight"].shape
            torch.Size([8, 8])
        """
        lesioned = self.lesioned(blocks, ablation=ablation, reference=reference, ridge=ridge)
        return lesioned.to_module(share_parameters=share_parameters, training=training)

    @overload
    def restricted(self, lengths: int | Iterable[int], *, parameters: Literal[False] = False) -> RestrictedNetwork: ...

    @overload
    def restricted(self, lengths: int | Iterable[int], *, parameters: Literal[True]) -> RestrictedTrainingNetwork: ...

    def restricted(
        self, lengths: int | Iterable[int], *, parameters: bool = False
    ) -> RestrictedNetwork | RestrictedTrainingNetwork:
        """Return the network with its own outputs, whose gradient flows only along paths of some lengths.

        Args:
            lengths: the path lengths, in blocks.
            parameters: whether parameters get a gradient as well, along the paths of these lengths that end at them,
                so that `loss.backward()` and an optimizer train the model; see `RestrictedTrainingNetwork`. Without,
                only inputs get one, in eval mode.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if no path has one of the lengths, or all inputs hold integers and parameters are left out.
            CaptureError: with `parameters`, if the model is in training mode and cannot be captured in it.

        Examples:
            >>> from captum.attr import Saliency
            >>> short = net.restricted(range(3))  # paths of 0, 1 or 2 branches
            >>> torch.equal(short(images), model(images))
            True
            >>> Saliency(short).attribute(images.clone().requires_grad_(), target=labels).shape
            torch.Size([8, 1, 8, 8])
            >>> view = net.restricted(range(3), parameters=True)
            >>> optimizer = torch.optim.SGD(view.parameters(), lr=0.01)  # the model's own parameters
            >>> torch.nn.functional.cross_entropy(view(images), labels).backward()
            >>> optimizer.step()
        """
        chosen = listed_values(lengths, "lengths") if isinstance(lengths, Iterable) else [lengths]
        kind = RestrictedTrainingNetwork if parameters else RestrictedNetwork
        return kind(self, self.check, chosen)

    def sampling(
        self,
        n_active: int | None = None,
        *,
        survival: float | Sequence[float] | None = None,
        include_projections: bool = False,
        scale_in_eval: bool = True,
        generator: torch.Generator | None = None,
    ) -> SamplingNetwork:
        """Return the model as a module for training, in which each batch runs a random subset of the blocks.

        The model is captured again, in training mode; nothing of it is changed. See `SamplingNetwork`.

        Args:
            n_active: run exactly so many of the sampled blocks (Veit et al. 2016, Sec. 5).
            survival: stochastic depth (Huang et al. 2016): each sampled block runs with a probability of its own. A
                number is that of the last one, to which the probabilities fall linearly; a sequence has one each.
            include_projections: whether blocks whose skip is a projection are sampled too; they always run if not.
            scale_in_eval: whether to multiply branches in eval mode by the probability that they ran in training.
            generator: draws the subsets, on the CPU; None draws from torch's global one.

        Raises:
            NoResidualBlocksError: if the network has no residual blocks.
            InputError: if a number does not fit, or not exactly one of `n_active` and `survival` is given.
            CaptureError: if the model cannot be captured in training mode.

        Examples:
            >>> sampling = net.sampling(n_active=3).train()  # each batch runs 3 of the blocks that have no projection
            >>> torch.nn.functional.cross_entropy(sampling(images), labels).backward()
            >>> model.stem.weight.grad is not None  # the parameters are the model's own
            True
        """
        return SamplingNetwork(
            self,
            self.check,
            n_active,
            survival=survival,
            include_projections=include_projections,
            scale_in_eval=scale_in_eval,
            generator=generator,
        )

    def table(self) -> pd.DataFrame:
        """Return the blocks' facts, one row per block.

        Examples:
            >>> net.table().loc[2, ["block", "skip", "source", "sum"]].tolist()
            ['layer2.0', 'projection', '8 x 8 x 8', '16 x 4 x 4']
        """
        columns = {
            "name": "block", "stage": "stage", "skip_kind": "skip", "branch_type": "branch", "depth": "depth",
            "source_shape": "source", "sum_shape": "sum", "group": "group",
        }  # fmt: skip
        rows = [{title: getattr(block, fact) for fact, title in columns.items()} for block in self.blocks]
        for row in rows:
            row["source"], row["sum"] = (" x ".join(map(str, row[column])) for column in ("source", "sum"))
        return pd.DataFrame(rows, columns=list(columns.values()))

    def other_sums(self) -> pd.DataFrame:
        """Return the sums that close no residual block, one row each: `module`, `sum` (the graph value) and `reason`.

        They are listed so that every count can be verified: position embeddings and attention masks, lateral sums of
        feature pyramids, sums over parts of a tensor, skips that pass an operator which is no affine map.

        Raises:
            InputError: if the network was unraveled into layers.

        Examples:
            >>> len(net.other_sums())  # every sum of this network closes a residual block
            0
        """
        if self.units == "layers":
            raise InputError(f"{self.name} was unraveled into layers: ask for its sums with units='blocks'")
        rows = [asdict(other) for other in other_sums(self.graph, self.blocks)]
        return pd.DataFrame(rows, columns=["module", "sum", "reason"])

    def __repr__(self) -> str:
        table = self.table().to_string(index_names=False) if self.blocks else f"(no {_NOUNS[self.units]})"
        return f"{self._headline()}\n{table}"

    def _repr_html_(self) -> str:
        table = self.table().to_html(border=0, escape=True) if self.blocks else f"<p>no {_NOUNS[self.units]}</p>"
        return f"<p><b>{html.escape(self._headline())}</b></p>{table}"

    def _headline(self) -> str:
        kinds = pd.Series([block.skip_kind for block in self.blocks], dtype=str).value_counts(sort=False)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        library = f" ({self.description.library})" if self.description else ""
        skips = f", skips: {counts}" if counts and self.units == "blocks" else ""
        optimized = f", optimized: {', '.join(self.optimize)}" if self.optimize else ""
        return f"{self.name}{library}: {len(self.blocks)} {_NOUNS[self.units]}{skips}{optimized}"
