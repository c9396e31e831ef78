"""The course's machinery: checks that diagnose, one's own parts in the package, glossary, equation map."""

import ast
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from notebook_cells import NOTEBOOKS, ROOT, exercises, read

from ddetr_lite import course
from ddetr_lite.course import printing, saving
from ddetr_lite.course.checking import examine
from ddetr_lite.course.equations import EQUATIONS
from ddetr_lite.course.exercises import Case, Exercise
from ddetr_lite.course.glossary import SYMBOLS
from ddetr_lite.course.registry import EXERCISES, find
from ddetr_lite.course.terms import TERMS, Term
from ddetr_lite.layers import attention
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.deformable_detr import DeformableDetr, DeformableDetrConfig
from ddetr_lite.models.detr import Detr, DetrConfig

BLOCKS = [block for path in NOTEBOOKS for block in exercises(path)]
STUBS = {block.name: read(path).cells[block.stub].source for path in NOTEBOOKS for block in exercises(path)}
ATTENTION = find("scaled_dot_product_attention")
numbered = itertools.count()

every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES.keys())


@pytest.fixture(autouse=True)
def _package_is_itself() -> Iterator[None]:
    yield
    course.reset()


def written(tmp_path: Path, name: str, text: str) -> Callable[..., Any]:
    """A function as a learner writes it, from text; its source can be found."""
    path = tmp_path / f"learner_{next(numbered)}.py"
    path.write_text(f"import math\n\nimport torch\n\n{text}\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def solution(tmp_path: Path, name: str) -> Callable[..., Any]:
    """The function in the solution's block of the notebook."""
    (text,) = [block.solution for block in BLOCKS if block.name == name]
    return written(tmp_path, name, text)


# --- every exercise --------------------------------------------------------------------------------------


@every_exercise
def test_reference_is_right(exercise: Exercise) -> None:
    assert examine(exercise, exercise.reference)


@every_exercise
def test_untouched_stub_gives_a_hint_and_raises_nothing(
    exercise: Exercise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = written(tmp_path, exercise.name, STUBS[exercise.name])
    assert not course.check(exercise.name, stub)
    said = capsys.readouterr().out
    assert all(len(line) <= printing.WIDTH for line in said.splitlines())
    assert f"{exercise.name} is not written yet" in said
    assert " ".join(exercise.task.split()) in " ".join(said.split())
    assert not course.use(exercise.name, stub, folder=tmp_path)


@every_exercise
def test_solution_passes(exercise: Exercise, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert course.check(exercise.name, solution(tmp_path, exercise.name))
    assert capsys.readouterr().out == f"✓ {exercise.name}: right on all {len(exercise.cases())} inputs.\n"


@every_exercise
def test_each_mistake_gives_its_own_message(exercise: Exercise) -> None:
    assert len(exercise.mistakes) >= 3
    messages = [mistake.message for mistake in exercise.mistakes]
    assert len(set(messages)) == len(messages)
    for mistake in exercise.mistakes:
        verdict = examine(exercise, mistake.wrong)
        assert not verdict
        first = verdict.text.splitlines()[0]
        assert first == f"✗ {exercise.name}: it looks as if {mistake.message}"
        assert "another difference" not in verdict.text


@every_exercise
def test_solution_plugs_in_and_out(exercise: Exercise, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if exercise.part is None:
        assert course.use(exercise.name, solution(tmp_path, exercise.name), folder=tmp_path)
        assert "nothing to plug in" in capsys.readouterr().out
        return
    home = sys.modules[exercise.part.__module__]
    assert course.use(exercise.name, solution(tmp_path, exercise.name), folder=tmp_path / "kept")
    assert getattr(home, exercise.part.__name__) is not exercise.part
    assert places(exercise.part) == []
    course.reset(exercise.name)
    assert getattr(home, exercise.part.__name__) is exercise.part
    assert (tmp_path / "kept" / f"{exercise.name}.py").exists()


def places(function: Callable[..., Any]) -> list[str]:
    """Where the package, `course` left aside, holds this very function."""
    return [
        f"{name}.{attribute}"
        for name, module in sys.modules.items()
        if name.startswith("ddetr_lite.") and not name.startswith("ddetr_lite.course")
        for attribute, value in vars(module).items()
        if value is function
    ]


# --- diagnoses of any function ---------------------------------------------------------------------------

BODIES = {
    "return None": "returned None",
    "return (query @ key.transpose(-2, -1)).tolist()": "returned a list",
    "return query @ key": "your function raised RuntimeError",
    "return value[..., :1, :] * 2": "the numbers differ",
    "return query.sum((-2, -1))": "the result has shape (), where (1, 2) is expected",
    "return (query @ key.transpose(-2, -1)).log() @ value": "the numbers differ",
    "return (query @ key.transpose(-2, -1) * torch.nan) @ value": "NaN",
    "return ((query @ key.transpose(-2, -1)).softmax(-1) @ value).int()": "dtype torch.int32",
}


@pytest.mark.parametrize(("body", "message"), BODIES.items())
def test_general_diagnosis(tmp_path: Path, body: str, message: str) -> None:
    function = written(tmp_path, "wrong", f"def wrong(query, key, value, mask=None):\n    {body}\n")
    verdict = examine(ATTENTION, function)
    assert not verdict
    assert message in verdict.text
    assert "it looks as if" not in verdict.text
    assert "seen on: one query, three keys" in verdict.text


def test_results_that_are_no_tensors_are_shown(tmp_path: Path) -> None:
    body = "def wrong(height, width, short_side, max_side):\n    return {}\n"
    for returned, message in (("[1, 2]", "returned a list, where a tuple is expected"), ("(1, 2)", "another")):
        verdict = examine(find("resized_size"), written(tmp_path, "wrong", body.format(returned)))
        assert message in verdict.text
        assert f"expected (337, 288)\n  got      {returned}" in verdict.text


def test_an_error_is_shown_with_the_learners_line(tmp_path: Path) -> None:
    function = written(
        tmp_path, "wrong", "def wrong(query, key, value, mask=None):\n    x = 1\n    return value[7] + x\n"
    )
    assert "in line 3 of your function: return value[7] + x" in examine(ATTENTION, function).text


def test_two_mistakes_are_named_one_after_the_other(tmp_path: Path) -> None:
    text = """def wrong(query, key, value, mask=None):
    scores = query @ key.transpose(-2, -1){scale}
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value"""
    first = examine(ATTENTION, written(tmp_path, "wrong", text.format(scale="")))
    assert "it looks as if the scores are not divided by √D" in first.text
    assert "another difference behind this one" in first.text
    second = examine(ATTENTION, written(tmp_path, "wrong", text.format(scale=" / query.shape[-1] ** 0.5")))
    assert "it looks as if the mask is inverted" in second.text
    assert "another difference" not in second.text


FORMS = {  # slips written as learners write them, not as the exercise's own mistakes do
    "bilinear_sample": (
        """def wrong(feature, x, y):
    column, row = math.floor(x), math.floor(y)
    result = torch.zeros(feature.shape[2])
    for i in (row, row + 1):
        for j in (column, column + 1):
            if 0 <= i < feature.shape[0] and 0 <= j < feature.shape[1]:
                result = result + (1 - abs(x - j)) * (1 - abs(y - i)) * feature[i, j]
    return result""",
        "NaN is not asked for first",
    ),
    "inverse_sigmoid": (
        """def wrong(x, eps):
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))""",
        "x is kept in eps..1 − eps",
    ),
    "matching_cost": (
        """def wrong(probabilities, boxes, labels, target_boxes):
    from ddetr_lite.set_prediction.boxes import generalized_box_iou
    distance = (boxes[:, None] - target_boxes).abs().sum(-1)
    return 5 * distance - probabilities[:, labels] - 2 * generalized_box_iou(boxes[:, None], target_boxes)""",
        "the GIoU is taken of (cx, cy, w, h)",
    ),
    "average_precision": (
        """def wrong(scores, right, objects):
    found, result = 0, 0.0
    for said, i in enumerate(scores.argsort(descending=True), 1):
        if right[i]:
            found += 1
            result += found / said
    return torch.tensor(result / objects)""",
        "the precisions at the right detections are added",
    ),
    "multi_scale_attention": (
        """def wrong(value, level_shapes, locations, weights):
    from ddetr_lite.kernels.reference import bilinear_sample
    B, N_q, M, L, P, _ = locations.shape
    maps = value.split([h * w for h, w in level_shapes], dim=1)
    result = torch.zeros(B, N_q, M, value.shape[-1])
    for b, q, m, l, p in torch.cartesian_prod(*map(torch.arange, (B, N_q, M, L, P))).tolist():
        h, w = level_shapes[l]
        x, y = locations[b, q, m, l, p].tolist()
        sample = bilinear_sample(maps[l][b, :, m].reshape(h, w, -1), x * w, y * h)
        result[b, q, m] += weights[b, q, m, l, p] * sample
    return result.flatten(2)""",
        "half a cell is missing",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_slips_are_named_in_a_learners_own_words(name: str, tmp_path: Path) -> None:
    text, message = FORMS[name]
    verdict = examine(find(name), written(tmp_path, "wrong", text))
    assert f"it looks as if {message}" in verdict.text
    assert "another difference" not in verdict.text


def test_numbers_that_differ_never_look_alike() -> None:
    said = printing.comparison(torch.tensor(0.46667), torch.tensor(0.46733))
    assert said == ["expected 0.4673", "got      0.4667"]
    table = torch.linspace(1, 2, 20)
    assert printing.comparison(table + 2e-5 * (table == 2), table) == [
        "largest difference at [19]: expected 2.00000, got 2.00002"
    ]
    assert printing.comparison(torch.tensor([-1e-9]), torch.tensor([0.0])) == ["expected [0.000]", "got      [0.000]"]


def test_changed_inputs_and_cut_gradients_are_found(tmp_path: Path) -> None:
    text = """def wrong(query, key, value, mask=None):
    {line}
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    value {operator} 1
    return scores.softmax(-1) @ value {back}"""
    changes = text.format(line="pass", operator="+=", back="- 1")
    assert "changed its input `value`" in examine(ATTENTION, written(tmp_path, "wrong", changes)).text
    cuts = text.format(line="key = key.detach()", operator="= value *", back="")
    assert "no gradient flows back to `key`" in examine(ATTENTION, written(tmp_path, "wrong", cuts)).text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "scaled_dot_product_attention",
            """def wrong(query, key, value, mask=None):
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    e /= e.sum(-1, keepdim=True)
    return e @ value""",
            "no gradient can be taken: a result that the backward pass still needs was changed in place",
        ),
        (
            "box_iou",
            """def wrong(a, b):
    import numpy as np
    x, y = a.numpy(), b.numpy()
    side = np.minimum(x[..., 2:], y[..., 2:]) - np.maximum(x[..., :2], y[..., :2])
    shared = side.clip(0).prod(-1)
    areas = [(z[..., 2:] - z[..., :2]).prod(-1) for z in (x, y)]
    return torch.as_tensor(shared / (areas[0] + areas[1] - shared).clip(1e-9))""",
            "no gradient can be taken: Can't call numpy() on Tensor that requires grad",
        ),
        (
            "class_loss",
            """def wrong(logits, labels, queries, weight):
    right = torch.full((len(logits),), logits.shape[-1] - 1)
    right[queries] = labels
    weights = torch.ones(logits.shape[-1])
    weights[-1] = weight
    return torch.nn.functional.cross_entropy(logits, right, weights).item()""",
            "your function returned a float; a tensor is expected",
        ),
    ],
)
def test_right_numbers_that_nothing_can_learn_from(name: str, text: str, message: str, tmp_path: Path) -> None:
    verdict = examine(find(name), written(tmp_path, "wrong", text))
    assert not verdict
    assert "right, but" in verdict.text
    assert message in verdict.text


RIGHT = {
    "learning_rate_at": """def right(step, lr, warmup, schedule, drop_step, steps):
    import numpy as np
    falls = {"cosine": (1 + np.cos(np.pi * step / steps)) / 2, "linear": 1 - step / steps, "constant": 1.0}
    falls["step"] = 1.0 if step < drop_step else 0.1
    return lr * min(1, (step + 1) / max(warmup, 1)) * falls[schedule]""",
    "scaled_scores": """def right(query, key):
    root = len(query[0]) ** 0.5
    return torch.tensor([[sum((q * k).tolist()) / root for k in key] for q in query])""",
    "softmax_with_temperature": """def right(scores, temperature=1.0):
    e = ((scores - scores.max(-1, keepdim=True).values) / temperature).exp()
    e /= e.sum(-1, keepdim=True)
    return e""",
    "epochs_for": """def right(ends, target):
    import numpy as np
    if target > max(score for _, score in ends):
        return None
    if target <= ends[0][1]:
        return np.float32(ends[0][0])
    for (a, low), (b, high) in zip(ends, ends[1:]):
        if low < target <= high:
            return 10 ** np.interp(target, [low, high], [np.log10(a), np.log10(b)])""",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_in_a_learners_own_words(name: str, tmp_path: Path) -> None:
    assert examine(find(name), written(tmp_path, "right", RIGHT[name]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "encoder_reference_points",
            """def wrong(level_shapes, ratios):
    from ddetr_lite.layers.deformable_transformer import encoder_reference_points
    points = encoder_reference_points(level_shapes, ratios)
    while level_shapes:
        level_shapes.pop()
    return points""",
            "changed its input `level_shapes`\n  Take a copy first",
        ),
        (
            "value_gradient",
            """def wrong(grad, rows, shares, table_rows):
    given = (shares[..., None] * grad[:, None]).flatten(0, 1)
    return torch.sparse_coo_tensor(rows.flatten()[None], given, (table_rows, grad.shape[1]))""",
            "the result is sparse: `.to_dense()`",
        ),
        (
            "timing_signal",
            "def wrong(length, dim):\n    return torch.polar(torch.ones(length, dim // 2), torch.ones(length, dim // 2))",
            "the result is complex",
        ),
        (
            "epochs_for",
            """def wrong(ends, target):
    from ddetr_lite.benchmarks.studies.results import epochs_for
    epochs = epochs_for(ends, target)
    return math.inf if epochs is None else epochs""",
            "returned a float, where None is expected",
        ),
        ("learning_rate_at", "def wrong(*arguments):\n    return [0.1]", "returned a list, where a number is expected"),
        (
            "scaled_scores",
            "def wrong(query, key):\n    return (query @ key.T).max(-1)",
            "returned values and indices together, as `max` does: take `.values`",
        ),
        (
            "ap_over_thresholds",
            """def wrong(scores, verdicts, objects):
    right = verdicts[:, scores.argsort(descending=True)].float()
    return right.cumsum(1).sum() / objects""",
            "the numbers differ",
        ),
        (
            "scaled_scores",
            "def helper(x):\n    return x @ torch.zeros(99)\n\n\ndef wrong(query, key):\n    return helper(query)",
            "in `helper`, which your function calls: return x @ torch.zeros(99)",
        ),
        (
            "scaled_dot_product_attention",
            """def wrong(query, key, value, mask=None):
    from ddetr_lite.layers.attention import scaled_dot_product_attention as attend
    return attend(query.double(), key.double(), value.double(), mask)""",
            "the numbers are right, but in float64, where float32 is expected",
        ),
        (
            "combine_masks",
            """def wrong(padding_mask, attn_mask):
    from ddetr_lite.layers.attention import combine_masks
    mask = combine_masks(padding_mask, attn_mask)
    return torch.zeros(1, dtype=torch.bool) if mask is None else mask""",
            "seen on: neither\n",
        ),
    ],
)
def test_what_is_odd_is_said_in_the_learners_terms(name: str, text: str, message: str, tmp_path: Path) -> None:
    verdict = examine(find(name), written(tmp_path, "wrong", text))
    assert not verdict
    assert message in verdict.text


def test_a_right_one_that_cannot_learn_is_told_so(tmp_path: Path) -> None:
    text = """def right(value, level_shapes, locations, weights):
    from ddetr_lite.kernels import multi_scale_deformable_attention
    return multi_scale_deformable_attention(value{}, level_shapes, locations, weights, "reference")"""
    assert "Only this" not in examine(find("multi_scale_attention"), written(tmp_path, "right", text.format(""))).text
    verdict = examine(find("multi_scale_attention"), written(tmp_path, "right", text.format(".detach()")))
    assert verdict
    assert "no gradient flows back to `value`" in verdict.text
    assert "can look, but not learn" in verdict.text


def test_a_mistake_that_fails_where_the_learner_was_right_is_not_named(tmp_path: Path) -> None:
    """It differs from the learner's on an earlier input, so it is another mistake."""
    text = """def wrong(overlap, same_class, low=0.1, high=0.5):
    from ddetr_lite.course.checks_10 import _kind
    return "both" if len(overlap) == 1 and overlap[0] == 0.5 and same_class[0] else _kind(overlap, same_class, low, high)"""
    verdict = examine(find("kind_of_mistake"), written(tmp_path, "wrong", text))
    assert not verdict
    assert "duplicates are forgotten" not in verdict.text


@pytest.mark.parametrize(
    "maximum", ["torch.maximum(a, b)", "torch.where(a > b, a, b)", "torch.stack((a, b)).max(0).values"]
)
def test_ways_to_take_a_maximum_are_alike(maximum: str, tmp_path: Path) -> None:
    """They differ in the gradient at a tie, where there is more than one right answer."""
    text = f"""def right(x, y):
    x, y = torch.broadcast_tensors(x, y)
    largest = lambda a, b: {maximum}
    sides = (-largest(-x[..., 2:], -y[..., 2:]) - largest(x[..., :2], y[..., :2])).clamp(min=0)
    shared = sides.prod(-1)
    areas = [(z[..., 2:] - z[..., :2]).prod(-1) for z in (x, y)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)"""
    assert examine(find("box_iou"), written(tmp_path, "right", text))


def test_padding_is_not_compared(tmp_path: Path) -> None:
    """In float64 the places on padding come out otherwise, and so they do where padding is set to 0."""
    text = """def right(padding, dim, shift):
    y, x = (~padding).double().cumsum(1), (~padding).double().cumsum(2)
    parts = []
    for count, last in ((y, y[:, -1:]), (x, x[:, :, -1:])):
        angles = 2 * math.pi * (count - shift) / (last + 1e-6)
        angles = angles[..., None] / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        parts.append(torch.stack((angles.sin(), angles.cos()), -1).flatten(-2))
    return torch.cat(parts, -1).float()"""
    exercise = find("sine_encoding_2d")
    right = written(tmp_path, "right", text)
    assert not torch.allclose(right(*exercise.cases()[2].arguments), exercise.reference(*exercise.cases()[2].arguments))
    assert examine(exercise, right)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    """A plain 3 where 3.0 is expected; but no tensor of integers where one of floats is."""
    exercise = Exercise(
        name="half",
        notebook="00",
        task="Half of it.",
        reference=lambda x: float(x) / 2,
        cases=lambda: [Case("four", (4,))],
        mistakes=(),
        hints=(),
    )
    assert examine(exercise, lambda x: x // 2)
    assert examine(exercise, lambda x: torch.tensor(x / 2))
    assert not examine(exercise, lambda x: torch.tensor(x // 2))
    assert not examine(exercise, lambda x: x // 3)
    handed_on = replace(exercise, part=float)  # what comes after wants what the reference gives
    assert "returned it as a tensor" in examine(handed_on, lambda x: torch.tensor(x / 2)).text
    assert examine(handed_on, lambda x: x / 2)


def test_a_loop_without_end_is_ended(tmp_path: Path) -> None:
    text = """def wrong(scores_of, begin, end, longest):
    words = [begin]
    while True:
        best = int(scores_of(torch.tensor(words)).argmax())
        if best == end:
            return torch.tensor(words[1:], dtype=torch.long)
        words.append(best)"""
    assert (
        "it never stops where the model does not say `end`"
        in examine(find("greedy"), written(tmp_path, "wrong", text)).text
    )


def test_a_verdict_shows_nothing_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = course.check(attention.scaled_dot_product_attention)
    capsys.readouterr()
    verdict._ipython_display_()
    assert capsys.readouterr().out == repr(verdict) == ""
    assert bool(verdict) is True


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'causal_mask'"):
        course.check("casual_mask", attention.causal_mask)
    with pytest.raises(ValueError, match="give the function as well") as caught:
        course.check("causal_mask")
    assert caught.value._render_traceback_() == [f"✗ {caught.value}"]  # type: ignore[attr-defined]


def test_hints_come_one_by_one_and_begin_again(capsys: pytest.CaptureFixture[str]) -> None:
    hints = find("causal_mask").hints
    for _ in range(len(hints) + 1):
        course.hint("causal_mask")
    first, *others = " ".join(capsys.readouterr().out.split()).split("Hint ")[1:]
    assert first.strip() == others[-1] == f"1 of {len(hints)}: {hints[0]}"
    assert len({first, *others[:-1]}) == len(hints)


# --- one's own parts -------------------------------------------------------------------------------------


def test_the_package_runs_on_the_learners_function(tmp_path: Path) -> None:
    text = next(block.solution for block in BLOCKS if block.name == ATTENTION.name)
    counted = "calls = []\n\n\n" + text.replace("    scores = query", "    calls.append(1)\n    scores = query")
    function = written(tmp_path, ATTENTION.name, counted)
    layer = attention.MultiHeadAttention(16, 4)
    x, padding = torch.randn(2, 5, 16), torch.arange(5) >= torch.tensor([[5], [3]])
    expected = layer(x, x, x, padding)
    course.use(ATTENTION.name, function, folder=tmp_path)
    function.__globals__["calls"].clear()
    torch.testing.assert_close(layer(x, x, x, padding), expected)
    assert function.__globals__["calls"] == [1]
    course.reset()
    layer(x, x, x, padding)
    assert function.__globals__["calls"] == [1]


@pytest.mark.parametrize("name", ["shapes", "detr"])
def test_a_shipped_detector_runs_on_the_published_solutions_alone(name: Any, tmp_path: Path) -> None:
    model, scene = course.detector(name).model, course.picture()
    with torch.no_grad():
        expected = model([scene.pixels])[0]
    for exercise in EXERCISES.values():
        if exercise.part is not None:
            assert course.use(exercise.name, solution(tmp_path, exercise.name), folder=tmp_path / "kept")
    assert {row[3] for row in course.parts().rows} == {"yours"}
    with torch.no_grad():
        found = model([scene.pixels])[0]
    surest = expected["scores"] > 0.1  # the others may change places
    assert surest.any()
    for field in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[field][surest], expected[field][surest], rtol=0, atol=1e-4)


def test_dropout_reaches_the_learners_weights(tmp_path: Path) -> None:
    course.use(ATTENTION.name, solution(tmp_path, ATTENTION.name), folder=tmp_path)
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 6)
    torch.manual_seed(1)
    found = attention.scaled_dot_product_attention(query, key, value, None, 0.5)
    torch.manual_seed(1)
    weights = torch.dropout(attention.attention_weights(query, key), 0.5, True)
    torch.testing.assert_close(found, weights @ value)


def test_what_fails_its_check_is_never_plugged_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mistake in ATTENTION.mistakes:
        assert not course.use(ATTENTION.name, mistake.wrong, folder=tmp_path)
        assert attention.scaled_dot_product_attention is ATTENTION.part
    assert "the package keeps its own" in capsys.readouterr().out
    assert list(tmp_path.glob("*.py")) == []


def test_a_later_failure_keeps_the_earlier_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    course.use(ATTENTION.name, solution(tmp_path, ATTENTION.name), folder=tmp_path)
    mine = attention.scaled_dot_product_attention
    assert not course.use(ATTENTION.name, ATTENTION.mistakes[0].wrong, folder=tmp_path)
    assert attention.scaled_dot_product_attention is mine
    assert "the package keeps your earlier one" in capsys.readouterr().out


def test_kept_parts_are_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "my_parts"
    course.restore(folder=kept)
    assert "No part of yours is kept yet" in capsys.readouterr().out
    for name in ("causal_mask", ATTENTION.name):
        course.use(name, solution(tmp_path, name), folder=kept)
    course.reset()
    assert (kept / ".gitignore").read_text(encoding="utf-8") == "*\n"
    assert sorted(path.name for path in kept.iterdir()) == [
        ".gitignore",
        "causal_mask.py",
        "scaled_dot_product_attention.py",
    ]
    capsys.readouterr()
    course.restore(folder=kept)
    said = capsys.readouterr().out
    assert "✓ causal_mask: the package runs on yours" in said
    assert "✓ scaled_dot_product_attention: the package runs on yours" in said
    assert attention.scaled_dot_product_attention is not ATTENTION.part
    assert torch.equal(attention.causal_mask(3), torch.ones(3, 3, dtype=torch.bool).triu(1))
    owners = {row[0]: row[3] for row in course.parts().rows}
    assert {name for name, owner in owners.items() if owner == "yours"} == {"causal_mask", ATTENTION.name}


def test_spoilt_files_are_named_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "causal_mask.py").write_text("def causal_mask(length:\n", encoding="utf-8")
    wrong = "def scaled_dot_product_attention(query, key, value, mask=None):\n    return value\n"
    (tmp_path / "scaled_dot_product_attention.py").write_text(wrong, encoding="utf-8")
    course.restore(folder=tmp_path)
    said = capsys.readouterr().out
    assert "causal_mask.py does not run (SyntaxError" in said
    assert "scaled_dot_product_attention.py is not plugged in" in said
    assert attention.scaled_dot_product_attention is ATTENTION.part
    assert attention.causal_mask is find("causal_mask").part


def test_a_kept_file_stands_on_its_own(tmp_path: Path) -> None:
    """Imports under any name, a helper, a constant and a default value go along."""
    text = """import torch as t
from math import sqrt

MINUS = -t.inf
STEP = 1


def table(length):
    return t.ones(length, length, dtype=t.bool)


def causal_mask(length, start=STEP):
    return table(length).triu(start) if sqrt(length) > MINUS else None"""
    function = written(tmp_path, "causal_mask", text)
    path = saving.save("causal_mask", function, tmp_path / "kept")
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(encoding="utf-8"), "kept", "exec"), namespace)
    assert examine(find("causal_mask"), namespace["causal_mask"])


def test_what_cannot_be_kept_is_plugged_in_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "ones = torch.ones(9, 9)\n\n\ndef causal_mask(n):\n    return ones[:n, :n].triu(1).bool()\n"
    assert course.use("causal_mask", written(tmp_path, "causal_mask", text), folder=tmp_path / "kept")
    assert "Not kept for other notebooks: it uses the notebook's variable `ones`" in capsys.readouterr().out
    assert attention.causal_mask is not find("causal_mask").part
    assert not list(tmp_path.glob("kept/*.py"))


def test_parts_shows_whose_each_part_is(tmp_path: Path) -> None:
    assert {row[3] for row in course.parts().rows} == {"the package's"}
    course.use("causal_mask", solution(tmp_path, "causal_mask"), folder=tmp_path)
    rows = {row[0]: row for row in course.parts().rows}
    assert rows["causal_mask"][3:] == ("yours", "causal_mask.py")
    assert "|causal\\_mask|01|layers.attention.causal\\_mask|yours|" in course.parts()._repr_markdown_()


# --- glossary, equations, diagrams, picture ------------------------------------------------------------------------


def test_symbols_are_known() -> None:
    assert [row[0] for row in course.symbols("D", "Δp", "N").rows] == ["$N$", "$D$", r"$\Delta p$"]
    with pytest.raises(ValueError, match="no Z"):
        course.symbols("Z")


def test_terms_are_found_by_notebook_and_by_name() -> None:
    assert {row[2].split(",")[0] for row in course.terms("07", "08").rows} == {"07", "08"}
    assert [row[0] for row in course.terms("norm").rows] == ["layer norm", "pre-norm", "batch norm"]
    assert [row[0] for row in course.terms("NMS", "iou").rows] == ["IoU", "non-maximum suppression (NMS)", "GIoU"]
    places = [(term.notebook, int(term.section)) for term in TERMS]
    assert places == sorted(places)  # in the order in which a reader meets them
    assert len(course.terms().rows) == len(TERMS) == len({term.name for term in TERMS})
    with pytest.raises(ValueError, match="no term 'attentoin'"):
        course.terms("attentoin")


@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.notebook}-{term.name}")
def test_terms_are_introduced_where_they_say(term: Term) -> None:
    (path,) = (ROOT / "notebooks" / "text").glob(f"{term.notebook}_*.py")
    _, *text = re.split(rf"(?m)^# ## {term.section}\. .*$", path.read_text(encoding="utf-8"))
    assert len(text) == 1, f"{path.name} has no section {term.section}"
    section = re.split(r"(?m)^# ## ", text[0])[0].casefold()
    name = re.sub(r" \(.*\)", "", term.name).casefold()
    assert re.search(rf"\b{re.escape(name).replace('query', 'quer(y|ies)')}", section.replace("*", "")), term


def test_long_names_may_break_in_tables() -> None:
    """Else the column of tests is as wide as the longest name, and the table wider than the notebook."""
    name = "test_one_level_is_the_case_of_one_level"
    assert f"`{name}`" in course.equation_map("07").rows[1][2]
    assert f"`{name}`" in repr(course.equation_map("07"))
    shown = course.equation_map("07")._repr_markdown_()
    assert "<code>test\\_<wbr>one\\_<wbr>level\\_<wbr>is\\_" in shown
    assert "<code>layers.<wbr>deformable\\_<wbr>attention.<wbr>DeformableAttention.<wbr>forward</code>" in shown
    assert "`test_bilinear_sample_by_hand`" in shown
    assert "|layers.<wbr>deformable\\_<wbr>transformer.<wbr>inverse\\_<wbr>sigmoid|" in course.parts()._repr_markdown_()


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda e: f"{e.paper}, {e.place}")
def test_equation_map_points_to_what_exists(equation: Any) -> None:
    module, name = equation.function.split(":")
    target: Any = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    assert callable(target)
    known = set(inspect.signature(target).parameters)
    if inspect.isclass(target):  # a module's symbols may also be its attributes
        known |= set(re.findall(r"self\.(\w+)", inspect.getsource(target)))
    assert set(equation.symbols.values()) <= known
    file, test = equation.test.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


