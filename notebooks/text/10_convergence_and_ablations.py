# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Convergence and ablations: how good, how fast, and why
#
# Deformable DETR, its paper says, reaches the AP of DETR in a tenth of the epochs. Three things in this sentence need care: what AP is, to the last rule; how two detectors are compared so that neither is favoured; and which part
# brings how much of the difference. This notebook takes them one after the other, from the detections of one picture to the two tables of the paper, at a size that can be trained again by anyone.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | compute COCO's AP from nothing, with its rules for sizes and crowds, and get what pycocotools gets; say what AP rewards and what it does not see; sort a detector's mistakes into kinds, and say what each kind costs; judge whether a comparison is fair; show how a new DETR looks and learns, and how a new Deformable DETR does; read the paper's tables beside those of a small study, and train every row of it again |
# | **You need first** | precision, recall and AP in [05 · The Hungarian loss](05_hungarian_loss.ipynb), [06 · DETR](06_detr.ipynb), and [09 · Deformable DETR](09_deformable_detr.ipynb) |
# | **Time** | 150 minutes to read and run, 60 for the exercises |
# | **Device** | any CPU; less than a minute of computing in all. Nothing is trained here and nothing is downloaded: the long runs are committed |

# %%
import copy
import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib.patches import Rectangle

# %%
import ddetr_lite
from ddetr_lite import course, plots
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder, collate
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.engine.errors import ERRORS, KINDS, best_threshold, find_errors
from ddetr_lite.engine.evaluate import ap_of, detect
from ddetr_lite.plots.style import STYLE
from ddetr_lite.set_prediction import matching
from ddetr_lite.set_prediction.boxes import box_iou, cxcywh_to_xyxy

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
scene = course.picture()

# %% [markdown]
# ## 1. COCO's AP, to the last rule
#
# 05 went from detections to a curve, and from the curve to AP: one class, one threshold, no exceptions. What everybody reports is a mean of many such numbers, with a few rules that decide what counts. We write all of it, in some sixty lines, and get the numbers of `pycocotools`.
#
# We judge two detectors that ship with the course, a Deformable DETR (that of 00) and a DETR (that of 06), on 100 pictures which neither was trained on.

# %%
config = ShapesConfig(train_images=1, val_images=100)  # of the training set nothing is needed
folder = write_shapes(Path(tempfile.mkdtemp()) / "shapes", config, progress=False)
validation = CocoDetection(CocoFolder.find(folder, "val"), cache=True)
detectors = {"Deformable DETR": course.detector("shapes"), "DETR": course.detector("detr")}
found = {name: dict(detect(loaded.model, validation)) for name, loaded in detectors.items()}
print(len(validation), "pictures with", sum(map(len, validation.annotations)), "objects")
for name, detections in found.items():
    print(f"{name}: {sum(len(d['scores']) for d in detections.values()):,} detections")

# %% [markdown]
# Thousands of detections for a few hundred objects: every query always says something. (A query of Deformable DETR says something for each class; of its 20 × 8 pairs of query and class in a picture, the 100 surest are kept.) AP takes them all, and trusts that the scores put them into a good order.
#
# ### 1.1 Who gets which object
#
# The picture of the course (number 40 of this set) has two stars. What DETR calls a star there, the surest first, and the IoU of each box with each of the two:

# %%
STAR = validation.classes.index("star")
said = found["DETR"][40]
stars = scene.boxes[[name == "star" for name in scene.names]]
of_class = said["labels"] == STAR
overlap = box_iou(said["boxes"][of_class][:3, None], stars)  # (3, T)
rows = [f"score {score:.2f}" for score in said["scores"][of_class][:3]]
ax = plots.matrix(overlap, rows, ["star 0", "star 1"], title="IoU of DETR's stars with the stars")
plots.show(
    ax,
    alt="A table of three detections and two stars. The first fits star 0, the second and the "
    "third both fit star 1.",
)

# %% [markdown]
# The rule is greedy: the surest detection chooses first, and takes the object that it fits best among those that are still free, if the IoU is at least the threshold. The next one chooses from what is left.


# %%
def match(overlap, threshold):
    """The object of each detection, or −1. overlap: (n, T), IoU, the surest detection first."""
    owner = []
    for row in overlap.tolist():
        free = [t for t in range(len(row)) if t not in owner and row[t] >= threshold]
        owner.append(max(free, key=lambda t: row[t], default=-1))
    return owner


for threshold in (0.5, 0.95):
    print(f"threshold {threshold}: objects {match(overlap, threshold)}")

# %% [markdown]
# At 0.5 both stars are found, and the third detection, which fits star 1 as well, is wrong: a duplicate, if one with a score near zero. At 0.95 star 1 is not found at all. Each threshold has its own match and its own AP.
#
# > **Claim:** greedy is a simplification; the best match, as in 05, would judge the same.
# >
# > **Measurement:** two detections, two objects, an IoU of at least 0.5 needed.

# %%
from scipy.optimize import linear_sum_assignment

two = torch.tensor([[0.7, 0.6], [0.65, 0.2]])
best = linear_sum_assignment(-(two * (two >= 0.5)))[1].tolist()
print("greedy:", match(two, 0.5), " the best match:", best)

# %% [markdown]
# The best match would find both objects. Greedy lets the first detection take object 0, since that is its best, and the second is left with nothing, hence wrong.
#
# ### 1.2 From right and wrong to one number
#
# As in 05, but in the very steps of pycocotools, and in float64. Recall grows down the list. *Precision at this recall or beyond* is a running maximum from the end, the **envelope**. And for each of the 101 recalls the first detection that reaches it is found by bisection; where none does, precision is 0.

# %%
RECALLS = np.linspace(0, 1, 101)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def average_precision(right, objects):
    """right: (n,), boolean, the surest first; objects: how many there are."""
    hits = np.cumsum(right)  # so many objects are found after each detection
    precision, recall = hits / np.arange(1, len(right) + 1), hits / objects
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS)  # the first detection that reaches it; n where none does
    return np.append(envelope, 0)[at].mean()


# %% [markdown]
# By hand: four detections of two objects, right, wrong, wrong, right. Precision is 1, 1/2, 1/3, 2/4, and its envelope 1, 1/2, 1/2, 1/2. Recall is 1/2, 1/2, 1/2, 1. The recalls 0 to 0.5, 51 of them, are reached with precision 1; the other 50 with 1/2. AP = (51 + 25) / 101.

# %%
right = np.array([True, False, False, True])
print(f"{average_precision(right, 2):.3f}, by hand {(51 + 25) / 101:.3f}")

# %% [markdown]
# ### 1.3 What is not judged
#
# AP is also reported for small, medium and large objects. For the small ones alone: is a detection on a large object wrong? No. It is **left out**, and so are the large objects. A detection that lies on nothing? It is wrong if its own box is small, and left out otherwise, for then it belongs to another band.
#
# The other exception is the **crowd**. In COCO a crowd of people may be one annotation: *many, not counted*. Every detection that lies in it is left out, however many there are. One person's box can never fill the crowd, so instead of the IoU, what counts is the share of the *detection* that lies in the crowd.
#
# So there are three verdicts. An object that is judged goes before one that is left out, even where the latter fits better.


# %%
def verdicts(overlap, left_out, crowd, outside, threshold):
    """1 right, 0 wrong, −1 left out, for each detection, the surest first.

    overlap: (n, T); left_out, crowd: (T,), of objects; outside: (n,), sizes beyond the band.
    """
    taken, said = set(), []
    for row, other_band in zip(overlap.tolist(), outside):
        fits = [t for t in range(len(row)) if t not in taken and row[t] >= threshold]
        best = max(fits, key=lambda t: (not left_out[t], row[t]), default=None)
        if best is None:
            said.append(-1 if other_band else 0)
            continue
        said.append(-1 if left_out[best] else 1)
        if not crowd[best]:
            taken.add(best)
    return said


# %% [markdown]
# Five detections, and three objects: a small one, a large one, a crowd. Only small objects are judged.

# %%
overlap = torch.tensor([[0.8, 0, 0], [0.7, 0, 0], [0, 0.9, 0], [0, 0, 1], [0, 0, 0.9]])
flags = {"left_out": [False, True, True], "crowd": [False, False, True], "outside": [False] * 5}
print(verdicts(overlap, **flags, threshold=0.5))

# %% [markdown]
# Right; a duplicate, wrong; on the large object, left out; and both in the crowd, left out.
#
# ### 1.4 All together
#
# One picture and one class are a small question of their own; first its overlaps. The area of what two boxes share is divided by the area that at least one of them covers, or, with a crowd, by that of the detection alone.


# %%
def corners(notes):
    """(T, 4), from COCO's x, y, width, height."""
    boxes = torch.tensor([note["bbox"] for note in notes], dtype=torch.float64).reshape(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def overlaps(boxes, objects, crowd):
    """(n, 4), (T, 4), (T,) → (n, T)."""
    begin = torch.maximum(boxes[:, None, :2], objects[:, :2])
    end = torch.minimum(boxes[:, None, 2:], objects[:, 2:])
    shared = (end - begin).clamp(min=0).prod(-1)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]  # (n, 1)
    theirs = (objects[:, 2:] - objects[:, :2]).prod(-1)  # (T,)
    whole = torch.where(crowd, own, own + theirs - shared)
    return shared / whole.clamp(min=1e-12)


