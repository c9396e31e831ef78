"""The benchmarks run, compare like with like, and say what they did not measure. No test here asserts a time."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddetr_lite.benchmarks import msda, msda_peers, step
from ddetr_lite.cli import main
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.kernels import multi_scale_deformable_attention

TINY = msda.Setting(((6, 4), (3, 2)), dim=32, batch=2, heads=2, points=2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msda, "SETTINGS", {"the first is too large for a CPU": TINY, "tiny": TINY})
    monkeypatch.setattr(msda, "memory_bandwidth", lambda device: 1e10)


def results(peer: msda_peers.Peer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The output, and the gradients of values, locations and weights."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = peer(leaves[0], list(TINY.levels), leaves[1], leaves[2])
    sensitivity = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return output, *torch.autograd.grad(output, leaves, sensitivity)


@pytest.mark.parametrize("kind", ["model-like", "uniform"])
@pytest.mark.parametrize("peer", [msda_peers.grid_sample_form, msda_peers.gather_form])
def test_forms_give_the_same_output_and_gradients(peer: msda_peers.Peer, kind: msda.Kind) -> None:
    inputs = tuple(t.double() for t in msda.make_input(TINY, kind, torch.device("cpu"), torch.float32, seed=0))
    for one, other in zip(results(peer, inputs), results(multi_scale_deformable_attention, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["hugging-face", "deformops", "torch-ms-deform-attn"])
def test_peers_of_others_give_the_same_output_and_gradients(name: str) -> None:
    """Those that run on a CPU, where they are installed; `measure` compares outputs alone before it times."""
    package, make = msda_peers.PEERS[name]
    pytest.importorskip(str(package))
    inputs = msda.make_input(TINY, "model-like", torch.device("cpu"), torch.float32, seed=0)
    for one, other in zip(results(make(), inputs), results(multi_scale_deformable_attention, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_model_like_locations_lie_around_the_query() -> None:
    """On every level within a few cells of the query's own place; uniform ones lie anywhere."""
    near, far = (
        msda.make_input(TINY, kind, torch.device("cpu"), torch.float32, seed=0)[1] for kind in ("model-like", "uniform")
    )
    sizes = torch.tensor([(4, 6), (2, 3)])[:, None]
    place = msda._places(TINY)[:, :, None, None, None]
    assert ((near - place) * sizes).abs().mean() < 2.5
    assert far.min() >= 0
    assert far.max() <= 1
    assert torch.equal(place[0, 0].flatten(), torch.tensor([0.5 / 4, 0.5 / 6]))


