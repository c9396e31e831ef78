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
# # 00 · Start here: a detector at work, and the query we shall follow
#
# A trained detector finds the objects in a picture, and then in a photo. Then we look over its shoulder: at
# one of its *queries*, and at the few points of the picture which that query looks at. All that works here
# you will build yourself in the notebooks to come, beginning with a dot product.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | run a trained detector, from Python and from a terminal; read what it says and measure how right it is; say what a query, its reference point and its sampling points are; solve an exercise, and let the detector run on your solution |
# | **You need first** | Python, matrix products, and arrays as in NumPy (shape, indexing, broadcasting); nothing about neural networks |
# | **Time** | 50 minutes to read and run, 30 for the exercises |
# | **Device** | any CPU; all cells together take less than half a minute, and nothing is downloaded |

# %% [markdown]
# Run the cells from top to bottom: Shift + Enter runs one and goes on to the next. Where a cell prints
# something, guess first. Change things and run them again: *Kernel → Restart* gives you a fresh start;
# `git checkout notebooks` brings back the original text of all cells (what you have written in them is then gone).

# %% [markdown]
# Now and then you meet a box with two words in bold. The **claim** is something that one might believe; the
# **measurement** below it decides. Often it says no.

# %%
import torch

from ddetr_lite import course, plots
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.engine.predict import predict
from ddetr_lite.plots import detection
from ddetr_lite.set_prediction import boxes as package  # the package's functions on boxes

# %% [markdown]
# ## 1. What a detector says
#
# A **detector** is given a picture and answers two questions: what is in it, and where? Ours is called
# *Deformable DETR*. The course will explain the name; for now it is a machine with a slot for pictures.
# Here is one to put in:

# %%
scene = course.picture()
print(tuple(scene.pixels.shape), scene.pixels.dtype)

# %% [markdown]
# For a computer a picture is an array of numbers (torch says **tensor**): three tables, for red, green and
# blue, of 96 rows and 96 columns, with whole numbers from 0 to 255 (that is what `uint8` says). To us it
# looks like this:

# %%
ax = plots.picture(scene.pixels, "The course's picture")
plots.show(
    ax,
    alt="A generated picture with a large striped star, a small teal star, and an orange triangle "
    "that hides part of a yellow ring.",
)

# %% [markdown]
# A program drew it. Objects of eight kinds, of any size, colour and pattern and turned any way, lie on a
# textured ground; they hide parts of one another, and the border cuts some off. So we know exactly what is in
# it, and can make as many as we like without a download. **This picture goes with us through the whole
# course.**

# %% [markdown]
# And the machine. It comes with the course, trained on 4,000 pictures of this kind:

# %%
detector = course.detector()
count = sum(parameter.numel() for parameter in detector.model.parameters())
print(f"{count / 1e6:.1f} million parameters")
print("classes:", ", ".join(detector.classes))

# %% [markdown]
# Its **parameters** are all it has learned: numbers that were random at first. Training changed them
# a little after every few pictures, so that the answers became better. It knows eight **classes**,
# the kinds of objects, and nothing else in the world.

# %%
found = predict(detector, scene.pixels, threshold=0.5)
for f in found:
    print(f"{f.label:9} score {f.score:.2f}   box {[round(x) for x in f.box]}")

# %% [markdown]
# Each line is one **detection**, and has three parts:
#
# - the **class**: what it is;
# - the **score**: how sure the detector is, from 0 to 1. The surest comes first, and what scores below 0.5 is
#   left out;
# - the **box**: $x_0, y_0, x_1, y_1$, the upper left corner and the lower right one, in pixels. $x$ counts from the
#   left edge to the right, and $y$ from the upper edge *downwards*.

# %%
labels, scores = [f.label for f in found], [f.score for f in found]
ax = detection.boxes(scene.pixels, [f.box for f in found], labels, scores, "What the detector says")
plots.show(
    ax,
    alt=f"The picture with the boxes found, each with its class and score: {', '.join(labels)}.",
)

# %% [markdown]
# Is that good? The eye says yes or no; a number says how much. How well do two boxes agree? Take the area
# that both of them cover, and divide it by the area that they cover together, each piece counted once. This
# is the **intersection over union**, IoU: 1 for equal boxes, 0 for boxes that do not touch.