# %% [markdown]
# Then its flags. Two details. The list is cut after the 100 surest, in each picture *and each class*. And the size of a detection is that of its box, while the size of an object is its `area` in the annotations, which on COCO is that of its outline, not of its box.


# %%
def facts(detections, notes, label, category, band):
    """Of one picture and class: scores, overlaps and flags, as `verdicts` wants them."""
    mine = (detections["labels"] == label).nonzero()[:, 0]
    mine = mine[detections["scores"][mine].argsort(descending=True, stable=True)[:100]]
    boxes = detections["boxes"][mine].double()
    notes = [n for n in notes if n["category_id"] == category]
    crowd = torch.tensor([bool(n["iscrowd"]) for n in notes], dtype=torch.bool)
    area = torch.tensor([n["area"] for n in notes], dtype=torch.float64)
    own_area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    left_out = crowd | (area < band[0]) | (area > band[1])
    outside = (own_area < band[0]) | (own_area > band[1])
    flags = {"left_out": left_out.tolist(), "crowd": crowd.tolist(), "outside": outside.tolist()}
    return detections["scores"][mine], overlaps(boxes, corners(notes), crowd), flags


# %% [markdown]
# And two steps, which in pycocotools are called `evaluate` and `accumulate`. The first judges every picture and class by itself, at each of the ten thresholds:


# %%
def judge(detections, dataset, band=(0, math.inf)):
    """For each class and picture: scores (n,), verdicts (10, n), how many objects are judged."""
    judged = {}
    for category, label in dataset.label_of_category.items():
        judged[category] = []
        for image, notes in zip(dataset.images, dataset.annotations):
            scores, overlap, flags = facts(detections[image["id"]], notes, label, category, band)
            said = [verdicts(overlap, **flags, threshold=t) for t in THRESHOLDS]
            said = np.array(said).reshape(10, -1)
            judged[category].append((scores.numpy(), said, flags["left_out"].count(False)))
    return judged


# %% [markdown]
# The second lays the verdicts of all pictures into one order, by score, for each class. AP is the mean of this table:


# %%
def ap_table(judged, pictures=None):
    """AP of each class with objects at each threshold, (C, 10); of all pictures, or those given."""
    rows = []
    for answers in judged.values():
        chosen = answers if pictures is None else [answers[i] for i in pictures]
        scores, said, objects = zip(*chosen)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        said = np.concatenate(said, axis=1)[:, order]
        if sum(objects):
            rows.append([average_precision(row[row >= 0] == 1, sum(objects)) for row in said])
    return np.array(rows)


# %% [markdown]
# Now against `pycocotools`, for both detectors. (On our pictures small ends at 20 % of the side and large begins at 40 %; on COCO at 32 and 96 pixels.)

# %%
SHARES = (0.2, 0.4)
small, large = ((96 * share) ** 2 for share in SHARES)  # areas in square pixels
limits = {
    "AP": (0, math.inf),
    "AP_small": (0, small),
    "AP_medium": (small, large),
    "AP_large": (large, math.inf),
}
judged = {}
for name, detections in found.items():
    theirs = ap_of(detections, validation, SHARES)  # this is pycocotools
    for metric, band in limits.items():
        judged[name, metric] = judge(detections, validation, band)
        same = abs(ap_table(judged[name, metric]).mean() - theirs[metric]) < 1e-9
        print(f"{name}, {metric}: {theirs[metric]:.2f}, pycocotools within 1e-9: {same}")

# %% [markdown]
# The pictures have no crowds. Let every seventh object be one, so that this rule is put to the test as well.

# %%
crowded = copy.copy(validation)
crowded.annotations = [
    [{**note, "iscrowd": int(note["id"] % 7 == 0)} for note in notes]
    for notes in validation.annotations
]
for name, detections in found.items():
    ours = ap_table(judge(detections, crowded)).mean()
    theirs = ap_of(detections, crowded, SHARES)["AP"]
    print(f"{name}: pycocotools within 1e-9: {abs(ours - theirs) < 1e-9}")

# %% [markdown]
# And the detail with the sizes is no trifle. Our annotations count an object's visible pixels. How many objects would be in another band if the area of their box were taken?


# %%
def band_of(area):
    return (area > small) + (area > large)


notes = [note for notes in validation.annotations for note in notes]
moved = sum(band_of(note["area"]) != band_of(note["bbox"][2] * note["bbox"][3]) for note in notes)
print(f"{moved} of {len(notes)} objects")

# %% [markdown]
# So AP_small of two papers can be compared only if both took the same areas. (Where a file has no areas, this package takes the boxes'.)

# %% [markdown]
# ## 2. What AP rewards, and what it does not see
#
# With the rules in hand, some measurements.
#
# > **Claim:** a detector with a high AP says few wrong things.
# >
# > **Measurement:** add 100 random boxes to every picture, once with scores below all others, once with any scores between 0 and 1.


