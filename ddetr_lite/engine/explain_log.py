"""What a run's log and recipe say about a low AP: loss, gradients, learning rate, backbone, skipped steps."""

from collections import Counter
from statistics import median

from ddetr_lite.engine.evaluate import in_words
from ddetr_lite.engine.explain_evidence import Evidence, Observation, Verdict
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.scaling import rate_factor

LOUD = 3000  # gradient norm over clip_norm: healthy runs have 20 to 230 as a median, up to 2100 at most
SILENT = 1e-3  # norm of a gradient that teaches nothing; healthy runs have 2 to 30
DECAYS = 0.01  # of every weight in one step; Muon takes 0.001, AdamW much less
FAR = 10.0  # times the usual learning rate, or a tenth of it
FALLS, STAYS, RISES = 0.8, 0.97, 1.05  # the last losses over the first
FEWEST = 4  # lines of the log below which nothing is said about where the loss goes


def check_progress(evidence: Evidence) -> Observation:
    """How far the run has come."""
    run = evidence.run
    in_all, done = run.start.get("steps_in_all"), run.steps
    counts = f"{len(run.train)} log lines, {len(run.evaluations)} evaluations"
    text = f"step {done}{f' of {in_all}' if in_all else ''}, {evidence.pictures_seen} pictures seen, {counts}"
    if run.last is not None:
        text += f"; AP {in_words(run.last['AP'])}, AP50 {in_words(run.last.get('AP50', -1))}"
    if not run.train and not run.skips:
        return Observation("progress", "suspicious", f"{text}: it died early", "see what it said on the terminal")
    return Observation("progress", "OK", text)


def check_skips(evidence: Evidence) -> Observation:
    """Steps without a finite gradient: too high a learning rate, or the same few pictures again and again."""
    skips, steps = evidence.run.skips, max(evidence.run.steps, 1)
    name = "skipped steps"
    if not skips:
        return Observation(name, "OK", "each step had a finite gradient")
    share = len(skips) / steps
    text = f"{len(skips)} of {steps} steps ({share:.0%}) had no finite gradient, the first was step {skips[0]['step']}"
    if share < 0.01 and len(skips) < 5:
        return Observation(name, "suspicious", text, "look at the pictures that the log's skip lines name")
    often = Counter(i for line in skips for i in set(line["pictures"])).most_common(1)
    shared, batch = often[0] if often else (0, 0), len(skips[0]["pictures"])
    if batch and len(skips) > 1 and shared[1] == len(skips) and share < 0.5:
        text += f"; all of them had image id {shared[0]}"
        return Observation(name, "cause", text, f"correct or remove the picture with image id {shared[0]}")
    rate = f" than {evidence.recipe.train.lr:g}" if evidence.recipe else ""
    return Observation(name, "cause", text, f"the learning rate is too high: start anew with a lower --lr{rate}")


def check_loss(evidence: Evidence) -> Observation:
    """Whether the loss falls, and how evenly."""
    losses = _losses(evidence)
    if len(losses) < FEWEST:
        return Observation("loss", "skipped", f"{len(losses)} log lines with a loss: too few to see where it goes")
    first, last, part = _ends(losses)
    before = [median(losses[max(0, i - 10) : i]) for i in range(1, len(losses))]
    spikes = sum(loss > 2 * usual for loss, usual in zip(losses[1:], before, strict=True))
    text = f"from {first:.3g} (median of the first {part} lines) to {last:.3g} (of the last), {spikes} spikes"
    fall = _fall(evidence)
    if fall <= FALLS and spikes <= len(losses) / 20:
        return Observation("loss", "OK", f"{text}: it falls")
    if fall <= FALLS:
        return Observation("loss", "suspicious", f"{text}: it falls, but jumps", "try a lower --lr")
    if fall >= RISES:
        return Observation("loss", "cause", f"{text}: it rises", "lower --lr, and look for pictures that are broken")
    how = "it hardly falls" if fall < STAYS else "it stays where it is"
    remedy = "see the learning rate and whether one batch can be learned" if not evidence.young else "train longer"
    return Observation("loss", "suspicious", f"{text}: {how}", remedy)