# %% [markdown]
# With a pencil: the box (0, 0, 4, 4) and the box (2, 0, 6, 4), the same moved two to the right. They share
# a strip of 2 × 4 = 8. Together they cover 16 + 16 − 8 = 24. So their IoU is 8 / 24 = 0.33: each covers
# half of the other, and still the IoU is only a third. IoU is a strict measure.


# %%
def iou(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    # width and height of what both cover; 0 when they do not touch
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a + area_b - width * height)


print(f"{iou((0, 0, 4, 4), (2, 0, 6, 4)):.2f}")

# %% [markdown]
# Now every detection against every object that is really there. The picture brings the truth along, in
# `scene.boxes` and `scene.names`:

# %%
truth = scene.boxes.tolist()
table = torch.tensor([[iou(f.box, box) for box in truth] for f in found]).reshape(-1, len(truth))
rows = [f"{f.label} {f.score:.2f}" for f in found]
ax = plots.matrix(table, rows, scene.names, "IoU", "really there", "found")
plots.show(
    ax,
    alt="A matrix of IoU: a row for each detection, a column for each true object. In a dark cell "
    "the box of the row fits the object of the column.",
)

# %% [markdown]
# In a dark cell the box of the row fits the object of the column. By custom an object counts as found when a
# detection of the right class has an IoU of at least 0.5 with it. One line for each true object:

# %%
for name, box in zip(scene.names, truth):
    best = max((iou(f.box, box) for f in found if f.label == name), default=0.0)
    print(f"{name:8}  {'found' if best >= 0.5 else 'missed'}, IoU {best:.2f}")

# %% [markdown]
# All four are found. *Missed* would mean that no detection of the right class with a score of at least 0.5 fits; a less sure
# one, or one of another class, might still lie there.

# %% [markdown]
# > **Claim:** it finds objects here because it learned this very picture by heart.
# >
# > **Measurement:** such a set of pictures is **split** in two. From one part, `train`, the model learns.
# > The other, `val` for *validation*, is kept from it. The checkpoint (the file with the parameters) says
# > which part it was trained on. And where does our picture come from?

# %%
from ddetr_lite.course.scene import SPLIT

print("trained on:", detector.about["recipe"]["data"]["train_split"])
print("our picture:", SPLIT)

# %% [markdown]
# So it has never met our picture. The validation part exists for just that: to see what a model does with
# pictures it cannot know.

# %% [markdown]
# > **Claim:** so the detector says how many objects there are.
# >
# > **Measurement:** the number of its detections, if we count only those with a score of at least a **threshold**, for different thresholds.

# %%
for threshold in (0.9, 0.7, 0.5, 0.3, 0.1, 0.0):
    detections = predict(detector, scene.pixels, threshold)
    print(f"score at least {threshold}: {len(detections):3} detections")

# %% [markdown]
# It does not. It always makes a hundred guesses, each with a score, and the **threshold** is ours. Set it
# high, and objects are missed; set it low, and objects are invented. A measure that looks at all thresholds
# at once is *average precision*, AP, from 0 to 1. [05](05_hungarian_loss.ipynb) draws it; for this detector
# it was measured on the 300 validation pictures after training:

# %%
print(f"AP {detector.about['metrics']['AP']:.2f}")

# %% [markdown]
# ## 2. The same in a terminal
#
# What a cell can do, a command can do as well. In the folder of the course, with its environment active
# (`source .venv/bin/activate`, or `conda activate ddetr-lite`), and for any picture of yours:
#
# ```
# ddetr-lite predict data/checkpoints/shapes.pt my_picture.png
# ```
#
# Here we call it from Python, so that you see what it prints. First our picture has to become a file, in a
# folder that goes away by itself:

# %%
from tempfile import TemporaryDirectory

from PIL import Image

folder = TemporaryDirectory()
rows_columns_colours = scene.pixels.permute(1, 2, 0)  # (H, W, 3), as picture files have it
Image.fromarray(rows_columns_colours.numpy()).save(f"{folder.name}/scene.png")

# %%
from contextlib import chdir

from ddetr_lite import cli

with chdir(folder.name):
    exit_code = cli.main(["predict", str(course.checkpoint()), "scene.png"])
print("exit code", exit_code)

# %% [markdown]
# The same detections, the corners with one decimal. (The command takes the threshold that was best on the validation
# pictures, and says so; here the same four pass it.) The exit code 0 tells other programs that all went well
# (a mistyped option gives one line and a 2). It has written two files: the picture with boxes, and the
# numbers, for programs to read:

# %%
import json
from pathlib import Path

written = Path(folder.name, "runs", "predictions", "shapes")
print(sorted(path.name for path in written.iterdir()))
(picture,) = json.loads((written / "detections.json").read_text(encoding="utf-8"))
print(picture["file"], picture["width"], "×", picture["height"])
print("the same objects:", [one["label"] for one in picture["objects"]] == labels)

# %% [markdown]
# `ddetr-lite --help` lists the other commands, such as `train` and `evaluate`. They do nothing that the
# notebooks do not explain.

# %% [markdown]
# ## 3. A photo
#
# Generated pictures are tidy. Here is a photo, one that comes with matplotlib and is in the public domain: a
# portrait of Grace Hopper, who wrote one of the first compilers.

# %%
from matplotlib.cbook import get_sample_data

photo = read_picture(get_sample_data("grace_hopper.jpg", asfileobj=False))
print(tuple(photo.shape))  # (3, H, W)

# %% [markdown]
# > **Claim:** a good detector is good on any picture.
# >
# > **Measurement:** show the photo to our detector. Whatever it says must be one of its eight
# > words.

# %%
print("at a score of at least 0.5:", [f.label for f in predict(detector, photo, threshold=0.5)])
print("its three surest guesses:  ", [f.label for f in predict(detector, photo, threshold=0.0)[:3]])
print("a person among its classes:", "person" in detector.classes)

# %% [markdown]
# It cannot say "person", for it has never heard the word. All its words are names of shapes, so each of its
# guesses here is wrong; a low score is the nearest it can come to "I do not know". A detector knows what
# its training pictures showed, and how they showed it.

# %% [markdown]
# So a second detector comes with the course, of the same design and somewhat larger. Two differences matter here. It was trained
# on photos from COCO, the data set on which most detectors are compared; and one part of it had been trained before, by others, on a million
# photos, and knows edges, textures and parts of things. (That part, which turns pixels into features,
# is called the **backbone**; [06](06_detr.ipynb) explains it.)

# %%
photo_detector = course.detector("photo")
print(len(photo_detector.classes), "classes, such as", ", ".join(photo_detector.classes[:5]))
for word in ("person", "tie", "flag", "cap"):
    print(f"{word:6} {word in photo_detector.classes}")

# %% [markdown]
# Before you look: of the four words above, which can it find in a portrait with a flag, a cap, and a black
# tie in the collar? This detector is much less sure than the first, so we set the threshold lower, to 0.17.

# %%
low = 0.17
found_in_photo = predict(photo_detector, photo, low)
names = [f.label for f in found_in_photo]
corners = [f.box for f in found_in_photo]
scores = [f.score for f in found_in_photo]
ax = detection.boxes(photo, corners, names, scores, f"Score at least {low}")
plots.show(
    ax,
    alt="A portrait of Grace Hopper in uniform before a flag, with the boxes of the detector, best "
    f"first: {', '.join(names[:8]) or 'none'}.",
)

# %% [markdown]
# A person and a tie, the two of the four that it knows, and nothing else. Look closely at the boxes, though: there are *two* for
# the person, nearly the same, and two for the tie. A
# detector of this kind should name each object once. The first one has learned that; this one has not.

# %% [markdown]
# Nobody has measured this photo for us, so we do it by eye: she fills it from $x = 20$ to 506, and from $y = 24$ down to the
# lower edge. How good is the best box for a person, and what else does the detector suspect when we lower the threshold?

# %%
by_eye = (20, 24, 506, 600)
persons = [iou(f.box, by_eye) for f in found_in_photo if f.label == "person"]
print("boxes for a person:", len(persons), "  best IoU:", f"{max(persons, default=0.0):.1f}")
# the surest of each class:
guesses = {f.label: f for f in reversed(predict(photo_detector, photo, 0.05))}
for f in sorted(guesses.values(), key=lambda f: -f.score)[:6]:
    print(f"{f.label:12} {f.score:.2f}")

# %% [markdown]
# Be strict with it. The box fits, but a score of a third means that it is not sure; and whatever else it suspects,
# apart from the person and the tie, is not there. Think also of what it does *not* name: to miss the flag and the cap is no mistake, for they are not among its
# classes.