# %%
def with_junk(detections, low, high, label=None):
    """A hundred more boxes in every picture, of any class or of one, with scores in low..high."""
    generator, result = torch.Generator().manual_seed(0), {}
    for image_id, one in detections.items():
        boxes = 96 * torch.rand(100, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        scores = low + (high - low) * torch.rand(100, generator=generator)
        if label is None:
            labels = torch.randint(8, (100,), generator=generator)
        else:
            labels = torch.full((100,), label)
        junk = {"boxes": boxes, "scores": scores, "labels": labels}
        result[image_id] = {key: torch.cat((one[key], junk[key])) for key in one}
    return result


# %%
plain = {name: ap_of(detections, validation, SHARES) for name, detections in found.items()}
for name, detections in found.items():
    before, least = plain[name]["AP"], min(one["scores"].min() for one in detections.values())
    unsure, sure = (ap_of(with_junk(detections, 0, high), validation)["AP"] for high in (least, 1))
    print(f"{name}: with unsure junk AP changes by less than 0.001: {abs(unsure - before) < 0.001}")
    print(f"{name}: with surer junk it loses more than 0.1: {before - sure > 0.1}")

# %% [markdown]
# What comes at the end of the list costs nothing: at a recall that was reached before it, precision stays what it was. So AP says nothing about how many wrong boxes a user sees. What AP does punish is being *sure* and wrong.
#
# The next cell shows that the list is cut after 100 detections in each picture *and class*: a hundred circles in every picture, surer than anything else, do not touch the AP of stars. (A cut after 100 in each picture would have left no stars.)

# %%
CIRCLE = validation.classes.index("circle")
circles = ap_of(with_junk(found["DETR"], 1, 2, CIRCLE), validation)
print("AP of circles as before:", abs(circles["AP/circle"] - plain["DETR"]["AP/circle"]) < 1e-9)
print("AP of stars as before:  ", abs(circles["AP/star"] - plain["DETR"]["AP/star"]) < 1e-9)

# %% [markdown]
# > **Claim:** a score is a probability, and AP sees whether it is a good one.
# >
# > **Measurement:** replace every score by its fourth power.

# %%
for name, detections in found.items():
    changed = {i: {**one, "scores": one["scores"].double() ** 4} for i, one in detections.items()}
    again = ap_of(changed, validation)["AP"]
    counts = [
        sum((one["scores"] > 0.5).sum().item() for one in d.values()) for d in (detections, changed)
    ]
    print(f"{name}: the same AP: {abs(again - plain[name]['AP']) < 1e-6}")
    print(f"{name}: surer than 0.5 are fewer than before: {counts[1] < 0.9 * counts[0]}")

# %% [markdown]
# AP looks at the order alone. So a threshold, "show what is surer than 0.5", cannot be carried from one detector to another; it has to be chosen for each. A good one is where **F1** is highest, the harmonic mean of precision and recall:

# %%
errors = {name: find_errors(detections, validation) for name, detections in found.items()}
thresholds = {name: best_threshold(one) for name, one in errors.items()}
print({name: round(threshold, 1) for name, threshold in thresholds.items()})

# %% [markdown]
# > **Claim:** of two detectors, the one that is ahead in AP is ahead at every threshold.
# >
# > **Measurement:** AP at each of the ten thresholds.

# %%
by_threshold = {name: ap_table(judged[name, "AP"]).mean(axis=0).tolist() for name in found}
at = [round(float(t), 2) for t in THRESHOLDS]
ax = plots.curves(at, by_threshold, "AP at each threshold of IoU", "IoU at least", "AP")
plots.show(
    ax,
    alt="AP against the threshold of IoU for both detectors. Deformable DETR lies above DETR "
    "throughout; both fall steeply from 0.8 on.",
)
first, second = by_threshold.values()
print("Deformable DETR is ahead at every threshold:", all(a > b for a, b in zip(first, second)))

# %% [markdown]
# Of these two it is so. (They saw the same pictures equally often, but Deformable DETR has extras, such as hints, that DETR has not; a comparison comes in section 4.) Is it always? Two other runs, from a study of section 6, where DETR had four times as many epochs:

# %%
for name in ("detr-24-epochs", "deformable-detr-6-epochs"):
    lines = course.run_log(f"table1-cpu/{name}-rate-1-seed-0")
    end = [line for line in lines if line["kind"] == "evaluate"][-1]
    print(f"{name:>24}: AP {end['AP']:.3f}, at 0.5 {end['AP50']:.3f}, at 0.75 {end['AP75']:.3f}")

# %% [markdown]
# The claim is wrong. This DETR is ahead where a rough box is enough, and behind where it has to fit: it finds more, and less precisely. Whoever only needs to know that something is there would choose the other one, and the single number AP hides that. (The lead at 0.5 is 0.02. How much of that may be chance comes next.)
#
# ### How sure is an AP?
#
# A hundred pictures are a sample; another hundred would have given another AP. How far off? One can ask the pictures at hand: draw 100 of them *with* replacement, compute AP, and do so again and again (the **bootstrap**). The spread of these APs is about as large as what chance does.

# %%
draws = np.random.default_rng(0).integers(100, size=(100, 100))  # 100 times 100 pictures
drawn = {
    name: np.array([ap_table(judged[name, "AP"], rows).mean() for rows in draws]) for name in found
}
for name, values in drawn.items():
    print(f"{name}: the standard deviation is between 0.01 and 0.02: {0.01 < values.std() < 0.02}")
lead = drawn["Deformable DETR"] - drawn["DETR"]
print(f"the standard deviation of the lead of one over the other: {lead.std():.2f}")
print("Deformable DETR is ahead in more than 95 of 100 draws:", (lead > 0).sum() > 95)

# %%
_, (ax,) = plots.panels(1, height=3.0)
ends = [min(map(np.min, drawn.values())), max(map(np.max, drawn.values()))]
with mpl.rc_context(STYLE):
    ax.plot(ends, ends, "--", color=plots.INK, linewidth=1)
    ax.plot(drawn["DETR"], drawn["Deformable DETR"], ".", color=plots.COLOURS[0])
    ax.set(xlabel="AP of DETR", ylabel="AP of Deformable DETR", title="100 draws", aspect="equal")
    ax.locator_params(nbins=5)
plots.show(
    ax,
    alt="A cloud of 100 dots, one for each draw, above the dashed line where both APs are equal; "
    "it stretches along the line.",
)

# %% [markdown]
# Hard pictures are hard for both: the cloud stretches along the line, and the difference of two detectors on the same pictures varies less than one might fear. So a difference has to be compared with the spread of the *difference*, printed above, and not with that of an AP. (The studies below are judged on 300 pictures, that on photos on 198; the spread shrinks with the square root of their number. What chance does to *training* comes on top; for this there are several seeds.)

# %% [markdown]
# ## 3. Where detections go wrong
#
# An AP says how good, not what is bad. TIDE ([Bolya et al. 2020](https://arxiv.org/abs/2008.08115)) sorts every detection that is not right into one of five kinds, by its IoU with the objects, and adds a sixth, *missed*: objects that no detection found, and that none of kind "place" or "class" would find once put right:

# %%
from ddetr_lite.course.tables import Table
from ddetr_lite.plots.run_pictures import KIND_MEANINGS, draw_errors

Table(("kind", "meaning"), [(kind, KIND_MEANINGS[kind]) for kind in KINDS])

# %% [markdown]
# Two thresholds do it: with an IoU of 0.5 or more a box *covers* an object, up to 0.1 it is at no object at all. The order of the questions matters: a box that is off from an object of its class and covers one of another class is of kind "place", for that is asked first. (Exercise 3 is this rule.)
#
# Among what the detectors are surest of, above their thresholds of section 2:

# %%
surest = {name: find_errors(found[name], validation, thresholds[name]) for name in found}
drawn, axes = plots.panels(2, height=2.8, sharey=True)
for ax, (name, one) in zip(axes, surest.items()):
    counts = [one.counts[kind] for kind in ("missed", *ERRORS)]
    plots.bars(counts, ["missed", *ERRORS], name, form="{:.0f}", ax=ax)
    ax.tick_params(axis="x", labelsize=6.8)
plots.show(
    drawn,
    alt="Two bar charts with the numbers of missed objects and of the five kinds of wrong "
    "detections. In both, missed objects are most by far; then come wrong classes in Deformable "
    "DETR, duplicates and wrong classes in DETR.",
)

# %% [markdown]
# Above its threshold neither reports anything where nothing is. Most mistakes are objects that are not found, or taken for another class; DETR also finds some twice. The worst pictures of Deformable DETR. True boxes are dashed and green. Of the detections, correct ones are blue, and what is wrong has the colour of its kind: class orange, place yellow, both magenta, duplicate violet.

# %%
drawn, axes = plots.panels(3, height=2.9)
for ax, one in zip(axes, surest["Deformable DETR"].worst(3)):
    draw_errors(validation.read_image(one.image_id), one, validation.classes, ax)
    kinds = [f"{n} {kind}" for kind, n in one.counts.items() if n and kind != "correct"]
    ax.set(title=", ".join(kinds))
plots.show(
    drawn,
    alt="Three pictures with dashed true boxes, of which some bear the word missed, and wrong "
    "detections in the colours of their kinds.",
)

# %% [markdown]
# ### What each kind costs
#
# Counting is not weighing: a duplicate with a low score costs little AP. TIDE therefore **mends** all mistakes of one kind, and looks how much AP (at IoU 0.5) that gains. A box in the wrong place is put onto its object; a wrong class is put right; what cannot be put right is removed. If an object then has two detections, the surer one stays.


# %%
def mend(one, kind):
    """A picture's detections with its mistakes of one kind put right, and which of them to keep."""
    boxes, labels = one.boxes.clone(), one.labels.clone()
    keep = torch.ones(len(labels), dtype=torch.bool)
    for i in [i for i, of in enumerate(one.kinds) if of == kind]:
        in_class = one.true_labels == labels[i]
        fit = box_iou(boxes[i], one.true_boxes)  # (T,)
        if kind == "place":
            boxes[i] = one.true_boxes[(fit * in_class).argmax()]
        elif kind == "class":
            labels[i] = one.true_labels[(fit * ~in_class).argmax()]
        else:
            keep[i] = False
    return {"boxes": boxes, "scores": one.scores, "labels": labels}, keep


# %%
def mended(errors, kind):
    """All detections after that, without those that have become duplicates by it."""
    changed = {one.image_id: mend(one, kind) for one in errors.pictures}
    again = find_errors({i: detections for i, (detections, _) in changed.items()}, validation)
    result = {}
    for before, after in zip(errors.pictures, again.pictures):
        detections, keep = changed[before.image_id]
        became = [b == "duplicate" != a for a, b in zip(before.kinds, after.kinds)]
        keep &= ~torch.tensor(became, dtype=torch.bool)
        result[before.image_id] = {key: values[keep] for key, values in detections.items()}
    return result


# %% [markdown]
# For a missed object there is no detection to mend. Instead it is taken out of the annotations.


# %%
def gains(errors):
    """What AP50 would gain if all mistakes of a kind were mended, kind by kind."""
    now = {
        one.image_id: {k: getattr(one, k) for k in ("boxes", "scores", "labels")}
        for one in errors.pictures
    }
    before = ap_of(now, validation)["AP50"]
    fewer = copy.copy(validation)
    fewer.annotations = [
        [note for t, note in enumerate(notes) if t not in one.missed]
        for notes, one in zip(validation.annotations, errors.pictures)
    ]
    result = {"missed": ap_of(now, fewer)["AP50"] - before}
    for kind in ERRORS:
        result[kind] = ap_of(mended(errors, kind), validation)["AP50"] - before
    return result


gained = {name: gains(one) for name, one in errors.items()}  # of all detections, however unsure

# %%
ax = plots.grouped_bars(
    {kind: {name: gain[kind] for name, gain in gained.items()} for kind in ("missed", *ERRORS)},
    "AP50 gained by mending one kind (all detections)",
    form="{:.3f}",
)
plots.show(
    ax,
    alt="Horizontal bars of the AP50 that each detector would gain, kind by kind. Wrong classes "
    "cost most, then wrong places and duplicates; missed objects and background next to nothing.",
)
for name, gain in gained.items():
    most, little = max(gain, key=gain.get), gain["missed"] < 0.01
    print(f"{name}: costs most: {most}; missed objects less than 0.01: {little}")

# %% [markdown]
# > **Claim:** both charts say the same about what should be mended first.
# >
# > **Measurement:** the same gains, but of the detections above the threshold, those that were counted.

# %%
for name, one in surest.items():
    gain = gains(one)
    print(f"{name}: above its threshold costs most: {max(gain, key=gain.get)}")

# %% [markdown]
# When all detections count, the detectors miss next to nothing: near almost every object there is some unsure box, which counts as "wrong class" or "wrong place". What a user sees at a threshold is the opposite: the object is missed. Both are the same fact, the detector is unsure there; which number helps depends on how the detector is used.

# %% [markdown]
# ## 4. How much faster?
#
# Back to the first sentence of this notebook. Its experiment is small here, but complete: `ddetr-lite bench convergence` trains all runs on a CPU, and their logs are committed. The method was written down before the first run; it also tells what was changed on the way:

# %%
from ddetr_lite.benchmarks.studies import STUDIES
from ddetr_lite.benchmarks.studies.results import outcomes

RESULTS = Path(ddetr_lite.__file__).parents[1] / "data" / "results"


def read_study(name, folder=""):
    """A study with finished runs and, if measured, costs; None, and a sentence, without runs."""
    study, place = STUDIES[name], RESULTS / (folder or name)
    runs = outcomes(study, place)
    wanted = sum((row.seeds or study.seeds) * len(row.epochs) for row in study.rows)
    if not runs:
        print(f"{name}: not run yet; `ddetr-lite bench {name}` does it.")
        return None
    measured = place / "cost.json"
    costs = json.loads(measured.read_text())["rows"] if measured.exists() else None
    print(f"{name}: {len(runs)} of {wanted} runs are here.")
    return SimpleNamespace(study=study, place=place, runs=runs, costs=costs)


convergence = read_study("convergence")

# %%
Markdown(convergence.study.method)

# %% [markdown]
# ### 4.1 The learning rate
#
# > **Claim:** a comparison is fair if both are trained with the same learning rate.
# >
# > **Measurement:** the runs of the search. × 1 is the same rate for both, and so are × 0.5 and × 2.

# %%
from ddetr_lite.benchmarks.studies.results import searched

# The others take a rate that was found.
searching = [row for row in convergence.study.rows if not row.rate_of]
search = {row.name: {} for row in searching}  # multiple → AP at the end
for run, ap in searched(convergence.study, convergence.place):
    search[run.row.name][run.rate] = ap
bars = {
    row.label: {f"at × {rate:g}": ap for rate, ap in search[row.name].items()} for row in searching
}
title = f"AP after {convergence.study.search_epochs} epochs, at multiples of the learning rates"
ax = plots.grouped_bars(bars, title)
plots.show(
    ax,
    alt="Horizontal bars of AP for both models, one for each multiple of the learning rates that "
    "was tried. For each model one multiple is best, with lower bars on both sides of it.",
)

# %%
detr_at, deformable_at = search["detr"], search["deformable-detr"]
pairs = {"each at its best": (max(deformable_at.values()), max(detr_at.values()))}
for rate in sorted(detr_at.keys() & deformable_at.keys()):
    pairs[f"both × {rate:g}"] = deformable_at[rate], detr_at[rate]
lines = [(rates, *(f"{value:.3f}" for value in (a, b, a - b))) for rates, (a, b) in pairs.items()]
Table(("learning rates", "Deformable DETR", "DETR", "lead"), lines)

# %% [markdown]
# Compare the leads. The same rate for both is not the same chance for both: depending on which rate one happens to take, the lead comes out smaller or much larger than when each model has its own best. Against an untuned baseline one can get nearly any lead. Hence the rule of the study: the same *search* for both, with as many runs as it takes until the best multiple has a worse one on either side. (What the rule does not cover: the search is made at nine epochs, and the best rate of a longer schedule may be another.)
#
# ### 4.2 The curves
#
# As in figure 3 of the paper. Every dot is the end of a schedule of its own, whose learning rate has fallen to zero there: a long run looked at half-way is not a short run, for its rate is still high. (Thin lines are the runs on their way; they show how much that matters.)

# %%
from ddetr_lite.benchmarks.studies.figure import study_figure

plots.show(
    study_figure(convergence.study, convergence.runs, convergence.costs),
    alt="AP, and AP of small objects, against epochs on a logarithmic axis, for DETR and "
    "Deformable DETR (and against time, where that was measured). Thick lines join ends of "
    "schedules, thin ones are single runs.",
)

# %%
from ddetr_lite.benchmarks.studies.table import scores_table

head, *lines = scores_table(convergence.study, convergence.runs)
Table(head, lines)

# %% [markdown]
# (Mean over the seeds, and the lowest and the highest.)
#
# ### 4.3 The factor
#
# "Ten times as fast" is a distance from left to right: take the AP at the end of a DETR schedule, go left to the other curve, and read off the epochs there. Between two dots AP is taken as a line over the *logarithm* of the epochs, as in the figure; each seed is compared with the same seed. (Exercise 4 is this step.) Where Deformable DETR was better already after its shortest schedule, the factor is a lower bound.

# %%
from ddetr_lite.benchmarks.studies.results import factors, spread


def say_factors(one, metric, name="deformable-detr"):
    """How many times as many epochs the baseline takes for the same score, schedule by schedule."""
    base, other = one.study.row("detr"), one.study.row(name)
    known = factors(one.study, one.runs, other, metric)
    if not known:
        print(f"{metric}: not yet; it takes all schedules of {other.label}.")
    for factor in known:
        epochs, seeds = factor.baseline_epochs, len(factor.needed)
        start = f"{metric} {factor.target:.3f} of {base.label} after {epochs} epochs"
        if factor.factor is None:
            print(f"{start}: {other.label} reaches it with {len(factor.reached)} of {seeds} seeds.")
        else:
            times = "at least " * factor.at_most + f"{factor.factor:.1f} times"
            print(f"{start}: {times} the epochs of {other.label} (seeds: {seeds}).")
    return known


overall, small_objects = (say_factors(convergence, metric) for metric in ("AP", "AP_small"))

# %% [markdown]
# Look at three things: whether the factor is the same at the low and at the high end (where it is not, there is no "the" factor); how far the seeds differ; and whether small objects differ, where the paper's gain in AP is largest.
#
# An epoch of one model is not an epoch of the other. Steps of both, measured in turns on the same idle machine, give the price:


# %%
def say_time(one):
    """What an epoch costs, relative to the baseline's."""
    if one.costs is None:
        print("Not measured yet: `ddetr-lite bench convergence --cost` does it.")
        return
    base, other = (one.costs[name] for name in ("detr", "deformable-detr"))
    ratio = other["step_seconds"] / other["batch"] / (base["step_seconds"] / base["batch"])
    print(f"An epoch of Deformable DETR takes {ratio:.2f} times as long as one of DETR.")
    for factor in overall:
        if factor.factor is not None:
            bound, times = "at least " * factor.at_most, factor.factor.mean
            print(f"In time {bound}{times:.1f} becomes {bound}{times / ratio:.1f}.")


say_time(convergence)

# %% [markdown]
# ### 4.4 Beside the paper
#
# Both papers train on COCO with its 118,000 photos, and drop the learning rate once, at two thirds or four fifths of the schedule. From table 1 of Deformable DETR, in percent (DC5: the last stage of the backbone does not halve the map, and its kernels have gaps instead; so the map has stride 16 instead of 32):

# %%
PAPER = {"DETR-DC5": {50: 35.3, 500: 43.3}, "Deformable DETR": {50: 43.8}}  # epochs → AP
for name, ends in PAPER.items():
    print(f"{name}: " + ", ".join(f"{ap} after {epochs} epochs" for epochs, ap in ends.items()))
print(f"so in the paper a factor of at least {500 / 50:.0f}, over DETR-DC5")

# %% [markdown]
# What differs here, and may move the factor in either direction:
#
# - **The task**: 96 pixels, at most five objects of eight classes, known by their outline; nothing has been seen before, while the papers start from ImageNet's features.
# - **DETR's map**: at stride 8 instead of 32, since nine cells would be too few. So here DETR does not suffer from coarse maps as on COCO, least of all for small objects. Section 6 has it at stride 32 and 16.
# - **Maps and backbone**: the paper's models share a whole backbone; here DETR's ends at its map. A third row has DETR's backbone and DETR's one map, and else all of Deformable DETR. What is left of the factor there belongs to the attention, the loss, the reference points and the start (09, sections 1 to 3), together.
# - **The number of cells**: a new cross-attention of DETR looks at all of them (section 5), and there are 144 here, but about 1,050 on a photo of 800 × 1333 pixels. If that is what makes DETR slow, fewer cells must make the factor smaller. So both models once more on a map of stride 16 with 36 cells, beside the 144 of stride 8.
# - **The optimizer**: Muon for matrices, which neither paper had. How much of the factor is its doing?

# %%
_ = say_factors(convergence, "AP", "deformable-detr-same-map")
cells = read_study("convergence-cells")
if cells:
    _ = say_factors(cells, "AP")

# %% [markdown]
# With a quarter of the cells the factor is smaller after either schedule, though both models learn worse on so coarse a map. That is what the authors' reason asks for: the more cells a new cross-attention has to choose among, the longer DETR takes. Two sizes and one seed are no law. But a photo has seven times the cells of our larger map, so this is probably a part of why the paper finds more than we do. (In section 6 DETR's map is coarser still and the factor larger: there Deformable DETR keeps its fine maps.)

# %%
adamw = read_study("convergence-adamw")
if adamw:
    _ = say_factors(adamw, "AP")

# %% [markdown]
# With AdamW alone, the papers' optimizer, the paper's sentence comes true: Deformable DETR is level after three epochs, its shortest schedule, with what DETR reaches in 36. What has the optimizer changed? The ends of the same schedules in both studies:

# %%
if adamw:
    lines = []
    for row in adamw.study.rows:
        for epochs in row.epochs:
            ends = [
                spread(one.runs, one.study.row(row.name), epochs, "AP")
                for one in (convergence, adamw)
            ]
            if all(ends):
                lines.append((row.label, f"{epochs}", *(f"{end.mean:.3f}" for end in ends)))
    display(Table(("model", "epochs", "AP, Muon and AdamW", "AP, AdamW alone"), lines))

# %% [markdown]
# Deformable DETR loses a fifth of its AP with 18 epochs and nearly three quarters with three, DETR nearly nine tenths with 36 and nearly all with nine. So most of what makes DETR slow here is made up for by Muon: a comparison of two models is always one of two models *under an optimizer*. Why DETR profits more was not tested. The two studies also compare at different heights: the AP at which DETR with AdamW ends, DETR with Muon passes long before its shortest schedule is over.
#
# > **Claim:** DETR's learning rate was chosen badly. No run of its search reached AP 0.02 in nine epochs, so the search chose by chance.
# >
# > **Measurement:** its 36 epochs again, with twice and with half of the rate.

# %%
from ddetr_lite.engine.log import read_log

for log in sorted(RESULTS.glob("convergence-adamw-rates/*/log.jsonl")):
    start, *_, end = read_log(log)
    rate = start["recipe"]["train"]["lr"]
    print(f"rate {rate:g}: AP {end['AP']:.3f} after {end['epoch']} epochs")

# %% [markdown]
# It was not: both are worse than the rate of the search. (Two more rates and one seed do not exhaust what can be tuned: the clipping, the weight of "no object" and the batch stayed as they are.)

# %% [markdown]
# And what do both still get wrong at the end of their longest schedules? By the kinds of section 3, for a hundred objects:

# %%
from ddetr_lite.benchmarks.studies.mistakes import mistakes_table


def show_mistakes(one):
    path = one.place / "mistakes.json"
    if not path.exists():
        return print("Not counted yet.")
    known = json.loads(path.read_text())
    head, *lines = mistakes_table({row.name: row.label for row in one.study.rows}, known)
    return Table(head, lines)


show_mistakes(convergence)

# %% [markdown]
# ### 4.5 What it says


# %%
def conclude(overall, small_objects):
    """The factors in a few sentences."""
    read_off = [factor for factor in overall if factor.factor and not factor.at_most]
    if not read_off:
        print("Nothing yet: not all of its runs are here.")
        return
    values = [value for factor in read_off for value in factor.factor.values]
    print(f"For the same AP DETR takes {min(values):.1f} to {max(values):.1f} times the epochs,")
    for bound in (factor for factor in overall if factor.factor and factor.at_most):
        least = min(bound.factor.values)
        print(f"and at least {least:.1f} times with its {bound.baseline_epochs} epochs.")
    print("As many as in the paper at one of these heights:", max(values) >= 10)
    small = {f.baseline_epochs: f.factor for f in small_objects if f.factor and not f.at_most}
    for at in (factor for factor in read_off if factor.baseline_epochs in small):
        here, full = small[at.baseline_epochs], at.factor
        more = min(here.values) > max(full.values)
        print(f"small objects {here.mean:.2f}, all {full.mean:.2f}; more than seeds differ: {more}")


conclude(overall, small_objects)

# %% [markdown]
# That is so with Muon. With the papers' optimizer it is the paper's ten and more (section 4.4). So a factor between two models belongs to a task, a schedule and an optimizer as much as to the models.

# %% [markdown]
# ## 5. Why is DETR slow? Look at the start
#
# Two reasons were named before: the match moves while DETR trains, and a new cross-attention looks everywhere (both in [06](06_detr.ipynb)). The second is the one that Deformable DETR removes, and what it means for learning can be measured before the first step. We take both models of section 4 as they are when they are new, and the two shipped ones, which are trained.

# %%
from ddetr_lite.models.presets import build

torch.manual_seed(0)
new = {row.label: build(row.recipe.model, classes=8).eval() for row in convergence.study.rows}
trained = {name: loaded.model for name, loaded in detectors.items()}
images, targets = collate([validation[i] for i in range(20)])

# %% [markdown]
# ### 5.1 How wide it looks
#
# The **entropy** of weights, $-\sum w \log w$, says how spread they are: 0 if all weight lies on one cell, $\log N$ if $N$ cells share it evenly. Its exponential is easier to read: *as if it looked at so many cells evenly*.

# %%
from ddetr_lite.layers.attention import record_attention


def cells_looked_at(weights):
    """exp of the entropy over the last dimension, averaged over the others."""
    return (-(weights * weights.clamp(min=1e-12).log()).sum(-1)).exp().mean().item()


print(f"even over 144 cells: {cells_looked_at(torch.full((144,), 1 / 144)):.0f}")
looked = {}
for state, model in (("new", new["DETR"]), ("trained", trained["DETR"])):
    with record_attention(model) as weights, torch.no_grad():
        model.outputs(model.batch(images))
    # Of each decoder layer, (B, M, N_q, N):
    layers = [w for place, w in weights.items() if place.endswith("multihead_attn")]
    looked |= {f"{state},\nlayer {k + 1}": cells_looked_at(w) for k, w in enumerate(layers)}

# %%
title = "Cells that a head of a DETR query looks at, of 144"
ax = plots.bars(list(looked.values()), list(looked), title, form="{:.0f}")
plots.show(
    ax,
    alt="Six bars. In all three decoder layers a new DETR looks at nearly all of the 144 cells, "
    "the trained one at roughly two fifths of them.",
)
cells = {
    state: [n for name, n in looked.items() if name.startswith(state)]
    for state in ("new", "trained")
}
print("new: more than nine tenths of 144 in every layer:", min(cells["new"]) > 0.9 * 144)
print("trained: fewer than half of 144 in every layer:   ", max(cells["trained"]) < 0.5 * 144)

# %% [markdown]
# On a photo of 800 × 1333 pixels at stride 32 the 144 would be 1,050. A head of a new Deformable DETR looks at $P$ points on each of $L$ maps, whatever the size of the picture. Both for the ring of our picture; the query is the one that the match gives to it:

# %%
RING = scene.names.index("ring")
labels = torch.tensor([validation.classes.index(name) for name in scene.names])
target = {"boxes": scene.boxes, "labels": labels}


def query_for(model, t):
    """The query that the match gives to object t of our picture."""
    batch, kind = model.batch([scene.pixels]), model.loss.kind
    with torch.no_grad():
        outputs = model.outputs(batch)
    wanted = model.normalise_targets([target], batch.sizes)
    last = outputs.logits[-1:], outputs.boxes[-1:]
    pairs = matching.match(*last, wanted, model.loss.matching, kind)
    return pairs.query[pairs.target == t].item()


# %%
from ddetr_lite.layers.deformable_attention import record_samples

dense, deformable = new["DETR"], new["Deformable DETR"]
with record_attention(dense) as seen, record_samples(deformable) as sampled, torch.no_grad():
    dense([scene.pixels])
    deformable([scene.pixels])
looks = seen["transformer.decoder.layers.0.multihead_attn"][0, :, query_for(dense, RING)]  # (M, N)
at, weights = sampled["transformer.decoder.layers.0.cross_attn"]
at, weights = (x[0, query_for(deformable, RING)] for x in (at, weights))  # (M, L, P, 2), (M, L, P)
# The heads look in all directions, so their mean is the reference point.
middle = at.mean(dim=(0, 2), keepdim=True)
away = (at - middle).abs() * torch.tensor([12.0, 6, 3])[:, None, None]  # in cells of each map
print(f"points of a head: {weights[0].numel()}, at most {away.max():.0f} cells away")
print("with even weights:", weights.std().item() < 1e-6)

# %%
from ddetr_lite.plots.detection import sampling_points

drawn, axes = plots.panels(2, height=3.3)
box, title = scene.boxes[RING], f"DETR: no cell above {looks.mean(0).max() * 144:.1f}× the mean"
plots.attention_over_picture(scene.pixels, looks.mean(dim=0).view(12, 12), title=title, ax=axes[0])
frame = {"fill": False, "edgecolor": "white", "linewidth": 2}
axes[0].add_patch(Rectangle(box[:2].tolist(), *(box[2:] - box[:2]).tolist(), **frame))
sampling_points(scene.pixels, at, weights, box=box, title="Deformable DETR: its points", ax=axes[1])
plots.show(
    drawn,
    alt="Where a query of each new model looks that is matched with the ring, whose box is drawn. "
    "Left, DETR: all over the picture. Right, Deformable DETR: sixteen points of each map around "
    "one place in the ring's box, some over one another.",
)

# %% [markdown]
# (Two cells of the coarsest map are two thirds of this small picture. On a photo they are little.)
#
# ### 5.2 Where the gradient goes
#
# What follows from looking everywhere? A query is matched with an object, and its class loss sends a gradient back, through the cross-attention, to the cells that it looked at: *change, so that this class is seen in you*. The object's own cells show its class most directly. (The memory's cells are not the picture's: an encoder has mixed them before, DETR's over the whole picture. What we compare is both together.) What share of the gradient reaches them?


# %%
def gradient_on_cells(model, image, target, other=0):
    """For each object its class loss's gradient on the memory's cells, in shares, (N,); its box."""
    kept = []
    handle = model.transformer.encoder.register_forward_hook(lambda *call: kept.append(call[-1]))
    batch, kind = model.batch([image]), model.loss.kind
    outputs, wanted = model.outputs(batch), model.normalise_targets([target], batch.sizes)
    handle.remove()
    last = outputs.logits[-1:], outputs.boxes[-1:]
    pairs = matching.match(*last, wanted, model.loss.matching, kind)
    for t, query in sorted(zip(pairs.target.tolist(), pairs.query.tolist())):
        logits, label = outputs.logits[-1, 0, (query + other) % 20], wanted[0]["labels"][t]
        p = logits.softmax(-1)[label] if kind == "softmax" else logits[label].sigmoid()
        (pull,) = torch.autograd.grad(-p.log(), kept[0], retain_graph=True)  # (1, N, d)
        size = pull[0].norm(dim=-1)
        yield size / size.sum(), wanted[0]["boxes"][t]


# %% [markdown]
# For the ring again. (The three maps of Deformable DETR are laid over one another. The title says how much the strongest cell gets, as a multiple of an even share.)


# %%
def on_one_map(shares, sides):
    """(N,) of all maps → (12, 12): a coarse cell's share is spread over the fine ones in it."""
    result = torch.zeros(12, 12)
    for part, side in zip(shares.split([side * side for side in sides]), sides):
        fine = 12 // side  # so many cells a side does a cell of this map cover
        result += torch.kron(part.view(side, side), torch.full((fine, fine), 1 / fine**2))
    return result


SIDES = {"DETR": [12], "Deformable DETR": [12, 6, 3]}  # cells a side of each map
pulls = {
    name: list(gradient_on_cells(model, scene.pixels, target))[RING][0]
    for name, model in new.items()
}

# %%
drawn, axes = plots.panels(2, height=3.3)
for ax, (name, shares) in zip(axes, pulls.items()):
    table = on_one_map(shares, SIDES[name])
    title = f"{name}: up to {table.max() * 144:.1f}×"
    plots.attention_over_picture(scene.pixels, table, title=title, ax=ax)
    ax.add_patch(Rectangle(box[:2].tolist(), *(box[2:] - box[:2]).tolist(), **frame))
plots.show(
    drawn,
    alt="Two maps of the gradient over the picture, with the ring's box. That of a new DETR goes "
    "to all cells nearly alike; that of a new Deformable DETR goes to cells in and around the box.",
)

# %% [markdown]
# (The argument `other` of `gradient_on_cells` takes the query that many numbers further on; it is used below.)
#
# One picture is an example. For the objects of 20 pictures: the share of the gradient that reaches the cells inside the object's box, against the share of all cells that lie there, which is what an even spread would give.


# %%
def inside_boxes(model, sides, other=0):
    """The gradient's share inside the objects' boxes, as a multiple of the share of cells there."""
    steps = [(torch.arange(side) + 0.5) / side for side in sides]
    centres = torch.cat([torch.cartesian_prod(s, s).flip(-1) for s in steps])  # (N, 2), (x, y)
    inside, cells = [], []
    for image, target in zip(images, targets):
        for shares, box in gradient_on_cells(model, image, target, other):
            xyxy = cxcywh_to_xyxy(box)
            within = ((centres > xyxy[:2]) & (centres < xyxy[2:])).all(-1)
            inside.append(shares[within].sum().item())
            cells.append(within.float().mean().item())
    return sum(inside) / sum(cells)


# %%
states = (("new", new, 0), ("another query", new, 7), ("trained", trained, 0))
measured = {
    f"{name}, {state}": inside_boxes(models[name], SIDES[name], other)
    for name in SIDES
    for state, models, other in states
}
title = "Gradient on the object's cells, as a multiple of an even spread"
labels = [name.replace(", ", ",\n").replace("Deformable ", "Deformable\n") for name in measured]
ax = plots.bars(list(measured.values()), labels, title, form="{:.1f}")
ax.axhline(1, color=plots.INK, linestyle="--", linewidth=1)
plots.show(
    ax,
    alt="Six bars. A new DETR is at 1.0, an even spread, with the matched query and with another "
    "one. A new Deformable DETR is above 2 with the matched query, and at 1.3 with another. Both "
    "trained ones are above 5.",
)

# %%
print("new DETR, between 0.9 and 1.1:         ", 0.9 < measured["DETR, new"] < 1.1)
print("new Deformable DETR, more than 2:      ", measured["Deformable DETR, new"] > 2)
print("the same with another query, below 1.5:", measured["Deformable DETR, another query"] < 1.5)

# %% [markdown]
# In a new DETR every cell of the picture is told to show the class of every object: each cell's gradient is about equally long, wherever the object is. (One new model of each kind; directions were not compared.) In a new Deformable DETR the right cells already get more than twice their share, though it has learned nothing. That is so because the matched query stands near the object: with another query, seven numbers on, most of it is gone. DETR has to *learn* where to look before its gradient goes there, as the trained one's does.
#
# ### 5.3 How little a score changes a weight
#
# The gradient of a single score is small as well. A weight $a$ comes out of a softmax; when its score rises a little, the weight rises $a\,(1 - a)$ times as much. With $N$ even weights, $a = 1/N$:

# %%
for name, n in (("6 points", 6), ("144 cells", 144), ("1,050 cells of a photo", 25 * 42)):
    scores = torch.zeros(n, requires_grad=True)
    scores.softmax(0)[0].backward()
    print(f"{name:>22}: {scores.grad[0]:.4f}, by hand {1 / n * (1 - 1 / n):.4f}")

# %% [markdown]
# An optimizer that divides by the gradient's size makes up for a factor that all scores share, so this alone does not show slow learning. The authors' reason is that of section 5.2: with even weights, the gradient does not say where to look.
#
# What has been shown: how both models begin, and that their gradients go to other places. What has *not* been shown: that this alone makes the factor of section 4. The two models differ in their loss, their reference points and how their heads begin as well as in their attention. (That Deformable DETR has more maps, and with them a larger backbone, is not the reason: section 4.4, the row on DETR's map.) For that, one thing at a time has to be changed: ablations.

# %% [markdown]
# ## 6. The two tables of the paper, at small scale
#
# Table 1 of Deformable DETR compares models, a *row* for each (a model with its settings and lengths of schedule); table 2 takes one model apart. Both are studies here, each in two sizes: `table1` and `table2` on pictures of 256 pixels for a GPU, `table1-cpu` and `table2-cpu` on 128 pixels for a CPU. A cell below shows what has been run.
#
# What counts in a small study is not the height of an AP but an **ordering**: is this row ahead of that one? We write down the orderings of the paper, and let a function decide: *confirmed* if every run of the one ends above every run of the other; *reversed* if it is the other way round; *open* in between, and, where a row has a single seed, if the difference is below 0.02 (two seeds can differ by nearly as much). With one seed each, a word in the last column is an observation and not a proof.


# %%
def verdict(ahead, behind):
    """APs of the runs of two rows."""
    if not ahead or not behind:
        return "not run"
    difference = sum(ahead) / len(ahead) - sum(behind) / len(behind)
    if min(len(ahead), len(behind)) == 1 and abs(difference) < 0.02:
        return "open"
    if min(ahead) > max(behind):
        return "confirmed"
    return "reversed" if max(ahead) < min(behind) else "open"


examples = ([0.50, 0.52], [0.40, 0.49]), ([0.50, 0.52], [0.51]), ([0.4], [0.5])
print(" · ".join(verdict(*pair) for pair in examples))

# %% [markdown]
# ### 6.1 Which model is ahead
#
# The orderings of table 1. DETR was trained for 500 epochs there and Deformable DETR for 50; our DETR rows have a long schedule, four times as long, and a short one as long as the others'. (The paper has 50 epochs for DETR-DC5 too, and 109 for Faster R-CNN, the detector with anchors that 06 names. *FPN* is a feature pyramid: coarse maps are enlarged and added to finer ones, so that each has both.) *Single scale* means one map, at stride 32, or at 16 with DC5. The authors' scores of Deformable DETR are those of their released code, a little more than the paper says.

# %%
from ddetr_lite.benchmarks.studies import orderings
from ddetr_lite.benchmarks.studies.figure import rows_figure
from ddetr_lite.benchmarks.studies.table import orderings_table


def show_study(name, folder=""):
    """Chart, scores and orderings of a study, as far as it has been run."""
    if (one := read_study(name, folder)) is None:
        return None
    asked = orderings.judge(one.study, one.runs)
    said = [verdict(*(side.values if side else () for side in o.here)) for o in asked]
    print(", ".join(f"{said.count(word)} {word}" for word in dict.fromkeys(said)), "of", len(said))
    plots.show(
        rows_figure(one.study, one.runs),
        alt="Horizontal bars for each row and its epochs: AP of all and of small objects here, "
        "and the paper's AP.",
    )
    for head, *lines in (scores_table(one.study, one.runs), orderings_table(one.study, one.runs)):
        display(Table(head, lines))
    return one


# %%
table_1 = show_study("table1-cpu")

# %% [markdown]
# Most stand as in the paper. Three things are worth a closer look.
#
# **The map.** The first three rows of Deformable DETR differ in nothing but the maps that they see. How many cells have they, and what do they reach?

# %%
ROWS = ("deformable-detr-single-scale", "deformable-detr-single-scale-dc5", "deformable-detr")
SEEN = ([4], [8], [16, 8, 4, 2])  # cells a side of each map, in a picture of 128 pixels


def score(one, name, metric="AP"):
    """The mean over seeds, after the longest schedule."""
    row = one.study.row(name)
    return spread(one.runs, row, row.epochs[-1], metric).mean


rows = []
for name, sides in zip(ROWS, SEEN):
    scores = (f"{score(table_1, name, metric):.3f}" for metric in ("AP", "AP_small"))
    rows.append((table_1.study.row(name).label, f"{sum(side * side for side in sides)}", *scores))
Table(("model", "cells", "AP", "AP small"), rows)

# %% [markdown]
# Sixteen cells are little for up to six objects, and most of an object's outline, by which its class is known, is lost in them. In section 4.4 one map was as good as three, but that was one of stride 8. Taken together: what helps are fine cells. Plain attention over so many would be costly, which is why DETR takes the coarsest map (06); sampling makes them cheap.
#
# **The factor.** DETR sees the map at stride 32 here, as in its paper:

# %%
_ = say_factors(table_1, "AP")

# %% [markdown]
# With a map of stride 8 it was two at such lengths of schedule (section 4). And DETR-DC5, at stride 16, ends a little above Deformable DETR after four times the epochs: for it the factor is below four. So the coarser DETR's map, the larger the factor. A part of the paper's factor of ten may be DETR's coarse map. (One seed; and the pictures are not those of section 4.) The factor is one in *epochs*. A step of DETR on so small a map takes a quarter of the time of one of Deformable DETR, so that in time there is hardly a factor left; `data/results/table1-cpu/table.md` has the costs.
#
# **Faster R-CNN.** Two orderings are reversed, and in both it is ahead where the paper has it behind. By how much, and on which objects? Beside the best of the others:

# %%
lines = []
for metric in ("AP", "AP_small", "AP_medium", "AP_large"):
    ours = score(table_1, "deformable-detr-two-stage", metric)
    theirs = score(table_1, "faster-rcnn", metric)
    lines.append((metric, f"{theirs:.3f}", f"{ours:.3f}", f"{theirs - ours:+.3f}"))
Table(("score", "Faster R-CNN + FPN", "Deformable DETR ++", "lead"), lines)

# %% [markdown]
# The lead is on small objects, and shrinks as they grow. What is behind it? Three differences can be taken away one at a time:
#
# - **The finest map**: Faster R-CNN's has stride 4, that of Deformable DETR stride 8.
# - **How much there is to learn from an object**: dozens of Faster R-CNN's proposals learn from each; one-to-one matching gives a decoder layer one query an object, and early on a different one in every step. The remedy costs nothing once training is over: **hints**, here four more queries an object that start near its box and need no match ([13](13_what_came_next.ipynb); the course's own detector in 09 has them).
# - **How many boxes are looked at**: hundreds of proposals, or 20 queries.

# %%
lead = read_study("lead-cpu")
theirs, ours = (score(lead, name) for name in ("faster-rcnn", "deformable-detr-two-stage"))
for row in lead.study.rows:
    if row.label.startswith("Deformable DETR") and score(lead, row.name) != ours:
        closed = (score(lead, row.name) - ours) / (theirs - ours)
        print(f"{row.label}: {closed:.0%} of the lead closed")
head, *lines = scores_table(lead.study, lead.runs)
Table(head, lines)

# %% [markdown]
# **Hints** alone close about half of the lead (somewhat more with this seed, somewhat less with another, below), and on large objects the two can then not be told apart. So a good part of it is not what the detector is, but how it is taught in six epochs: by few lessons, and by a match that jumps. (Hints mend both at once. DN-DETR's authors blame the match, those of Group DETR, H-DETR and Co-DETR the few lessons: [13](13_what_came_next.ipynb).)
#
# **A map at stride 4** alone closes more, by most on small objects (0.615 to 0.749): Deformable DETR ++ is then, by one seed, too close to Faster R-CNN to call. Its price is four times as many tokens. And the other way round, Faster R-CNN without its map at stride 4 falls to 0.754.
#
# **Both** add up: 0.849, ahead of Faster R-CNN by more than the limit, on small objects too (0.792 and 0.771).
#
# **A hundred queries** instead of 20 bring less than the limit. It is not the number of boxes.
#
# So the lead is made of two things: a finer map, and more to learn from each object. On the same maps, whether the finest has stride 4 or 8, Faster R-CNN is ahead by less than one seed can tell; with hints Deformable DETR ++ is ahead on both, which is the paper's order. (At stride 8 it is so for objects of every size: Faster R-CNN has 0.665 and Deformable DETR ++ 0.685 on small ones, 0.814 and 0.868 on large ones. Faster R-CNN's smallest anchor kept its 12 pixels there; it only stands less densely.) The verdicts above stay as they are: the paper's models have no hints.
#
# > **Claim:** with one seed, all this may be chance.
# >
# > **Measurement:** some of these rows once more, with another seed.

# %%
second = {}
for log in sorted(RESULTS.glob("lead-cpu-seed-1/*/log.jsonl")):
    row = lead.study.row(log.parent.name.split("-6-epochs")[0])
    first, again = score(lead, row.name), read_log(log)[-1]["AP"]
    second[row.name] = again
    print(f"{row.label}: AP {first:.3f} with the first seed, {again:.3f} with the second")
theirs, ours = second["faster-rcnn"], second["deformable-detr-two-stage"]
closed = (second["hints"] - ours) / (theirs - ours)
print(f"Hints: {closed:.0%} of the lead closed with the second seed")

# %% [markdown]
# From seed to seed they differ by less than one part in fifty; what hints bring, and the map at stride 4, is more than twice as much with either seed. Both together are ahead of Faster R-CNN with either. And what one seed left open is decided by two: without hints Faster R-CNN is ahead on the same maps, by little, with both seeds and at either stride.
#
# The same table for a GPU, larger and with three seeds:

# %%
_ = show_study("table1")

# %% [markdown]
# ### 6.2 What its parts bring
#
# Table 2 changes one thing at a time in the multi-scale model (without refinement): attention across the maps or within each (a token of the encoder looks at its own map only), and the number of points. (The paper's rows with a feature pyramid are left out: with attention across the maps it brought nothing there.) Three rows of ours are not in the paper: one point with attention across maps, four points on a single map, and offsets that start anywhere instead of at the compass (07).

# %%
table_2 = show_study("table2-cpu")

# %%
with_maps = [row.name for row in table_2.study.rows if not row.name.startswith("single-map")]
reached = [score(table_2, name) for name in with_maps]
print(f"the {len(reached)} rows with four maps: AP {min(reached):.3f} to {max(reached):.3f}")

# %% [markdown]
# One step is large: from one coarse map to four. The others cannot be told apart with one seed: four points or one, attention across the maps or within each, the compass or offsets anywhere. Does that contradict the paper? No. There each of these steps brings one or two points of 44, a few parts in a hundred; so much of our AP would be just at the limit of 0.02. An ablation whose effect is as small as the spread between seeds needs more seeds, or a larger study. (And in the decoder, where queries read objects off, all our rows with four maps look across all of them.)

# %%
_ = show_study("table2")

# %% [markdown]
# ### 6.3 On real pictures
#
# Photos are harder than drawings: 80 classes, objects that hide one another, of all sizes. Four of the detectors at one budget on coco-mini, a small part of COCO: 1,780 pictures with no side above 208 pixels, eight epochs, the same MobileNetV2 with what it learned on ImageNet. And the last of them once more with hints:

# %%
photos = show_study("coco-mini-cpu")

# %% [markdown]
# Nobody is good after so short a training. (The paper's models saw 118,000 larger pictures, fifty times each.) And again Faster R-CNN is ahead. (By the rule above its lead over Deformable DETR ++, 0.012, is open; but the limit of 0.02 was meant for APs far above these. In AP50 it is 0.114 against 0.078.) Why this time? The kinds of section 3, for a hundred objects:

# %%
show_mistakes(photos)

# %% [markdown]
# Of a hundred objects Faster R-CNN misses 78.8, and Deformable DETR ++ 81.8: nearly as many. Of the others it gets more right (15.1 against 10.4). But Deformable DETR ++ also reports more that is wrong: boxes in the wrong place (21.2 against 12.7) or where nothing is (19.8 against 6.7), and five times as many duplicates (10.8 against 2.0). Faster R-CNN need not learn to avoid duplicates: it ends with non-maximum suppression (05), a rule that deletes what overlaps a surer detection of the same class. A set of predictions has to learn not to repeat itself, and 888 steps are too few for that.
#
# > **Claim:** a part of the lead is nothing but that rule.
# >
# > **Measurement:** the same detections of all five, with the rule applied afterwards.

# %%
from ddetr_lite.benchmarks.studies.mistakes import nms_table

known = json.loads((photos.place / "mistakes.json").read_text())
head, *lines = nms_table({row.name: row.label for row in photos.study.rows}, known, photos.runs)
Table(head, lines)

# %%
as_said = {outcome.run.row.name: outcome.last["AP50"] for outcome in photos.runs}
for name in ("deformable-detr-two-stage", "hints"):
    closed = (known[name]["nms"]["AP50"] - as_said[name]) / (as_said["faster-rcnn"] - as_said[name])
    print(f"{name}: the rule alone closes {closed:.0%} of the lead in AP50")

# %% [markdown]
# So it is: the rule alone closes 56 % of the lead in AP50 over Deformable DETR ++, and 42 % of the lead over the one with hints. (For Faster R-CNN nothing changes, of course: it applies the rule already. For DETR nothing changes either: at stride 32 it sees 35 cells at most, and what it says is wrong in other ways.) The authors of DETR saw the same within a trained model: NMS helps the predictions of its first decoder layer, and no longer those of the last. What the rest of the lead is made of was not measured.
#
# And the hints, which closed about half of the lead on drawings? With them a few more objects are found (12.1 instead of 10.4), but more wrong things are said, too, and in AP the two cannot be told apart. What helps one training need not help another. (One seed each, and 198 pictures to judge by.)
#
# Last: the budget is one in epochs. In time?

# %%
costs = json.loads((photos.place / "cost.json").read_text())["rows"]
for name in ("detr", "deformable-detr", "deformable-detr-two-stage"):
    share = costs[name]["step_seconds"] / costs["faster-rcnn"]["step_seconds"]
    label = photos.study.row(name).label
    print(f"{label}: a step takes {share:.2f} of the time of one of Faster R-CNN's")

# %% [markdown]
# So at equal time the lead would be smaller; by how much was not measured.
#
# The larger study of the same kind, for a GPU, with 60 epochs:

# %%
_ = show_study("coco-mini", folder="coco-mini-four")

# %% [markdown]
# ## 7. The command behind every number
#
# Each run above is one command, which its study can tell; the log says with which versions and on what device it ran. Those of seed 0 in section 4:

# %%
import textwrap

from ddetr_lite.benchmarks.studies.training import command_of

for outcome in convergence.runs:
    if outcome.run.seed == 0:
        words = f"AP {outcome.last['AP']:.3f}: {command_of(outcome.run, Path('runs'))}"
        print(textwrap.fill(words, 88, subsequent_indent="    ", break_on_hyphens=False))

# %% [markdown]
# And all at once, two runs at a time, for as long as you have; the same command goes on where it was stopped, and writes tables and curves of what is finished:
#
# ```
# ddetr-lite bench convergence --jobs 2 --threads 1 --minutes 60
# ```

# %%
starts = [outcome.results.start for outcome in convergence.runs]
print(sorted({f"torch {start['versions']['torch']}, {start['device']}" for start in starts}))

# %% [markdown]
# ## Summary
#
# - COCO's AP: a greedy match for each picture, class and threshold, the surest first; the envelope at 101 recalls; the mean over ten thresholds and all classes. Objects of another size and crowds are left out, and so are detections on them.
# - AP sees the order of the scores, not their values; unsure junk costs nothing, a sure mistake much. A single threshold hides the quality of boxes. On a few hundred pictures a hundredth of AP may be chance.
# - Mistakes are of kinds, and mending one kind says what it costs. For our two detectors next to nothing is missed when all detections count; above a threshold, missing is the main mistake.
# - A fair comparison searches both learning rates in the same way, and lets every schedule end. Ask for the factor at more than one height.
# - A new DETR looks at all cells, and its gradient goes to all cells alike; a new Deformable DETR looks at a few points, and the object's cells get more than twice their share.
# - An ordering of a table is confirmed or not; in a small study it is better not to ask for more. Here most of table 1's are. Fine cells matter most; where a part brings as little as seeds differ, a small study cannot see it.
# - A comparison is one under an optimizer: with AdamW alone DETR takes at least twelve times the epochs for what it has after 36 (one seed), with Muon about twice as many (at least three times at the height of its shortest schedule).
# - On the same map for both, the factor was larger with more cells (two sizes, one seed); and it is larger when DETR has to take a coarse map while Deformable DETR keeps fine ones.
# - On drawings hints close about half of Faster R-CNN's lead: they give more to learn from each object, and need no match. On photos, after eight epochs, they brought nothing that could be told; there NMS closes about half of the lead in AP50.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `match_detections`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 15 minutes
#
# The greedy rule of section 1, for detections in any order.


# %% tags=["exercise"]
def match_detections(scores, overlap, threshold):
    """scores (n,), any order; overlap (n, T); n or T may be 0.
    Returns (n,), int64, as given: object or −1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `scores.argsort(descending=True).tolist()` is the order in which they choose. An answer that begins as all −1 keeps the order given.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("match_detections", match_detections)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def match_detections(scores, overlap, threshold):
#     """scores (n,), any order; overlap (n, T); n or T may be 0.
#     Returns (n,), int64, as given: object or −1.
#     """
#     owner = [-1] * len(scores)
#     for i in scores.argsort(descending=True).tolist():
#         free = [t for t in range(overlap.shape[1]) if t not in owner and overlap[i, t] >= threshold]
#         owner[i] = max(free, key=lambda t: overlap[i, t].item(), default=-1)
#     return torch.tensor(owner, dtype=torch.int64)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `ap_over_thresholds`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# What 05 did for one threshold, with verdicts at several (a row for each): 1 is right, 0 wrong, −1 left out. `objects` says how many there are.


# %% tags=["exercise"]
def ap_over_thresholds(scores, verdicts, objects):
    """scores: (n,), any order; verdicts: (thresholds, n), 1, 0, −1: left out. Returns a scalar."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# For each row: sort, drop what is −1, then cumsum, precision, recall, and the best precision at each of 101 recalls or beyond.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("ap_over_thresholds", ap_over_thresholds)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def ap_over_thresholds(scores, verdicts, objects):
#     """scores: (n,), any order; verdicts: (thresholds, n), 1, 0, −1: left out. Returns a scalar."""
#     values = []
#     for row in verdicts[:, scores.argsort(descending=True)]:
#         found = (row[row >= 0] == 1).double().cumsum(0)
#         precision, recall = found / torch.arange(1, len(found) + 1), found / objects
#         best = torch.zeros(101, dtype=torch.float64)
#         for i in range(101):
#             beyond = precision[recall >= i / 100]
#             if len(beyond):
#                 best[i] = beyond.max()
#         values.append(best.mean())
#     return torch.stack(values).mean()
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `kind_of_mistake`
#
# Difficulty ●●○○○ · Importance ●●●○○ · about 10 minutes
#
# Of which kind is a detection that is not right? Asked in this order: *place*, if its largest IoU with objects of its class is at least 0.1 and below 0.5; *class*, if that with objects of other classes is at least 0.5; *duplicate*, if that with its class is at least 0.5; *background*, if none is above 0.1; *both* otherwise.


# %% tags=["exercise"]
def kind_of_mistake(overlap, same_class, low=0.1, high=0.5):
    """overlap: (T,), IoU with each object; same_class: (T,), boolean. Returns one of five words."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `(overlap * same_class).max()`, and the same for the others. What if the picture has no objects?
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("kind_of_mistake", kind_of_mistake)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def kind_of_mistake(overlap, same_class, low=0.1, high=0.5):
#     """overlap: (T,), IoU with each object; same_class: (T,), boolean. Returns one of five words."""
#     if len(overlap) == 0:
#         return "background"
#     own, other = (overlap * same_class).max(), (overlap * ~same_class).max()
#     if low <= own < high:
#         return "place"
#     if other >= high:
#         return "class"
#     if own >= high:
#         return "duplicate"
#     return "background" if max(own, other) <= low else "both"
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `epochs_for`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 20 minutes
#
# The step behind "so many times faster" in section 4. Where the target lies between two schedules, AP is a line over the logarithm of the epochs; the first crossing counts. A target that the shortest schedule already reaches gives its length, one that none reaches gives None.


# %% tags=["exercise"]
def epochs_for(ends, target):
    """ends: [(epochs, AP at the end), ...], shortest schedule first. Returns a float, or None."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Deal first with a target that the shortest schedule reaches, and with one that is above *all* ends (the longest need not be the best). Then find the first pair of neighbours with `low < target <= high`; `share = (target - low) / (high - low)`
# of the way from $\log(\text{before})$ to $\log(\text{after})$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("epochs_for", epochs_for)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def epochs_for(ends, target):
#     """ends: [(epochs, AP at the end), ...], shortest schedule first. Returns a float, or None."""
#     if target > max(score for _, score in ends):
#         return None
#     if target <= ends[0][1]:
#         return float(ends[0][0])
#     for (before, low), (after, high) in zip(ends, ends[1:]):
#         if low < target <= high:
#             share = (target - low) / (high - low)
#             return before * (after / before) ** share
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package
#
# The package needs one of these functions itself: the factors of section 4 are made with `epochs_for`. Now with yours:

# %% tags=["nbval-ignore-output"]
course.restore()
course.use(epochs_for)

# %%
other = convergence.study.row("deformable-detr")
again = factors(convergence.study, convergence.runs, other)
assert again  # there is something to compare
before = [value for factor in overall for value in factor.needed]
after = [value for factor in again for value in factor.needed]
course.reset()
pairs = zip(before, after, strict=True)
print("the same epochs:", all(a == b or abs(a - b) < 1e-9 for a, b in pairs))

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("T", "C", "N", "N_q", "M", "L", "P", "B", "K")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("10")

# %% [markdown]
# **Next:** real photos, a real GPU, and your own pictures. [11 · Train on COCO](11_train_on_coco.ipynb). Back to
# [09 · Deformable DETR](09_deformable_detr.ipynb).