SMALL: dict[str, Any] = {"dim": 32, "heads": 2, "hidden": 16, "encoder_layers": 1, "decoder_layers": 3, "queries": 5}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("detr", Detr(DetrConfig(BackboneConfig("small"), stride=8, **SMALL), classes=4)),
        ("deformable-detr", DeformableDetr(DeformableDetrConfig(BackboneConfig("small"), **SMALL), classes=4)),
    ],
)
def test_diagrams_say_the_shapes_that_come_out(name: str, model: Any) -> None:
    outputs = model.eval().outputs(model.batch([torch.rand(3, 64, 64)] * 2))
    sizes = {"B": 2, "K": 3, "N_q": 5, "C": 4}
    said = dict(text.get_text().split("\n") for text in course.architecture(name).texts if "(K, " in text.get_text())
    assert {kind: eval(shape, {}, sizes) for kind, shape in said.items()} == {
        "logits": tuple(outputs.logits.shape),
        "boxes": tuple(outputs.boxes.shape),
    }


def test_diagrams_write_the_letters_of_the_glossary() -> None:
    for name in ("transformer", "detr", "deformable-detr"):
        texts = " ".join(text.get_text() for text in course.architecture(name).texts)
        assert set(re.findall(r"\b[A-Z](?:_\w+)?\b", texts)) <= set(SYMBOLS)
    with pytest.raises(ValueError, match="no diagram 'dino', only transformer, detr, deformable-detr"):
        course.architecture("dino")


