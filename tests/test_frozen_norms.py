"""Frozen batch norms, folded into convolutions, do what torchvision's frozen batch norms do behind them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torchvision
from parity_models import random_statistics
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.frozen_norms import FoldedConv2d, FoldedNorm, freeze_batch_norms, watch_norms


class Branches(nn.Module):
    """Norms at places where they can be folded, and at others where they cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False, padding_mode="reflect")
        self.norm1 = nn.BatchNorm2d(8, eps=0.3)
        self.biased = nn.Conv2d(8, 8, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.rectified = nn.Conv2d(8, 8, 3, dilation=2, padding=2)
        self.norm3 = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 1)
        self.norm4 = nn.BatchNorm2d(8)
        self.norm5 = nn.BatchNorm2d(8)
        self.forked = nn.Conv2d(8, 8, 1)
        self.norm6 = nn.BatchNorm2d(8)
        self.norm7 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.grouped(x))
        x = self.norm2(self.biased(x)) + x
        x = self.norm3(self.rectified(x).relu_())  # the same tensor, changed meanwhile
        x = self.norm4(self.shared(x)) * self.shared(-x)
        x = self.forked(self.norm5(x + 1))
        return self.norm6(x) * self.norm7(x)


def test_only_what_is_the_same_is_folded() -> None:
    network = Branches().double().eval()
    random_statistics(network)
    pixels = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    expected = network(pixels)
    weights = torch.randn_like(expected)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    gradients = torch.autograd.grad((expected * weights).sum(), [p for m in convs for p in m.parameters()])

    with watch_norms(network) as pairs:
        network(pixels)
    freeze_batch_norms(network, pairs)
    kinds = {name: type(child) for name, child in network.named_children()}
    assert kinds == {
        "grouped": FoldedConv2d, "norm1": FoldedNorm, "biased": FoldedConv2d, "norm2": FoldedNorm,
        "rectified": nn.Conv2d, "norm3": FrozenBatchNorm2d, "shared": nn.Conv2d, "norm4": FrozenBatchNorm2d,
        "norm5": FrozenBatchNorm2d, "forked": nn.Conv2d, "norm6": FrozenBatchNorm2d, "norm7": FrozenBatchNorm2d,
    }  # fmt: skip
    frozen = network(pixels)
    torch.testing.assert_close(frozen, expected)
    torch.testing.assert_close(torch.autograd.grad((frozen * weights).sum(), list(network.parameters())), gradients)


def test_gradients_are_torchvisions(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    state = random_statistics(torchvision.models.resnet18())
    theirs.load_state_dict({k: v for k, v in state.items() if "tracked" not in k})
    torch.save(state, tmp_path / "weights.pth")
    ours = Backbone(BackboneConfig("resnet18", str(tmp_path / "weights.pth")), strides=(32,)).double().train()
    theirs.double().train()
    seen: dict[str, Tensor] = {}
    theirs.layer4.register_forward_hook(lambda _, __, y: seen.update(map=y))
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    theirs(pixels)
    (found,) = ours(pixels)
    torch.testing.assert_close(found, seen["map"])
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (seen["map"] * weights).sum().backward()
    learned = {k: p.grad for k, p in ours.body.named_parameters() if p.requires_grad}
    assert len(learned) == 15
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, theirs.get_parameter(name).grad)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("resnext50_32x4d", 53), ("mobilenet_v2", 52)])
def test_all_norms_of_a_backbone_are_folded(name: str, count: int) -> None:
    network = torchvision.models.get_model(name)
    keys = {k for k in network.state_dict() if not k.startswith(("fc.", "classifier.")) and "tracked" not in k}
    with torch.device("meta"):
        body = Backbone(BackboneConfig(name)).body
    assert set(body.state_dict()) == keys  # checkpoints do not know of it
    assert sum(isinstance(m, FoldedNorm) for m in body.modules()) == count
    assert sum(isinstance(m, FoldedConv2d) for m in body.modules()) == count
    assert not any(type(m) in (nn.BatchNorm2d, FrozenBatchNorm2d, nn.Conv2d) for m in body.modules())


@torch.no_grad()
def test_a_copy_and_a_loaded_backbone_use_their_own_numbers() -> None:
    first, second = (Backbone(BackboneConfig("resnet18")).eval() for _ in range(2))
    pixels = torch.randn(1, 3, 64, 64)
    before = first(pixels)
    copy = deepcopy(first)
    second.load_state_dict({k: 2 * v if "bn1.weight" in k else v for k, v in first.state_dict().items()})
    assert not torch.allclose(second(pixels)[-1], before[-1], rtol=0.1)
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(first(pixels), second(pixels))
    torch.testing.assert_close(copy(pixels), before)  # still what it was a copy of


@pytest.mark.parametrize("frozen", [True, False])
def test_a_backbone_can_be_made_in_inference_mode(frozen: bool) -> None:
    with torch.inference_mode():
        backbone = Backbone(BackboneConfig("resnet18", frozen=frozen)).eval()
        assert backbone(torch.randn(1, 3, 64, 64))[-1].isfinite().all()
    assert sum(isinstance(m, FoldedConv2d) for m in backbone.modules()) == (20 if frozen else 0)


def test_maps_stay_in_bfloat16() -> None:
    backbone = Backbone(BackboneConfig("resnet18"))
    dtypes = set()
    for module in backbone.modules():
        if isinstance(module, (FoldedConv2d, nn.ReLU)):
            module.register_forward_hook(lambda _, __, y: dtypes.add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        backbone(torch.randn(1, 3, 64, 64))
    assert dtypes == {torch.bfloat16}


def test_scale_and_shift_follow_their_buffers() -> None:
    """They are kept from one call to the next, and worked out anew wherever a buffer changes, in whatever way."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    pixels = torch.randn(1, 3, 2, 2)
    with watch_norms(network) as pairs:
        network(pixels)
    freeze_batch_norms(network, pairs)
    conv, norm = network
    assert isinstance(norm, FoldedNorm)
    assert isinstance(conv, FoldedConv2d)

    def expected() -> Tensor:
        y = nn.functional.conv2d(pixels, conv.weight)
        return nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    with torch.inference_mode():  # what is kept from here must serve in training, too
        network(pixels)
    network(pixels).sum().backward()
    assert conv.weight.grad is not None
    assert norm.affine()[0] is norm.affine()[0]
    for change in (
        lambda: norm.running_mean.add_(1.0),
        lambda: network.load_state_dict({k: torch.rand_like(v) for k, v in network.state_dict().items()}),
        lambda: setattr(norm, "weight", torch.full((4,), 3.0)),
    ):
        change()
        assert torch.allclose(network(pixels), expected(), atol=1e-5)
    pixels = pixels.double()
    assert torch.allclose(network.double()(pixels), expected(), atol=1e-12)
    assert torch.allclose(deepcopy(network)(pixels), expected(), atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_frozen_norms_keep_their_eps(own: bool) -> None:
    """EfficientNet's is 1e-3; folded into a convolution before it, or by itself."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1)
            self.act = nn.Identity() if own else nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(self.act(self.conv(x)))
            return found

    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    assert net.norm.running_var is not None
    net.norm.running_var.fill_(0.01)
    expected = net(x)
    with watch_norms(net) as pairs:
        net(x)
    freeze_batch_norms(net, pairs)
    torch.testing.assert_close(net(x), expected)