def check_gradient(evidence: Evidence) -> Observation:
    """The gradient's norm against `clip_norm`: clipping by a hundred is normal here, as the optimizers divide it out."""
    norms = [float(line["gradient_norm"]) for line in evidence.run.train if "gradient_norm" in line]
    if not norms or evidence.recipe is None:
        return Observation("gradient", "skipped", "no log line has a gradient's norm")
    clip, usual = evidence.recipe.train.clip_norm, median(norms)
    text = f"norm {usual:.3g} (median), {max(norms):.3g} at most"
    if usual < SILENT:
        remedy = "nothing reaches the weights: is anything frozen that should not be, or a loss weight 0?"
        return Observation("gradient", "cause", f"{text}: next to nothing", remedy)
    if not clip:
        return Observation("gradient", "suspicious", f"{text}, never clipped", "--clip-norm 0.1, as the authors do")
    clipped = sum(norm > clip for norm in norms) / len(norms)
    text += f"; {clipped:.0%} clipped to {clip:g}, by ×{usual / clip:.0f}"
    if usual / clip > LOUD:
        return Observation("gradient", "suspicious", f"{text} (healthy runs: ×20 to ×230)", "lower --lr")
    return Observation("gradient", "OK", f"{text} (healthy runs here: ×20 to ×230; AdamW and Muon divide it out)")


def check_rate(evidence: Evidence) -> Observation:
    """The learning rate against the recipe's usual one, and whether the schedule lets it get there."""
    name, chosen = "learning rate", evidence.recipe
    if chosen is None:
        return Observation(name, "skipped", "the recipe is unknown")
    config, run = chosen.train, evidence.run
    rates = [float(line["lr"]) for line in run.train if line.get("lr")]
    in_all = run.start.get("steps_in_all", 0)
    text, times = _against_usual(evidence, chosen)
    if in_all and config.warmup_steps >= in_all:
        rise = f"it rises over {config.warmup_steps} steps, and the run has {in_all}: it never reaches {config.lr:g}"
        remedy = f"--warmup-steps {max(1, in_all // 10)}"
        if max(times, 1 / times) >= FAR:
            rise, remedy = f"{rise}; {text}", f"{remedy} {_usual_rates(evidence, chosen)}"
        return Observation(name, "cause", rise, remedy)
    # Under step the rate falls at `drop_epoch`, so later rates should be those of a run that has learned already.
    if config.schedule == "step" and config.drop_epoch <= config.epochs / 5:
        text = f"{config.lr:g} falls to a tenth after {config.drop_epoch} of {config.epochs} epochs"
        return Observation(name, "suspicious", text, f"--drop-epoch {max(1, round(config.epochs * 0.8))}")
    if rates:
        text += f"; in the log from {min(rates):.2g} to {max(rates):.2g}"
    trouble = bool(run.skips) or _fall(evidence) > FALLS
    if times >= FAR:
        verdict: Verdict = "cause" if trouble or evidence.young else "suspicious"
        return Observation(name, verdict, f"{text}: far too high", _usual_rates(evidence, chosen))
    if times <= 1 / FAR:
        verdict = "cause" if trouble or evidence.young else "suspicious"
        return Observation(name, verdict, f"{text}: far too low", _usual_rates(evidence, chosen))
    return Observation(name, "OK", text)


def _usual_rates(evidence: Evidence, chosen: Recipe) -> str:
    """The options that bring the usual rates back: where Muon is used it has one of its own, for all matrices."""
    usual = evidence.usual
    remedy = f"--lr {usual_rate(evidence, chosen):.2g}"
    if usual is not None and chosen.train.optimizer == usual.train.optimizer == "muon":
        remedy += f" --muon-lr {usual.train.muon_lr:g}"
    return remedy


def usual_rate(evidence: Evidence, chosen: Recipe) -> float:
    """The recipe's own rate, for this batch (see `engine.scaling`); DETR's 1e-4 for an unknown recipe."""
    usual = evidence.usual
    if usual is None:
        return 1e-4
    return usual.train.lr * rate_factor(chosen.train.batch, usual.train.batch)


