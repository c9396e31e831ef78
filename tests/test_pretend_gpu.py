"""Training and prediction as on a GPU, on machines without one: each tensor where it should be, the numbers of a CPU, and no
wait that nobody knows of. (While a program waits it tells the chip nothing, which then runs out of work.)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import GPU, OnGpu, Wait, pretend_gpu
from test_engine import TINY, tiny_recipe
from test_training_path import small_model
from torch import Tensor, nn

from ddetr_lite import kernels
from ddetr_lite.batching import RawBatch
from ddetr_lite.cli import main
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.loading import Batch
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.engine.average import average_of
from ddetr_lite.engine.checkpoint import load_model
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.evaluate import detect
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.muon import Muon
from ddetr_lite.engine.optimization import make_optimizers
from ddetr_lite.engine.predict import predict
from ddetr_lite.engine.profile import profile
from ddetr_lite.engine.recipes import TrainConfig
from ddetr_lite.engine.run import State
from ddetr_lite.engine.step import Step
from ddetr_lite.engine.train import train
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.presets import Model

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu runs there"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set"),
]

MATCHING = "set_prediction/matching.py: numbers = torch.cat([part.flatten().float() for part in parts]).cpu().numpy()"


@pytest.fixture(autouse=True)
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels have their own tests, in the interpreter; here the other way is taken."""
    monkeypatch.setattr(kernels, "triton", None)


def batch_of(seed: int, smaller: int = 1) -> Batch:
    """Two pictures of different shapes, three objects. smaller: divides all sides."""
    random = torch.Generator().manual_seed(seed)
    shapes = tuple((height // smaller, width // smaller) for height, width in ((64, 48), (48, 64)))
    pictures = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=random) for shape in shapes]
    boxes = torch.tensor([[4.0, 4, 20, 30], [10, 10, 40, 40], [0, 0, 30, 20]])
    return Batch(
        RawBatch.of(pictures),
        boxes / smaller,
        torch.tensor([0, 2, 1]),
        [2, 1],
        torch.tensor([7, 8]),
        torch.tensor(shapes),
    )


def off_the_cells(model: Model) -> Model:
    """The model with points a little off the cells that they begin on, where a map has two slopes: rounding decides which one
    a kernel takes, and both are right.
    """
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                bias.add_(torch.linspace(0.1, 0.4, len(bias)))
    return model


def learn(
    device: str,
    row: str,
    change: dict[str, Any],
    accumulate: int = 1,
    smaller: int = 1,
    steps: int = 2,
    dropout: float = 0.1,
) -> tuple[dict[str, float], float, nn.Module]:
    """Losses and the gradient's length in the last of some steps, and the model after it, with its gradients."""
    model = off_the_cells(small_model(row, 3, sizes={**TINY, "dropout": dropout}, **change)).to(device).train()
    settings = TrainConfig(optimizer="muon", ema=0.9, precision="fp32", accumulate=accumulate)
    state = State(model, make_optimizers(model, settings), average_of(model, settings.ema))
    step = Step(state, settings, World(torch.device(device)))
    for number in range(steps):
        losses, norm = step([batch_of(accumulate * number + piece, smaller) for piece in range(accumulate)], 1e-4)
    return {name: float(loss) for name, loss in losses.items()}, float(norm), model


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr", {}),
    "detr-dc5": ("detr-dc5", {}),
    "deformable-detr": ("deformable-detr", {}),
    "own level": ("deformable-detr", {"own_level": True}),
    "two stages, hints": ("deformable-detr-two-stage", {"hints": 2}),
    "batch norms that are trained": ("deformable-detr-refine", {"backbone": BackboneConfig("resnet18", frozen=False)}),
    "mobilenet": ("deformable-detr-single-scale", {"backbone": BackboneConfig("mobilenet_v2")}),
}


