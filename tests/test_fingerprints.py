"""A checkpoint is refused by any call whose result would be another one; fingerprints tell the two apart."""

import pytest
import torch
from networks import PreActivation, randomised
from small_studies import batches

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.running.cargo import packed, unpacked
from resnet_paths_plugin.errors import CheckpointError


class StoppedError(Exception):
    pass


class Loader:
    """Batches that stop before one of them, or do not."""

    def __init__(self, stop=None):
        self._stop = stop

    def __iter__(self):
        for number, batch in enumerate(batches()):
            if number == self._stop:
                raise StoppedError
            yield batch


class Tempered(PreActivation):
    """Multiplies its outputs by a tensor that is neither parameter nor buffer."""

    def __init__(self, temperature):
        super().__init__(blocks=4)
        self.temperature = torch.tensor(temperature)

    def forward(self, x):
        return super().forward(x) * self.temperature


class Clamped(PreActivation):
    """Clamps its input in a region without gradients, which is a graph of its own in the captured one."""

    def __init__(self, most):
        super().__init__(blocks=4)
        self.most = most

    def forward(self, x):
        with torch.no_grad():
            x = x.clamp(-self.most, self.most) * 1
        return super().forward(x)


def seeded(make):
    torch.manual_seed(1)
    return randomised(make()).eval()


def lesions(model, checkpoint, stop=None, **options):
    return rpp.BlockLesion(model).attribute(Loader(stop), run=rpp.RunOptions(checkpoint=checkpoint), **options)


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Tempered, "content of constants of the graph is another one"), (Clamped, "operators of the graph was sha256:")],
)
def test_a_model_that_differs_in_what_is_no_parameter_is_refused(tmp_path, kind, told):
    with pytest.raises(StoppedError):
        lesions(seeded(lambda: kind(2.0)), tmp_path / "run.nc", stop=2)
    with pytest.raises(CheckpointError, match=told):
        lesions(seeded(lambda: kind(0.5)), tmp_path / "run.nc")
    lesions(seeded(lambda: kind(2.0)), tmp_path / "run.nc")


def test_a_network_with_a_nested_graph_is_sent_as_it_is():
    net = rpp.unravel(seeded(lambda: Clamped(0.5)), batches()[0][0])
    assert unpacked(packed(net)).graph_digest() == net.graph_digest()