def _against_usual(evidence: Evidence, chosen: Recipe) -> tuple[str, float]:
    """In words, and how many times the usual one it is; of Muon's two rates the one that is further off."""
    config, usual = chosen.train, evidence.usual
    expected = usual_rate(evidence, chosen)
    if usual is None:  # 1e-5 to 1e-3 work for some model or other
        times = config.lr / 1e-3 if config.lr > 1e-3 else min(1.0, config.lr / 1e-5)
        return f"{config.lr:g}, usual are 1e-5 to 1e-3", times * (FAR if config.lr > 1e-3 else 1)
    text, times = f"{config.lr:g}, recipe {chosen.name!r} has {expected:.2g} for this batch", config.lr / expected
    if config.optimizer == usual.train.optimizer == "muon":
        muon = config.muon_lr / usual.train.muon_lr
        text += f"; Muon's {config.muon_lr:g}, the recipe's {usual.train.muon_lr:g}"
        times = max(times, muon, key=lambda x: max(x, 1 / x))
    return text, times


def _fall(evidence: Evidence) -> float:
    """The last losses over the first; 1 where there are too few."""
    losses = _losses(evidence)
    if len(losses) < FEWEST:
        return 1.0
    first, last, _ = _ends(losses)
    return last / max(first, 1e-9)


def _losses(evidence: Evidence) -> list[float]:
    return [float(line["loss"]) for line in evidence.run.train]


def _ends(losses: list[float]) -> tuple[float, float, int]:
    """The median of the first losses, that of the last, and how many are taken for each."""
    part = max(2, len(losses) // 10)
    return median(losses[:part]), median(losses[-part:]), part


def check_decay(evidence: Evidence) -> Observation:
    """Weight decay: what each step takes away from every weight."""
    name, chosen = "weight decay", evidence.recipe
    if chosen is None:
        return Observation(name, "skipped", "the recipe is unknown")
    config = chosen.train
    lost = config.lr * config.weight_decay
    text = f"{config.weight_decay:g}"
    if config.optimizer == "muon":
        lost = max(lost, config.muon_lr * config.muon_weight_decay)
        text += f", Muon's {config.muon_weight_decay:g}"
    text += f": a step takes {lost:.2g} of each weight"
    if lost > DECAYS:
        return Observation(
            name, "cause", f"{text}, more than it can learn", "--weight-decay 1e-4, --muon-weight-decay 0.1"
        )
    return Observation(name, "OK", text)


def check_backbone(evidence: Evidence) -> Observation:
    """A backbone without weights has to learn; frozen, it passes random features on for ever."""
    name, chosen = "backbone", evidence.recipe
    if chosen is None:
        return Observation(name, "skipped", "the recipe is unknown")
    backbone, rate = chosen.model.backbone, chosen.train.backbone_lr
    text = f"{backbone.name}, weights {backbone.weights!r}, frozen={backbone.frozen}, learning at {rate:g} × lr"
    if backbone.weights != "none" or chosen.train.start_from:
        return Observation(name, "OK", text)
    if rate == 0 or backbone.frozen:
        remedy = "--backbone.weights imagenet; or --backbone.no-frozen --backbone-lr 1 to train it from nothing"
        return Observation(name, "cause", f"{text}: it stays as random as it began", remedy)
    if rate < 0.5:
        return Observation(name, "suspicious", f"{text}: slow for random weights", "--backbone-lr 1")
    return Observation(name, "OK", text)


def check_sizes(evidence: Evidence) -> Observation:
    """Pictures should be about as large in evaluation as they are in training."""
    if evidence.recipe is None:
        return Observation("picture size", "skipped", "the recipe is unknown")
    config = evidence.recipe.augment
    if not config.short_sides or not config.eval_short_side:
        both = not config.short_sides and not config.eval_short_side
        text = "pictures keep their size" if both else "pictures keep their size in one of training and evaluation"
        return Observation("picture size", "OK", text)
    low, high, side = min(config.short_sides), max(config.short_sides), config.eval_short_side
    text = f"short side {low} to {high} px in training, {side} px in evaluation"
    if low / 1.25 <= side <= high * 1.25:
        return Observation("picture size", "OK", text)
    remedy = f"--eval-short-side {sorted(config.short_sides)[len(config.short_sides) // 2]}"
    far = side > 2 * high or side < low / 2
    return Observation("picture size", "cause" if far else "suspicious", text, remedy)
