"""Whether a run's model can learn at all: its weights, one batch learned by heart, and training against validation."""

import copy
import math
import time
from dataclasses import replace

import torch

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.loading import Batch
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.evaluate import ap_of, detect
from ddetr_lite.engine.explain_evidence import Evidence, Observation, Verdict
from ddetr_lite.engine.explain_log import usual_rate
from ddetr_lite.engine.optimization import make_optimizers, part_of
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.run import State
from ddetr_lite.engine.step import Step
from ddetr_lite.models.presets import Model, build

BATCH = 4  # pictures to learn by heart
LEARNED, STUCK = 0.7, 0.9  # of the first loss: what a healthy model is below, and what teaches nothing
SHAKEN = 2.0  # of the first loss: only a rate that is too high ends up here
SMALL = 0.3  # a last layer's loss that needs no improvement
WARM = 10  # steps in which the rate rises
FEWEST = 25  # steps after which a batch that is not learned says something
PATIENCE = 40.0  # seconds for one attempt
SURE_RATE = 1e-4  # at which AdamW teaches every model here something


def check_weights(evidence: Evidence) -> Observation:
    """Whether there are weights, and all are numbers."""
    name, loaded = "weights", evidence.loaded
    if loaded is None:
        if any(problem.name == "checkpoint" for problem in evidence.problems):
            return Observation(name, "skipped", "no checkpoint can be used")
        if evidence.run.evaluations:
            return Observation(name, "skipped", "best.pt and last.pt are no longer in the folder")
        text = "neither best.pt nor last.pt: it ended before its first checkpoint"
        return Observation(name, "suspicious", text, "see what it said on the terminal; checks of the model need one")
    files = {"best.pt": evidence.best, "last.pt": evidence.last}
    for file, own in files.items():
        state = own.model.state_dict() if own else {}
        bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
        if bad:
            text = f"{file}: NaN or infinity in {len(bad)} of {len(state)} tensors, the first is {bad[0]}"
            return Observation(name, "cause", text, "start anew with a lower --lr")
    which = " and ".join(file for file, own in files.items() if own)
    count = sum(p.numel() for p in loaded.model.parameters())
    return Observation(name, "OK", f"{which}, {count:,} parameters, all finite, {len(loaded.classes)} classes")


def check_one_batch(evidence: Evidence) -> Observation:
    """Learn a few training pictures by heart, with AdamW at the run's rate, in a copy of the model."""
    name, chosen, training = "one batch", evidence.recipe, evidence.training
    if chosen is None or training is None or evidence.steps < 1:
        return Observation(name, "skipped", "needs the recipe, the training pictures and --steps of 1 or more")
    try:
        batch = _batch(training)
        start = _start(evidence, chosen, len(training.classes))
    except (ValueError, OSError) as error:
        return Observation(name, "skipped", f"cannot be tried: {error}")
    if batch is None:
        return Observation(
            name, "cause", "no training picture has an object", "annotate objects: nothing can be learned"
        )
    whose = "the run's weights" if evidence.model is not None else "fresh weights"
    try:
        text, ratio, last = _learn(start, batch, chosen, chosen.train.lr, evidence)
        text = f"{len(batch.counts)} pictures, {whose}: {text}"
        if last == 0 and ratio == 0:
            return Observation(name, "cause", f"{text}: nothing is asked for", "set the weights under --loss above 0")
        if ratio <= LEARNED or last <= SMALL:
            return Observation(name, "OK", text)
        if evidence.steps < FEWEST:
            return Observation(name, "skipped", f"{text}: too few to tell; --steps 60 are usual")
        rate = SURE_RATE if chosen.train.lr > SURE_RATE else max(SURE_RATE, usual_rate(evidence, chosen))
        again, better, last = _learn(start, batch, chosen, rate, evidence)
    except ValueError as error:  # more objects than queries, labels or boxes that no model accepts
        return Observation(name, "cause", f"training stops: {error}", "correct what it names")
    if better <= LEARNED or last <= SMALL:
        high = chosen.train.lr > SURE_RATE
        side = "too high" if high else "too low"
        # A trained model may be shaken for a while by a rate that suits a new one, and a low rate may just need more steps.
        new = evidence.model is None or evidence.young
        text = f"{text}, but {again}"
        if high and not new and ratio <= SHAKEN:
            return Observation(name, "OK", text)
        sure = ratio > STUCK and (high or chosen.train.lr < SURE_RATE / 10)
        verdict: Verdict = "cause" if sure else "suspicious"
        return Observation(name, verdict, text, f"the learning rate is {side}: --lr {rate:g}")
    if evidence.model is not None and better > STUCK and ratio > STUCK:
        remedy = "try --overfit 8 in a new run; where that fails too, loss or targets do not fit the model"
        return Observation(name, "cause", f"{text}; {again}: it cannot learn by heart", remedy)
    return Observation(
        name, "suspicious", f"{text}; {again}: slow", "try more --steps here, or --overfit 8 in a new run"
    )