# %% [markdown]
# It is a small detector: it saw 1,780 photos, 22 times each, no side longer than 208 pixels, for 50 minutes on two cores of a
# CPU; on photos that it has not seen its AP is 0.047. Those of the Deformable DETR paper saw 118,000, fifty times over, on many GPUs.
# [11](11_train_on_coco.ipynb) shows how larger ones are trained. You can try this one on photos of your own, with
# `ddetr-lite predict data/checkpoints/photo.pt my_photo.jpg --threshold 0.17`. (Without `--threshold`
# it takes the threshold that was best on the validation photos, which is higher, and shows less.)

# %% [markdown]
# ## 4. The query that we shall follow
#
# How does it find anything? In one sentence: the detector sends out a fixed number of **queries**; each looks
# at a few points of the picture, forms an opinion of what is there, and corrects its box, several times over.
# What a query is made of, [01](01_self_attention.ipynb) begins to tell. Here we watch.

# %% [markdown]
# First, the detector without its last step, in which the best guesses are chosen:

# %%
batch = detector.model.batch([scene.pixels])
with torch.no_grad():  # we only ask, and do not train: torch need not keep what training would need
    outputs = detector.model.outputs(batch)
print("logits", tuple(outputs.logits.shape), " boxes", tuple(outputs.boxes.shape))

# %% [markdown]
# Read the shapes from left to right:
#
# - the **layers** of the *decoder*, the part of the detector that works on the queries: each corrects what
#   the one before has said;
# - $B$, the pictures: one;
# - $N_q$, the **queries**;
# - and then $C$, one number for each class, or 4, a box.
#
# So after every layer every query has something to say about every class, and names one box.

# %% [markdown]
# The numbers for the classes are **logits**: any number may come out. The *sigmoid* $1 / (1 + e^{-x})$ squeezes
# it into 0..1 and makes it a score: 0 becomes ½, a large number almost 1, a very negative one almost 0.

# %% [markdown]
# The boxes are not what we had above. A model writes a box as $(c_x, c_y, w, h)$: its centre and its width and
# height, each as a share of the picture, so that pictures of all sizes look alike to it. The package turns
# them into corners (and soon you will: exercise 1):

# %%
last_boxes = outputs.boxes[-1, 0]  # (N_q, 4), after the last layer
corners = package.cxcywh_to_xyxy(last_boxes) * 96  # (N_q, 4), in pixels
scores = outputs.logits[-1, 0].sigmoid()  # (N_q, C)
sure = scores.amax(dim=-1) >= 0.5  # (N_q,): does it name any class with conviction?
print("queries:", len(scores), "  that are sure of something:", sure.sum().item())
print("pairs of a query and a class:", scores.numel())

# %%
drawn, axes = plots.panels(2, height=3.2)
detection.boxes(scene.pixels, corners, title="the boxes of all queries", one_colour=0, ax=axes[0])
title = "of those that are sure"
detection.boxes(scene.pixels, corners[sure], title=title, one_colour=1, ax=axes[1])
plots.show(
    drawn,
    alt=f"Left, {len(corners)} boxes, those of all queries, crowded on the objects. Right, only "
    "those that score at least one half.",
)

# %% [markdown]
# Every query names a box, whether there is anything or not. Most of them then say "nothing" by a low score
# for each of the classes. (The hundred guesses of section 1 are the best hundred of all pairs of a query
# and a class: one query may speak more than once, always with the same box.) How training gets them to
# share out the objects, so that no two of them claim the same one, is the story of
# [05](05_hungarian_loss.ipynb).

# %% [markdown]
# We choose one query, and keep it for the course: **the one that finds the ring**. Look at the ring once
# more. Part of it hides under the triangle, the lower border cuts it, and in the middle of its box there is
# no ring at all. Whoever looked at the centre only would see plain ground.

# %%
query = course.followed_query()
print(f"query {query.index}, says {query.label!r}")

ring = detector.classes.index("ring")
print("the surest of all to see a ring:", scores[:, ring].argmax().item() == query.index)

# %% [markdown]
# **Its box.** The query starts from a box; where that comes from, [09](09_deformable_detr.ipynb) will show.
# Then every layer of the decoder corrects it.
#
# > **Claim:** every layer makes the box better.
# >
# > **Measurement:** IoU with the true box of the ring, at the start and after each layer.

# %%
true_ring = truth[scene.names.index("ring")]
path = package.cxcywh_to_xyxy(query.boxes) * 96  # (layers + 1, 4)
steps = ["start"] + [f"after layer {k}" for k in range(1, len(path))]
for step, box in zip(steps, path.tolist()):
    print(f"{step:14} {[round(x) for x in box]}   IoU {iou(box, true_ring):.2f}")