def test_equation_1_weights() -> None:
    """softmax(Q Kᵀ / √D), term by term."""
    query, key = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    weights = attention.attention_weights(query, key)
    for i in range(3):
        terms = torch.stack([((query[i] * key[j]).sum() / 5**0.5).exp() for j in range(4)])
        torch.testing.assert_close(weights[i], terms / terms.sum())


def test_equation_1() -> None:
    """softmax(Q Kᵀ / √D) V, as the sum over the keys."""
    query, key, value = (torch.randn(n, 5, dtype=torch.float64) for n in (3, 4, 4))
    weights = attention.attention_weights(query, key)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            expected[i] += weights[i, j] * value[j]
    torch.testing.assert_close(attention.scaled_dot_product_attention(query, key, value), expected)


def test_multi_head_attention_of_section_3_2_2() -> None:
    """Concat(head_1, ..., head_h) W^O, one head after the other, each with its own rows of the weights."""
    layer = attention.MultiHeadAttention(12, 3).double()
    query, key, value = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 4, 4))
    w_q, w_k, w_v = layer.in_proj_weight.detach().reshape(3, 3, 4, 12).unbind()  # (M, D, d) each
    results = []
    for i in range(3):
        q, k, v = query @ w_q[i].T, key @ w_k[i].T, value @ w_v[i].T
        results.append((q @ k.transpose(1, 2) / 4**0.5).softmax(-1) @ v)
    expected = torch.cat(results, -1) @ layer.out_proj.weight.detach().T
    torch.testing.assert_close(layer(query, key, value).detach(), expected)