def test_command_writes_what_it_measured(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "msda"
    words = ["bench", "msda", "--device", "cpu", "--peers", "hugging-face", "--repeats", "2", "--out", str(out)]
    assert main(words) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert out.with_suffix(".png").stat().st_size > 5000
    assert result["command"] == "ddetr-lite " + " ".join(words)
    assert result["machine"]["torch"] == torch.__version__
    assert [row["locations"] for row in result["rows"]] == ["model-like", "uniform"]
    for row in result["rows"]:
        assert list(row["peers"]) == ["ddetr_lite", "grid_sample", "hugging-face"]
        assert all(found["forward"] > 0 and found["both"] > 0 for found in row["peers"].values())
        assert row["ours"] == "ddetr_lite (cpu)"
    assert "tiny, uniform locations" in capsys.readouterr().out


def test_peers_that_cannot_run_are_named(
    tiny: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(msda_peers.PEERS, "compiled-gather")  # compiling takes a while
    assert main(["bench", "msda", "--device", "cpu", "--repeats", "1"]) == 0
    assert "not measured: official-cuda (the package MultiScaleDeformableAttention is not" in capsys.readouterr().out
    assert main(["bench", "msda", "--peers", "official-cuda", "--device", "cpu"]) == 2
    assert "--peer official-cuda: the package" in capsys.readouterr().err
    assert main(["bench", "msda", "--peers", "mmcv", "--device", "cpu"]) == 2
    assert "peer 'mmcv' is unknown: choose from" in capsys.readouterr().err
    assert main(["bench", "msda", "--settings", "huge", "--device", "cpu"]) == 2
    assert "--settings 'huge' is unknown: choose from " in capsys.readouterr().err
    assert main(["bench", "speed"]) == 2
    assert "bench 'speed' is unknown" in capsys.readouterr().err


def test_a_peer_with_another_result_is_not_timed() -> None:
    def wrong(value: Tensor, level_shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, list(TINY.levels), locations.flip(-1), weights)

    inputs = msda.make_input(TINY, "uniform", torch.device("cpu"), torch.float32, seed=0)
    peers: dict[str, msda_peers.Peer] = {"ddetr_lite": multi_scale_deformable_attention, "wrong": wrong}
    with pytest.raises(ValueError, match="wrong gives another result than ddetr_lite"):
        msda.measure(peers, TINY, inputs, repeats=1)


def test_floor_counts_every_byte_once() -> None:
    """By hand: 60 tokens × 32 channels × 4 bytes in and out; 2 · 30 · 2 · 2 · 2 = 480 samples × 12 bytes."""
    value = msda.make_input(TINY, "uniform", torch.device("cpu"), torch.float32, seed=0)[0]
    least = msda.floors(TINY, value, bandwidth=1e6, clock_ghz=1.0)
    forward = 2 * 60 * 32 * 4 + 480 * 12
    assert least["memory forward"] == pytest.approx(forward / 1e6 * 1e3)
    assert least["memory backward"] == pytest.approx((forward + 60 * 32 * 4 + 480 * 12) / 1e6 * 1e3)


def test_ratios_and_table_are_against_the_grid_sample_form() -> None:
    found = {"ddetr_lite": {"forward": 1.0, "both": 2.0}, "grid_sample": {"forward": 4.0, "both": 10.0}}
    row = {"setting": "s", "locations": "uniform", "ours": "ddetr_lite (cpu)", "peers": found}
    result = {"rows": [{**row, "floor ms": {"memory forward": 0.5}}], "not measured": {}}
    assert msda.ratios(result) == {"s, uniform": {"ddetr_lite": 5.0, "grid_sample": 1.0}}
    ours = msda.table(result).splitlines()[2].split()
    assert ours == ["ddetr_lite", "1.00", "ms", "4.00", "50%", "2.00", "ms", "5.00", "–"]


def test_a_training_step_is_the_same_work_on_both_sides() -> None:
    """The same loss, the same trained parameters and the same gradients before the clock runs."""
    options = step.StepOptions(size=64, dim=32, layers=2, queries=9, objects=2)
    ours, theirs = step.pair(options, torch.device("cpu"))
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert counts[0] == counts[1]
    made, losses = step.steps(options, torch.device("cpu"))
    one, other = (losses[name]() for name in ("ddetr_lite", "hugging-face"))
    assert one.item() == pytest.approx(other.item(), rel=1e-4)
    assert made["ddetr_lite"]().item() == pytest.approx(made["hugging-face"]().item(), rel=1e-4)


def test_step_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--size", "64", "--dim", "32", "--layers", "2", "--queries", "9", "--objects", "2", "--repeats", "1"]
    out = tmp_path / "step"
    assert main(["bench", "step", "--device", "cpu", *tiny, "--out", str(out)]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert set(result["median ms"]) == {"ddetr_lite", "hugging-face"}
    assert "× that of ddetr_lite" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_measured_against_peers_that_know_float32_only(tiny: None, dtype: str) -> None:
    assert (
        main(["bench", "msda", "--device", "cpu", "--dtype", dtype, "--peers", "hugging-face", "--repeats", "1"]) == 0
    )


def test_input_makes_the_same_epoch_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shapes(
        tmp_path / "shapes", ShapesConfig(size=48, min_size=0.15, train_images=9, val_images=2), progress=False
    )
    words = f"bench input --recipe shapes --model detr --folder {folder} --batch 4 --workers 1 --repeats 2 --device cpu"
    assert main([*words.split(), "--out", str(tmp_path / "input")]) == 0
    result = json.loads((tmp_path / "input.json").read_text(encoding="utf-8"))
    assert result["pictures"] == 8
    assert {name: len(each) for name, each in result["seconds"].items()} == {"from files": 2, "on the device": 2}
    ratio = result["speed from files, as a share of that from the device"]
    speeds = result["pictures per second"]
    assert ratio == pytest.approx(speeds["from files"] / speeds["on the device"])
    assert f"{ratio:.3f} × on the device" in capsys.readouterr().out
    assert main(["bench", "input", "--recipe", "shape"]) == 2


def test_a_checkout_that_cannot_be_used_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench step --device cpu --size 64 --layers 2 --queries 5 --dim 64 --objects 2 --official"
    words = command.split()
    assert main([*words, str(tmp_path)]) == 2
    assert "models/deformable_detr.py is missing" in capsys.readouterr().err
    (tmp_path / "models").mkdir()
    for name in ("__init__", "backbone", "deformable_detr"):
        (tmp_path / "models" / f"{name}.py").touch()
    assert main([*words, str(tmp_path)]) == 2
    assert "build its operation first" in capsys.readouterr().err