# %% [markdown]
# Not every layer: the first makes it a trace worse here, the second better than it was. The start is close already, for
# much has been decided before the decoder begins. One query in one picture proves no rule either way; what the layers bring on average,
# [09](09_deformable_detr.ipynb) measures.

# %% [markdown]
# **Its reference point** is the centre of the box from which a layer starts, the place where the query
# "stands" while it looks around. The cross marks it:

# %%
drawn, axes = plots.panels(len(path), height=2.3)
for step, box, (cx, cy), ax in zip(steps, path, query.boxes[:, :2] * 96, axes):
    detection.boxes(scene.pixels, box[None], title=step, one_colour=0, ax=ax)
    ax.plot(cx, cy, "+", color=plots.INK, markersize=12, markeredgewidth=2.2)
plots.show(
    drawn,
    alt=f"The picture {len(path)} times, with the box of the query at the start and after each "
    "layer, and a cross in its centre, which lies in the hole of the ring.",
)

# %% [markdown]
# **Its sampling points.** In each layer the query looks at a few points of the picture, and nowhere else.
# Which points, and how much each of them counts, it works out from what it knows so far.

# %%
print("locations", tuple(query.locations.shape))  # (layers, M, L, P, 2)
print("weights  ", tuple(query.weights.shape))  # (layers, M, L, P)
print("maps (H, W):", query.level_shapes)

# %% [markdown]
# In a layer there are $M \times L \times P$ points:
#
# - $M$ **heads**: the query looks this many times, each time with another question
#   ([02](02_multi_head_attention.ipynb));
# - $L$ **levels**: the picture as the detector sees it inside, as a **map**, a grid of cells with a vector in
#   each; there is a fine map, a coarser one and a very coarse one. A cell of the first covers 8 × 8 pixels,
#   of the second 16 × 16, of the third 32 × 32;
# - $P$ **points** for each head on each level.

# %% [markdown]
# A **location** is $(x, y)$, from 0 at the left (upper) edge to 1 at the right (lower) one, the same on every
# level. A **weight** says how much a point counts; those of one head add up to one. Here are all points of
# the last layer:

# %%
drawn, axes = plots.panels(2, height=3.1)
for title, ax in zip(("Where the query looks", "… seen from near"), axes):
    looks = (query.locations[-1], query.weights[-1], query.boxes[-2], path[-2])
    detection.sampling_points(scene.pixels, *looks, title, ax=ax)
axes[0].get_legend().remove()  # one is enough
axes[1].set(xlim=(38, 96), ylim=(96, 38))
plots.show(
    drawn,
    alt="The picture, whole and enlarged at the ring, with the query's box, a cross in its centre, "
    "and a dot for each sampling point. Many of the large dots sit on the yellow ring around the "
    "cross.",
)

# %% [markdown]
# This is the picture to remember. The box is the one from which the last layer starts, the cross its
# reference point, and each dot is one look: the larger and stronger, the more it counts; its colour is the
# level. (A point may lie outside the picture, where there is nothing: one does, just below the border.) Figure 6 of the Deformable DETR paper shows such points in photos.

# %% [markdown]
# > **Claim:** the query looks at the object it has found.
# >
# > **Measurement:** the share of its weight that falls on the ring. The ring is the only yellow thing, so
# > its pixels are easy to tell: much more green in them than blue, and hardly more red than green.

# %%
red, green, blue = scene.pixels.float()
on_ring = (green - blue > 50) & (red < 1.15 * green)  # (H, W)
x0, y0, x1, y1 = path[0].round().long().clamp(0, 96)  # the box from which the query starts
print(f"the ring covers {on_ring.float().mean():.0%} of the picture", end=" ")
print(f"and {on_ring[y0:y1, x0:x1].float().mean():.0%} of the query's first box")
pixels = (query.locations * 96).floor().long()  # the pixel at each point
in_picture = ((pixels >= 0) & (pixels < 96)).all(dim=-1)
x, y = pixels.clamp(0, 95).unbind(-1)
for k, weights in enumerate(query.weights):
    share = (weights * (on_ring[y[k], x[k]] & in_picture[k])).sum() / weights.sum()
    print(f"layer {k + 1}: weight on the ring {share:.0%}")