@pytest.mark.parametrize(("case", "pieces"), [*((case, 1) for case in CASES), ("detr", 2), ("two stages, hints", 2)])
def test_a_step_is_that_of_a_cpu_and_waits_for_the_matching_alone(
    case: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, change = CASES[case]
    monkeypatch.setitem(kernels.BACKENDS, "cpu", kernels.BACKENDS["reference"])  # the way taken on the GPU, to the bit
    losses, norm, model = learn("cpu", row, change, pieces)
    with pretend_gpu() as waits:
        other_losses, other_norm, other = learn("cuda", row, change, pieces)
        assert all(p.device == GPU for p in other.parameters())
        gradients = {name: p.grad.cpu() for name, p in other.named_parameters() if p.grad is not None}
    assert other_losses == pytest.approx(losses, rel=1e-4)
    assert other_norm == pytest.approx(norm, rel=1e-4)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():  # weights are no measure: AdamW makes a step of what is but rounding
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.norm()) + 1e-8 * norm + 1e-6, msg=name
        )
    of_package = Counter(wait.where for wait in waits if not wait.where.startswith("the test"))
    assert of_package == {MATCHING: 2 * pieces}


def test_a_step_of_faster_rcnn() -> None:
    """torchvision's own code waits wherever it looks for boxes; ours does not beside it."""
    losses, norm, _ = learn("cpu", "faster-rcnn", {})
    with pretend_gpu() as waits:
        other_losses, other_norm, _ = learn("cuda", "faster-rcnn", {})
    assert other_losses == pytest.approx(losses, rel=1e-4)
    assert other_norm == pytest.approx(norm, rel=1e-4)
    own = {wait.where for wait in waits if not wait.where.startswith("the test")}
    assert own == {"models/faster_rcnn.py: losses: dict[str, Tensor] = super().forward(scaled, wanted)"}


def test_muon_skips_a_step_without_a_look() -> None:
    """A step whose gradient is not finite changes no bit; one that is fine is that of a CPU. Neither waits."""
    start = [torch.randn(4, 6), torch.randn(6, 4), torch.randn(8, 2, 3, 3)]
    gradients = [[torch.randn_like(p) for p in start] for _ in range(3)]
    gradients[1][0][2, 3], gradients[1][2][0, 0, 0] = float("nan"), float("inf")

    def steps(device: str, skipped: Sequence[int]) -> tuple[list[torch.nn.Parameter], list[Tensor]]:
        parameters = [torch.nn.Parameter(p.to(device)) for p in start]
        muon = Muon(parameters, lr=0.02, momentum=0.95, weight_decay=0.3)
        for number, own in enumerate(gradients):
            if device == "cpu" and number in skipped:
                continue
            for parameter, gradient in zip(parameters, own, strict=True):
                parameter.grad = gradient.to(device)
            muon.found_inf = torch.full((), float(number in skipped)).to(device)
            muon.step()
        return parameters, [muon.state[p]["momentum_buffer"] for p in parameters]

    with pretend_gpu() as waits:
        parameters, momenta = steps("cuda", [1])
        assert [wait for wait in waits if not wait.where.startswith("the test")] == []
        found = [x.detach().cpu() for x in (*parameters, *momenta)]
    parameters, momenta = steps("cpu", [1])
    torch.testing.assert_close(found, [x.detach() for x in (*parameters, *momenta)])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, ShapesConfig(size=48, min_size=0.15, train_images=8, val_images=3), progress=False)


