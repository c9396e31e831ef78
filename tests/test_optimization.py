"""Muon, parameter groups and the learning rate."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ddetr_lite.engine.muon import COEFFICIENTS, STEPS, Muon, orthogonalize
from ddetr_lite.engine.optimization import is_matrix, learning_rate, make_optimizers, parameter_groups
from ddetr_lite.engine.recipes import TrainConfig
from ddetr_lite.models.presets import build, model_config

SHAPES = [(24, 24), (24, 24), (40, 24), (24, 40)]


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as it was published, one matrix at a time; only its start is divided by ‖XXᵀ‖^½."""
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x @ x.T).norm().sqrt()
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (16, 144)])
@pytest.mark.parametrize("rank", [None, 3])
def test_orthogonalize_is_the_published_iteration(shape: tuple[int, int], rank: int | None) -> None:
    """Also for gradients of few directions, whose small singular values are squared on the way."""
    matrices = torch.randn(2, *shape)
    if rank is not None:
        matrices = torch.randn(2, shape[0], rank) @ torch.randn(2, rank, shape[1])
    expected = torch.stack([newton_schulz(m.double()) for m in matrices])
    assert torch.allclose(orthogonalize(matrices).double(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 288)])
def test_orthogonalize_keeps_the_directions_and_evens_their_lengths(shape: tuple[int, int]) -> None:
    """Against the singular value decomposition: for singular values from 1 down to a twentieth."""
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(1, 0.05, min(shape))
    found = left.T @ orthogonalize((left * values @ right)[None])[0] @ right.T
    lengths = found.diagonal()
    assert (found - lengths.diag()).abs().max() < 1e-4
    assert 0.65 < lengths.min() < lengths.max() < 1.25


def test_orthogonalize_of_zero_is_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 16)), torch.zeros(2, 8, 16))


def test_muon_goes_where_torchs_goes() -> None:
    """torch's starts from another length and takes one step more, in bfloat16: so the same way, nearly as far."""
    ours = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    first = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.3)
    second = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.3)
    start = [p.detach().clone() for p in ours]
    for _ in range(6):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b, origin in zip(ours, theirs, start, strict=True):
        way, expected = (a.detach() - origin).flatten(), (b.detach() - origin).flatten()
        assert torch.cosine_similarity(way, expected, dim=0) > 0.98
        assert way.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)


def test_muon_takes_convolutions_as_matrices() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1).clone()
    Muon([kernel]).step()
    Muon([matrix]).step()
    assert torch.allclose(kernel.flatten(1), matrix, atol=1e-6)


def test_muon_leaves_alone_what_has_no_gradient() -> None:
    still = nn.Parameter(torch.randn(8, 8))
    before = still.detach().clone()
    Muon([still]).step()
    assert torch.equal(still, before)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match=r"not for a parameter of shape \(5,\)"):
        Muon([nn.Parameter(torch.zeros(5))])