# %% [markdown]
# Much more than the ring's share of the picture, and more than its share of the box that the query was
# given to start from; but by no means all. "It looks at the object" is a fair summary, and not true of
# every point: what lies *beside* an object tells where the object ends.

# %% [markdown]
# **How much did it look at?** In plain attention, as in [01](01_self_attention.ipynb), a query looks at every
# cell of every map, with each of its $M$ heads. In **deformable attention** it looks at
# $M \cdot L \cdot P$ points, however large the picture is:

# %%
from math import ceil

M, L, P = query.weights.shape[1:]
for height, width in ((96, 96), (800, 1066)):
    cells = sum(ceil(height / size) * ceil(width / size) for size in (8, 16, 32))
    looks = f"plain {M * cells:6,} looks   deformable {M * L * P}"
    print(f"{height} × {width}: {cells:6,} cells   {looks}")

# %% [markdown]
# A point between cells reads four of them, so multiply the last number by four to be fair. That is still
# few, and **it does not grow with the picture**. Nor are the points a fixed pattern: every query moves
# its own to where they help, and that is what *deformable* stands for. [07](07_deformable_attention.ipynb)
# builds it.

# %% [markdown]
# ## 5. The course at a glance
#
# One path, from a word to this detector. Each notebook teaches one idea, builds it from nothing, and ends at
# the package's version, with the same numbers.
#
# | | you have at the end |
# |:--|:--|
# | **00 · Start here** | a detector at work; the picture and the query; exercises and your own parts |
# | **[01 · Self-attention](01_self_attention.ipynb)** | every word looks at every other: queries, keys, values; why scores are divided by √64; masks; what it costs |
# | **[02 · Multi-head attention](02_multi_head_attention.ipynb)** | eight questions at once; what "it" refers to in a sentence; why attention is not yet an explanation |
# | **[03 · Positional encoding](03_positional_encoding.ipynb)** | where a word stands, and where a pixel does, told with sine and cosine |
# | **[04 · Transformer](04_transformer.ipynb)** | encoder and decoder, complete; a small one that learns a task within a minute |
# | **[05 · Hungarian loss](05_hungarian_loss.ipynb)** | detection as a set: matching, IoU and its relatives, the loss, precision and recall |
# | **[06 · DETR](06_detr.ipynb)** | the first detector of this kind, in fifty lines, then trained; and its two problems, measured |
# | **[07 · Deformable attention](07_deformable_attention.ipynb)** | a few points instead of all cells: sampling between pixels, offsets, linear cost |
# | **[08 · Multi-scale deformable attention](08_multi_scale_deformable_attention.ipynb)** | fine and coarse maps together; our query, followed through all of them |
# | **[09 · Deformable DETR](09_deformable_detr.ipynb)** | the whole model; boxes that are corrected layer by layer; the detector of this notebook, on your own functions |
# | **[10 · Convergence and ablations](10_convergence_and_ablations.ipynb)** | which part brings how much, at equal budget; how AP is computed; where detections go wrong |
# | **[11 · Train on COCO](11_train_on_coco.ipynb)** | training on photos and on your own data, with one GPU or several, or with none |
# | **[12 · Fast kernels](12_fast_kernels.ipynb)** | the same operation, many times as fast, and what the hardware allows |
# | **[13 · What came next](13_what_came_next.ipynb)** | five ideas after Deformable DETR, and where each would go in this code |
#
# You may go straight through. If attention is no news to you, you may begin with [05](05_hungarian_loss.ipynb). And what returns again
# and again is the course's picture, and the query that finds its ring.

# %% [markdown]
# ## 6. How exercises work
#
# An exercise is a function with a gap. You fill it and run the cell, and then the cell below, which **checks**
# it. Nothing stops when a check fails: the notebook goes on with the package's own function.

# %% [markdown]
# A check does not only say "wrong". It knows the mistakes that people make, and looks for yours among them.
# Suppose someone turns $(c_x, c_y, w, h)$ into corners like this:


# %%
def first_try(boxes):
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx, cy, cx + w, cy + h), dim=-1)


course.check("cxcywh_to_xyxy", first_try)

# %% [markdown]
# Read it as you would read a colleague's note: what is wrong, on which input it was seen, what was expected
# and what came. If you have no idea how to begin, ask for a hint; each further call gives one more:

# %%
course.hint("cxcywh_to_xyxy")