def test_heads_summed_are_heads_joined() -> None:
    """Equation 1 of Deformable DETR, Σ_m W_m [Σ_k A_mqk W'_m x_k]: one query, head and key after the other."""
    layer = attention.MultiHeadAttention(12, 3).double()
    query, tokens = torch.randn(1, 2, 12, dtype=torch.float64), torch.randn(1, 5, 12, dtype=torch.float64)
    u, v, w_value = layer.in_proj_weight.detach().reshape(3, 3, 4, 12).unbind()  # (M, D, d) each
    w_out = layer.out_proj.weight.detach().reshape(12, 3, 4)  # (d, M, D)
    expected = torch.zeros(1, 2, 12, dtype=torch.float64)
    for q in range(2):
        for m in range(3):
            scores = torch.stack([(u[m] @ query[0, q]) @ (v[m] @ token) for token in tokens[0]])
            share = (scores / 4**0.5).softmax(0)
            for k in range(5):
                expected[0, q] += w_out[:, m] @ (share[k] * (w_value[m] @ tokens[0, k]))
    torch.testing.assert_close(layer(query, tokens, tokens).detach(), expected)


def test_the_picture_is_always_the_same() -> None:
    scene = course.picture()
    assert scene.pixels.shape == (3, 96, 96)
    assert scene.pixels.dtype == torch.uint8
    assert scene.names == ("star", "star", "ring", "triangle")
    assert scene.boxes.shape == (4, 4)
    assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