@pytest.mark.parametrize("row", ["deformable-detr-refine", "deformable-detr-two-stage", "detr", "faster-rcnn"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_trainable_parameter_is_in_one_group(row: str, kind: str) -> None:
    model = build(model_config(row, "small"), 3)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    config = TrainConfig(lr=0.01, backbone_lr=0.1, sampling_lr=0.2, optimizer=kind, muon_lr=0.05)  # type: ignore[arg-type]
    groups = parameter_groups(model, config)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p is not frozen)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in groups:
        expected = {"backbone": 0.1, "sampling": 0.2, "rest": 1.0}[group["name"]] * (
            0.05 if group["optimizer"] == "muon" else 0.01
        )
        assert group["lr"] == pytest.approx(expected)
        assert group["factor"] == pytest.approx(expected / 0.01)
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert (group["optimizer"] == "muon") == (kind == "muon" and is_matrix(name, parameter))
            assert (group["name"] == "backbone") == (name.startswith("backbone") and ".fpn." not in name)
            assert (group["name"] == "sampling") == ("sampling_offsets" in name or "reference_points" in name)
    optimizers = make_optimizers(model, config)
    assert [type(o).__name__ for o in optimizers] == (["Muon", "AdamW"] if kind == "muon" else ["AdamW"])
    assert sorted(id(p) for o in optimizers for g in o.param_groups for p in g["params"]) == sorted(ids)


def test_what_muon_takes() -> None:
    """Weights of linear layers and convolutions; no biases, norms, tables of vectors, class heads or depthwise convolutions."""
    model = build(model_config("deformable-detr", "small"), 30)
    taken = {name for name, p in model.named_parameters() if is_matrix(name, p)}
    assert {"input_proj.0.0.weight", "transformer.encoder.layers.0.self_attn.value_proj.weight"} <= taken
    assert {"bbox_embed.0.layers.0.weight", "backbone.0.body.layer1.0.conv1.weight"} <= taken
    others = {"query_embed.weight", "transformer.level_embed", "class_embed.0.weight", "bbox_embed.0.layers.2.weight"}
    assert not others & taken
    assert not is_matrix("features.1.conv.0.0.weight", nn.Parameter(torch.zeros(32, 1, 3, 3)))


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_steps=4, schedule="step", drop_epoch=6)
    rates = [learning_rate(step, config, steps_per_epoch=5) for step in range(50)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[29] == 1.0
    assert rates[30] == pytest.approx(0.1)
    cosine = replace(config, warmup_steps=0, schedule="cosine")
    assert learning_rate(25, cosine, 5) == pytest.approx(0.5)
    linear = replace(cosine, schedule="linear")
    assert [learning_rate(step, linear, 5) for step in (0, 10, 49)] == pytest.approx([1.0, 0.8, 0.02])


@pytest.mark.parametrize(
    ("schedule", "share"),
    [("constant", 1), ("linear", 1 - 2 / 50), ("cosine", 0.5 + 0.5 * math.cos(math.pi * 2 / 50)), ("step", 1)],
)
def test_every_schedule_warms_up(schedule: Any, share: float) -> None:
    config = TrainConfig(epochs=10, lr=2.0, warmup_steps=8, drop_epoch=1, schedule=schedule)
    assert learning_rate(2, config, 5) == pytest.approx(2.0 * 3 / 8 * share)


def test_a_drop_during_the_warm_up_and_a_constant_rate() -> None:
    config = TrainConfig(epochs=10, lr=2.0, warmup_steps=8, drop_epoch=1)
    assert learning_rate(6, replace(config, schedule="step"), 5) == pytest.approx(2.0 * 7 / 8 * 0.1)
    constant = replace(config, warmup_steps=0, schedule="constant")
    assert [learning_rate(step, constant, 5) for step in (0, 25, 49)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_goes_as_far_as_torchs_without_decay(shape: tuple[int, int]) -> None:
    """With much weight decay most of the way is decay, and hides how long a step of a tall matrix is."""
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    first = Muon([ours], lr=0.02, weight_decay=0.0)
    second = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    for _ in range(6):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    way, expected = (ours.detach() - start).flatten(), (theirs.detach() - start).flatten()
    assert torch.cosine_similarity(way, expected, dim=0) > 0.97
    assert way.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)


def test_muons_decay_follows_the_learning_rate() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([weight], lr=0.02, weight_decay=0.5)
    optimizer.param_groups[0]["lr"] = 0.1
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_the_thinnest_matrix_for_muon() -> None:
    assert is_matrix("x.weight", nn.Parameter(torch.zeros(16, 40)))
    assert not is_matrix("x.weight", nn.Parameter(torch.zeros(15, 40)))


def test_optimizers_take_the_recipes_decay_and_muons_momentum() -> None:
    model = build(model_config("deformable-detr-two-stage", "small"), 3)
    config = TrainConfig(optimizer="muon", weight_decay=0.03, muon_weight_decay=0.07)
    muon, adamw = make_optimizers(model, config)
    assert {group["weight_decay"] for group in muon.param_groups} == {0.07}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.03}
    assert {group["momentum"] for group in muon.param_groups} == {0.95}