def _batch(training: CocoDetection) -> Batch | None:
    """The first pictures that have objects; an objectless batch teaches nothing about boxes."""
    full = [i for i in range(len(training)) if training.objects(i)][:BATCH]
    return Batch.of([training[i] for i in full]) if full else None


def _start(evidence: Evidence, chosen: Recipe, classes: int) -> Model:
    """The run's model, or a new one as `train` would make it."""
    if evidence.last is not None or evidence.model is not None:
        loaded = evidence.last or evidence.loaded
        assert loaded is not None
        model = loaded.model
    else:
        torch.manual_seed(chosen.train.seed)
        model = build(chosen.model, classes, load_backbone=not chosen.train.start_from)
    return model.to(evidence.device)


def _learn(start: Model, batch: Batch, chosen: Recipe, rate: float, evidence: Evidence) -> tuple[str, float, float]:
    """In words, the last loss over the first, and the last; of the last decoder layer, since earlier ones only help."""
    model = copy.deepcopy(start).train()
    for key, parameter in model.named_parameters():
        if chosen.train.backbone_lr == 0 and part_of(key) == "backbone":
            parameter.requires_grad_(False)
    config = replace(chosen.train, optimizer="adamw", lr=rate, ema=0.0)
    step = Step(State(model, make_optimizers(model, config), None), config, World(evidence.device))
    values: list[float] = []
    clock = time.monotonic()
    while len(values) < evidence.steps and time.monotonic() - clock < PATIENCE:
        losses, _ = step([batch], rate * min(1.0, (len(values) + 1) / WARM))
        values.append(sum(float(value) for key, value in losses.items() if "/" not in key))
    skipped, _ = step.guard.look(0)
    finite = [value for value in values if math.isfinite(value)]
    if not finite or len(skipped) > len(values) / 4:
        return f"at lr {rate:g} {len(skipped)} of {len(values)} steps had no finite gradient", math.inf, math.inf
    tail = sorted(finite[-5:])
    last = tail[len(tail) // 2]
    return (
        f"at lr {rate:g} the loss went from {finite[0]:.3g} to {last:.3g} in {len(values)} steps",
        last / max(finite[0], 1e-9),
        last,
    )


def check_generalisation(evidence: Evidence) -> Observation:
    """AP50 on training pictures, as they are, against validation."""
    name, model = "training and validation", evidence.model
    if model is None or evidence.training is None or evidence.validation is None or evidence.recipe is None:
        return Observation(name, "skipped", "needs a checkpoint and both splits")
    if evidence.recipe.data.overfit:
        return Observation(name, "skipped", "they are the same pictures: --overfit")
    model = model.to(evidence.device)
    train, val = (
        ap_of(dict(detect(model, part, batch=8)), part)["AP50"] for part in (evidence.training, evidence.validation)
    )
    pictures = f"{len(evidence.training)} and {len(evidence.validation)} pictures"
    text = f"AP50 {train:.2f} on training pictures, {val:.2f} on validation ({pictures})"
    if train > 0.4 and val < train / 4:
        remedy = "are both of one kind, with the same classes and form of boxes? Or too few pictures to learn from"
        return Observation(name, "cause", text, remedy)
    if train > 0.4 and val < train / 2:
        return Observation(name, "suspicious", text, "overfitted: more pictures, more augmentation, fewer epochs")
    return Observation(name, "OK", text)