@pytest.mark.parametrize("row", ["detr", "deformable-detr-two-stage", "faster-rcnn"])
def test_a_whole_run_with_forecast_evaluation_and_resume(
    shapes: Path, tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first line of its log to its checkpoints, which are read where there is no GPU."""
    monkeypatch.setitem(kernels.BACKENDS, "cpu", kernels.BACKENDS["reference"])
    recipe = tiny_recipe(
        shapes, row, epochs=2, precision="fp32", optimizer="muon", ema=0.5, forecast=True, evaluate_every=1
    )
    train(replace(recipe, train=replace(recipe.train, device="cpu")), tmp_path / "cpu", progress=False)
    with pretend_gpu():
        on_gpu = replace(recipe, train=replace(recipe.train, device="cuda"))
        train(on_gpu, tmp_path / "gpu", progress=False)
        assert train(on_gpu, tmp_path / "gpu", resume=True, progress=False) == {}  # it is over
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("cpu", "gpu")]
    assert "pretended" in logs[1][0]["device"]
    for one, other in zip(
        *([line for line in log if line["kind"] in ("train", "evaluate")] for log in logs), strict=True
    ):
        assert other.get("memory_bytes", 0) == (10**6 if other["kind"] == "train" else 0)
        ours = {k: v for k, v in one.items() if k.startswith(("loss", "AP", "gradient"))}
        assert {k: other[k] for k in ours} == pytest.approx(ours, rel=1e-4, abs=1e-6)
    for name in ("best.pt", "last.pt"):
        one, other = (load_model(tmp_path / device / name).model.state_dict() for device in ("cpu", "gpu"))
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_prediction_is_that_of_a_cpu(shapes: Path, tmp_path: Path) -> None:
    """Detections come back to the CPU, where they are drawn and judged."""
    recipe = tiny_recipe(shapes, "deformable-detr-two-stage", epochs=1, device="cpu")
    train(recipe, tmp_path / "run", progress=False)
    loaded = load_model(tmp_path / "run" / "best.pt")
    picture = read_picture(sorted((shapes / "val").glob("*.png"))[0])
    expected = predict(loaded, picture, threshold=0.0)
    assert expected
    with pretend_gpu():
        loaded.model.to("cuda")
        found = predict(loaded, picture, threshold=0.0)
    assert [f.label for f in found] == [f.label for f in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.box == pytest.approx(other.box, abs=1e-3)


def test_commands_that_name_a_gpu(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "__defaults__", (2,))  # steps
    run, on_gpu = tmp_path / "run", ("--device", "cuda")
    small = {"hidden": 32, "encoder-layers": 1, "decoder-layers": 2, "queries": 8, "backbone.name": "tiny", "batch": 4}
    options = {**small, "precision": "fp32", "workers": 0, "folder": shapes, "device": "cuda"}
    training = ["train", "shapes", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    commands = [
        [*training, "--epochs", "1", "--out", str(run)],
        [*training, "--profile"],
        ["evaluate", str(run), "--workers", "0", *on_gpu],
        ["predict", str(run), str(shapes / "val"), "--threshold", "0", "--out", str(tmp_path / "found"), *on_gpu],
        ["explain", str(run), "--steps", "2", *on_gpu],
        ["bench", "msda", "--settings", "small-64", "--peers", "grid_sample", "--repeats", "1", *on_gpu],
    ]
    with pretend_gpu() as waits:
        for command in commands:
            before = len(waits)
            assert main(command) == 0, capsys.readouterr().err
            assert len(waits) > before, command  # so it was there
    assert "GPU memory: at most 0.00 GB" in capsys.readouterr().out


# ---------------------------------------------------------------- what the pretended GPU itself notices


def test_operands_on_two_devices_are_an_error() -> None:
    with pretend_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(there, OnGpu)
        assert there.device == GPU
        assert there.is_cuda
        for broken in (
            lambda: there + here,
            lambda: here + there,
            lambda: torch.where(there > 0, here, there),
            lambda: there.add_(here),
            lambda: torch.cat((there, here)),
            lambda: there.index_add(0, torch.tensor([0]), there[:1]),
        ):
            with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
                broken()
        with pytest.raises(RuntimeError, match="a list of indices: a wait"):
            there[[0, 2]]
        assert (there * torch.tensor(2.0)).sum().item() == 6  # a single number goes along, as on a chip


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.ones(3).copy_(x, non_blocking=True),
        lambda x: torch.repeat_interleave(x, (x > 0).long()),
    ],
)
def test_waits_are_seen(look: Any) -> None:
    with pretend_gpu() as waits:
        x = torch.zeros(3, device="cuda").fill_(1)
        assert waits == []
        look(x)
        assert len(waits) == 1
        assert isinstance(waits[0], Wait)


def test_what_needs_no_wait() -> None:
    with pretend_gpu() as waits:
        x = torch.ones(3, 2, device="cuda", requires_grad=True)
        y = torch.zeros(2, 4).to("cuda", non_blocking=True)
        loss = (x @ y).relu()[torch.zeros(2, dtype=torch.int64, device="cuda")].topk(2).values.sum()
        loss.backward()
        assert x.grad is not None
        assert x.grad.device == GPU
        assert waits == []


def test_detections_are_on_the_cpu(shapes: Path) -> None:
    data = CocoDetection(CocoFolder.find(shapes, "val"))
    with pretend_gpu():
        model = small_model("detr", 8).to("cuda")
        for _, found in detect(model, data, batch=2):
            assert all(values.device.type == "cpu" for values in found.values())