# %% [markdown]
# Under each exercise stands a solution, folded up. Open it when you have tried.
#
# **Your own parts.** Some exercises build a part of the detector itself. Once yours is right,
# `course.use(...)` puts it in the place of the package's, and the detector runs on it. It is kept in a folder
# `my_parts` beside the notebooks; `course.restore()` fetches all of yours in a later notebook, `course.reset()`
# goes back to the package's. What fails its check is never plugged in.

# %% [markdown]
# ## Summary
#
# - A detection is a class, a score and a box; the threshold on the score is our choice, not the detector's.
# - IoU, the shared area over the area covered together, says how well two boxes agree; 0.5 is the usual minimum.
# - A detector is measured on pictures that it has not learned from, and knows only the classes that it was shown.
# - Each of $N_q$ queries gives a score for each class and one box, and the layers of the decoder correct them.
# - A query stands at a reference point, and looks at $M \cdot L \cdot P$ sampling points, however large the picture is.
# - We follow one picture, and the query that finds its ring.

# %% [markdown]
# ## Exercises
#
# Four small ones, to learn the ropes. What they do will be needed again. Difficulty says how hard it is, importance how
# much of the course builds on it. What they need of torch, in five lines (NumPy has most of it under other names):

# %%
t = torch.arange(8.0).reshape(2, 4)
print("unbind(-1): the columns, one by one ", [tuple(column.shape) for column in t.unbind(-1)])
print("stack, dim=-1: put together again  ", torch.equal(torch.stack(t.unbind(-1), dim=-1), t))
print("t[..., 0]: the first of the last dimension, whatever is in front", t[..., 0].tolist())
print("t[rows]: the rows where rows is True", t[torch.tensor([False, True])].tolist())
print("t * [10, 1, 1, 1]: column by column ", (t * torch.tensor([10, 1, 1, 1]))[1].tolist())

# %% [markdown]
# ### Exercise 1 · `cxcywh_to_xyxy`
#
# Difficulty ●○○○○ · Importance ●●●●○ · about 5 minutes
#
# From centre and size to corners: the left edge is half a width left of the centre. The four numbers stand in
# the *last* dimension. In front of it there may be any others: boxes, or pictures and boxes.
#
# **The detector will run on this function**: see below.


# %% tags=["exercise"]
def cxcywh_to_xyxy(boxes):
    """boxes: (..., 4), (cx, cy, w, h). Returns (..., 4), the corners (x0, y0, x1, y1)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# The attempt in section 6 is close: `unbind(-1)` and `torch.stack(..., dim=-1)` are right. Draw the box with
# centre (5, 3), width 4 and height 2 on squared paper, and read off its corners.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("cxcywh_to_xyxy", cxcywh_to_xyxy)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def cxcywh_to_xyxy(boxes):
#     """boxes: (..., 4), (cx, cy, w, h). Returns (..., 4), the corners (x0, y0, x1, y1)."""
#     cx, cy, w, h = boxes.unbind(-1)
#     return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `location_to_pixel`
#
# Difficulty ●●○○○ · Importance ●●●●○ · about 10 minutes
#
# A location runs from 0 to 1, edge to edge. To read a map there we must know between which cells it lies.
# Number the cells of a row 0, 1, 2, ..., and let each number stand for the *centre* of its cell. A map with
# $W = 4$ cells has its centres at the locations ⅛, ⅜, ⅝ and ⅞: there the answer is 0, 1, 2 and 3. What is it at
# location 0, the left edge? (It is negative.)
#
# A mistake here raises no error: the detector reads its maps half a cell beside the point, and is only a
# little worse. You will need this line in [07](07_deformable_attention.ipynb).


# %% tags=["exercise"]
def location_to_pixel(location, height, width):
    """location: (..., 2), (x, y) in 0..1.

    Returns (..., 2): (x, y) in cells, 0 at the centre of the first.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Location times $W$ counts cells from the left *edge*: ⅛ · 4 = ½. The answer there should be 0. Mind that $x$
# goes with the width and $y$ with the height, and that a location is $(x, y)$, while sizes are (height, width).
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("location_to_pixel", location_to_pixel)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def location_to_pixel(location, height, width):
#     """location: (..., 2), (x, y) in 0..1.
#
#     Returns (..., 2): (x, y) in cells, 0 at the centre of the first.
#     """
#     return location * torch.tensor([width, height]) - 0.5
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `keep_confident`
#
# Difficulty ●●○○○ · Importance ●●●○○ · about 5 minutes
#
# The threshold of section 1: keep the boxes whose score is at least `threshold`, the surest first. When no
# box is sure enough, the result has no rows: its shape is (0, 4).


# %% tags=["exercise"]
def keep_confident(boxes, scores, threshold):
    """boxes: (n, 4), scores: (n,). Returns (k, 4): those scoring at least threshold, best first."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `scores.argsort(descending=True)` gives the places of the scores, the highest first. A tensor can be indexed
# with such places, and with a tensor of True and False.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("keep_confident", keep_confident)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def keep_confident(boxes, scores, threshold):
#     """boxes: (n, 4), scores: (n,). Returns (k, 4): those scoring at least threshold, best first."""
#     order = scores.argsort(descending=True)
#     boxes, scores = boxes[order], scores[order]
#     return boxes[scores >= threshold]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `resized_size`
#
# Difficulty ●●○○○ · Importance ●●○○○ · about 10 minutes
#
# Photos come in all sizes, and are resized before a detector sees them. The rule of DETR's authors: the
# *shorter* side becomes `short_side`; the other is scaled in proportion and cut to a whole number with `int`.
# But if the longer side came out longer than `max_side` (before its fraction is cut), then `short_side` is
# replaced by a smaller number first: `round(max_side * shorter / longer)`.
#
# **The detector will run on this function**, too.


# %% tags=["exercise"]
def resized_size(height, width, short_side, max_side):
    """Four whole numbers in, a tuple of two out: (height, width) of the picture after resizing."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Begin with `shorter, longer = min(height, width), max(height, width)`. Test whether `longer / shorter *
# short_side` is too much, and change `short_side` if it is. Then there are two cases: the picture is higher
# than wide, or it is not.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("resized_size", resized_size)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def resized_size(height, width, short_side, max_side):
#     """Four whole numbers in, a tuple of two out: (height, width) of the picture after resizing."""
#     shorter, longer = min(height, width), max(height, width)
#     if longer / shorter * short_side > max_side:
#         short_side = round(max_side * shorter / longer)
#     if height > width:
#         return int(short_side * height / width), short_side
#     return short_side, int(short_side * width / height)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package
#
# Two of the four are parts of the detector: its last step turns boxes into corners, and its first step
# resizes the photo. Plug yours in:

# %% tags=["nbval-ignore-output"]
course.use("cxcywh_to_xyxy", cxcywh_to_xyxy)
course.use("resized_size", resized_size)

# %% tags=["nbval-ignore-output"]
course.parts()

# %% [markdown]
# The table lists the parts of all notebooks, of those to come as well, and whose function is at work. Now the detector once
# more, on whatever is plugged in; the title of the picture tells whose function made the corners:

# %%
whose = {row[0]: row[3] for row in course.parts().rows}
again = predict(detector, scene.pixels, threshold=0.5)
title = f"Corners by cxcywh_to_xyxy: {whose['cxcywh_to_xyxy']}"
ax = detection.boxes(scene.pixels, [f.box for f in again], [f.label for f in again], title=title)
plots.show(
    ax,
    alt="The picture with the boxes of section 1 again; the title says whether they came through "
    "your function or the package's.",
)

# %% [markdown]
# If both are right, nothing may change, neither here nor in the photo:


# %%
def same(a, b):
    """Whether two lists of detections name the same objects, to a hundredth of a pixel."""
    return [f.label for f in a] == [f.label for f in b] and torch.allclose(
        torch.tensor([f.box for f in a]), torch.tensor([f.box for f in b]), atol=0.01
    )


print("same in the picture:", same(again, found))
print("same in the photo:  ", same(predict(photo_detector, photo, low), found_in_photo))
course.reset()  # the package's own functions again

# %% [markdown]
# ## Symbols and terms
#
# These letters mean the same in all notebooks, and in the docstrings of the package; where a letter has two meanings, its line says so.

# %%
course.symbols("B", "N_q", "M", "H", "W", "L", "P", "C")

# %% [markdown]
# And the words that this notebook brings. When you meet one again and have forgotten it: `course.terms("threshold")` looks it up, and
# says where it is introduced.

# %%
course.terms("00")

# %% [markdown]
# **Next:** a query that looks around and takes what it needs: that is *attention*, and it was invented for
# words. [01 · Self-attention](01_self_attention.ipynb) begins there, with two words and a pencil.
