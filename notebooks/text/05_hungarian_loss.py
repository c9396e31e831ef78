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
# # 05 · The Hungarian loss: an answer that is a set
#
# What is in this picture, and where? The answer is a *set*: four objects, in no order, and nobody knows beforehand that
# they are four. A network gives a list of fixed length. This notebook is about the loss with which such a list learns to stand for a set,
# and about three hand-made parts that most detectors needed before it.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | compute IoU and GIoU by hand; say what anchors, assignment rules and NMS do, and show where each fails; match predictions with objects by brute force and by the Hungarian algorithm; build DETR's loss from its three terms and show that it does not care about order; read a precision–recall curve and compute AP |
# | **You need first** | [00 · Start here](00_start_here.ipynb) for boxes, the softmax of [01](01_self_attention.ipynb), and decoder layers from [04](04_transformer.ipynb) |
# | **Time** | 135 minutes to read and run, 65 for the exercises |
# | **Device** | any CPU; the longest cell takes some seconds, and nothing is downloaded |

# %%
import itertools
import math

import torch
import torchvision
from scipy.optimize import linear_sum_assignment

from ddetr_lite import course, plots
from ddetr_lite.plots.detection import boxes as draw_boxes
from ddetr_lite.set_prediction import boxes as package_boxes
from ddetr_lite.set_prediction import losses, matching

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. The picture, and how well two boxes agree
#
# Our picture again, with the boxes of its four objects.

# %%
scene = course.picture()
drawn, axes = plots.panels(2, height=3.3)
plots.picture(scene.pixels, "the question", ax=axes[0])
draw_boxes(scene.pixels, scene.boxes, scene.names, title="the answer, in any order", ax=axes[1])
plots.show(
    drawn,
    alt="The picture of the course, plain, and with the boxes of two stars, a ring and a triangle.",
)

# %% [markdown]
# To teach, we must first be able to say *how right* a box is. **Intersection over union** (IoU), which 00 used, takes the area that two boxes
# share and divides it by the area that at least one of them covers: 0 where they do not touch, 1 where they are the same.
#
# By hand: one box from (0, 0) to (4, 2), another from (2, 1) to (5, 5). They share the region from (2, 1) to (4, 2),
# an area of 2. The areas are 8 and 12; together they cover 8 + 12 − 2 = 18. $\text{IoU} = 2/18 = 0.111$.


# %%
def iou(a, b):
    """Two boxes, (x0, y0, x1, y1) each."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union


print("by hand:", round(iou((0, 0, 4, 2), (2, 1, 5, 5)), 3))

# %% [markdown]
# `max(width, 0)` matters. Boxes apart in $x$ *and* in $y$ have a negative width and a negative height, and their
# product is positive: without it, two boxes at opposite corners would "overlap".
#
# For all pairs of many boxes at once: `several[:, None]` has the shape (6, 1, 4); torch repeats it against (5, 4), which gives (6, 5).

# %%
several = torch.rand(6, 4).sort(dim=1).values  # sorted, so that corners are in order
others = torch.rand(5, 4).sort(dim=1).values
loop = torch.tensor([[iou(a, b) for b in others.tolist()] for a in several.tolist()])  # (6, 5)
ours = package_boxes.box_iou(several[:, None], others)  # (6, 1, 4) and (5, 4) → (6, 5)
theirs = torchvision.ops.box_iou(several, others)
print("package = loop within 1e-6:       ", (ours - loop).abs().max().item() < 1e-6)
print("package = torchvision within 1e-6:", (ours - theirs).abs().max().item() < 1e-6)

# %% [markdown]
# ## 2. What was there before, part one: anchors
#
# How can a network say that there are four objects, and which? It could write them down one after the other, as the reader of 04 wrote words; this was done, with an LSTM (a network that reads and writes step by step), for people in crowds (Stewart et al., [2016](https://arxiv.org/abs/1506.04878)). But objects have no order in which to write them, and writing takes as many steps as there are objects. Most detectors before DETR turned the question round: lay thousands of boxes
# over the picture, the **anchors**, and ask of each, *is there an object in you,
# and how must you be moved to fit it?* Here they stand every 8 pixels (the *stride*), nine at each place: three sizes, three shapes. torchvision makes them:

# %%
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


def anchors_of(sizes, shapes=(0.5, 1.0, 2.0), stride=8, side=96):
    """Anchors (A, 4), corners in pixels, at each cell of this stride; shapes are height : width."""
    generator = AnchorGenerator((tuple(sizes),), (tuple(shapes),))
    picture = torch.zeros(1, 3, side, side)
    cells = torch.zeros(1, 1, side // stride, side // stride)
    return generator(ImageList(picture, [(side, side)]), [cells])[0]


anchors = anchors_of((16, 32, 48))
print(len(anchors), "anchors for", len(scene.boxes), "objects")
fit = package_boxes.box_iou(scene.boxes[:, None], anchors).max(dim=1).values  # (4,)
print("IoU of the best one for each object:", [round(value, 1) for value in fit.tolist()])

# %%
drawn, axes = plots.panels(2, height=3.3)
at = 9 * (6 * 12 + 6)  # the nine anchors of the cell in row 6, column 6
draw_boxes(scene.pixels, anchors[at : at + 9], title="the nine anchors of one cell", ax=axes[0])
best = package_boxes.box_iou(scene.boxes[:, None], anchors).argmax(dim=1)
draw_boxes(
    scene.pixels, anchors[best], scene.names, title="the best anchor of each object", ax=axes[1]
)
plots.show(
    drawn,
    alt="Nine boxes of three sizes and three shapes around one point; and for each object the "
    "anchor that fits best.",
)

# %% [markdown]
# On our picture this works: each object has an anchor that roughly fits, and the network can move it the rest of the way. But somebody had to choose sizes, shapes and stride. Square objects of growing size, 100 of each at random
# places: how well does the best anchor fit? Once with our sizes, once with those that torchvision sets for photos, 32 to 512 pixels (there pictures are first enlarged to 800 pixels; here they are not).

# %%
generator = torch.Generator().manual_seed(0)
sides = [6, 8, 11, 16, 23, 32, 45, 64]
fits = {"16 to 48 px": [], "32 to 512 px": []}
for side in sides:
    centre = side / 2 + (96 - side) * torch.rand(100, 2, generator=generator)
    squares = torch.cat((centre - side / 2, centre + side / 2), dim=1)
    for name, sizes in zip(fits, ((16, 32, 48), (32, 64, 128, 256, 512))):
        overlap = package_boxes.box_iou(squares[:, None], anchors_of(sizes))  # (100, A)
        fits[name].append(overlap.max(dim=1).values.mean().item())

# %%
ax = plots.curves(sides, fits, "IoU of the best anchor", "side of the object in pixels", log="x")
plots.show(
    ax,
    alt="IoU of the best anchor against the side of the object, for two sets of sizes. Both have "
    "hills at their own sizes and fall between and beyond them; the set for photos has next to "
    "nothing for objects below 16 pixels.",
)

# %% [markdown]
# Hills at the chosen sizes, valleys between them, and ever less below the smallest. **Anchors are knowledge about a data set, put in by hand**, and
# on another data set it may be wrong.

# %% [markdown]
# ## 3. Part two: the rule that assigns
#
# 1296 anchors ($A$ of them, for short), four objects ($T$): which anchor shall learn what? A usual **assignment rule**:
# an anchor learns an object if their IoU is at least 0.5 (some take 0.7); it learns "background" if its best IoU is
# below 0.3 (or 0.4); in between it learns nothing; but the best anchors of each object always learn the object that
# they overlap most.


# %%
def assign_by_rule(anchors, objects, high=0.5, low=0.3):
    """The object that each anchor learns, (A,): −1 is background, −2 nothing."""
    overlap = package_boxes.box_iou(objects[:, None], anchors)  # (T, A)
    best, chosen = overlap.max(dim=0)
    chosen[best < low] = -1
    chosen[(best >= low) & (best < high)] = -2
    for t in range(len(objects)):  # its best anchors learn one object for sure
        favourites = overlap[t] == overlap[t].max()
        chosen[favourites] = overlap[:, favourites].argmax(dim=0)
    return chosen


rule = assign_by_rule(anchors, scene.boxes)
theirs = torchvision.models.detection._utils.Matcher(0.5, 0.3, allow_low_quality_matches=True)
same = torch.equal(rule, theirs(package_boxes.box_iou(scene.boxes[:, None], anchors)))
print("the same as torchvision's matcher:", same)

# %%
counts = [(rule == t).sum().item() for t in range(4)]
area = package_boxes.box_area(scene.boxes).tolist()
labels = [f"{name} {t}\n{a:.0f} px²" for t, (name, a) in enumerate(zip(scene.names, area))]
ax = plots.bars(counts, labels, "Anchors that learn each object", "anchors", form="{:.0f}")
plots.show(
    ax,
    alt="Four bars with the area of each object: the two large ones, a star and the ring, are "
    "learned by about three times as many anchors as the two small ones.",
)

# %% [markdown]
# Two consequences. How much an object counts in the loss depends on how many anchors happen to lie over it: a large one many, a
# small one few. And **several anchors learn to say the same thing.** After training they do what they were taught: they all
# say it.

# %% [markdown]
# ## 4. Part three: the clean-up
#
# So one object is found many times, and something has to remove the copies. **Non-maximum suppression** (NMS): take the surest box, throw
# away all boxes that overlap it by more than a threshold; go on with what is left. (Each class for itself; here there is one.)


# %%
def nms(boxes, scores, threshold):
    """Indices of the boxes that stay, the surest first."""
    left, kept = scores.argsort(descending=True).tolist(), []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if iou(boxes[best].tolist(), boxes[i].tolist()) <= threshold]
    return kept


# %%
def candidates(distance, copies=12, spread=4.0, seed=0):
    """What a detector might say of two objects of 44 pixels, `distance` apart: boxes and scores."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([[48 - distance / 2, 48], [48 + distance / 2, 48]])
    centre = centre.repeat_interleave(copies, dim=0)  # each object is found so many times,
    centre = centre + spread * torch.randn(centre.shape, generator=generator)  # a few pixels off
    boxes = torch.cat((centre - 22, centre + 22), dim=1)
    return boxes, torch.rand(len(centre), generator=generator)


found, scores = candidates(48)
same = all(
    nms(found, scores, t) == torchvision.ops.nms(found, scores, t).tolist() for t in (0.3, 0.5, 0.7)
)
print("the same as torchvision's NMS:", same)


# %% [markdown]
# Two pictures with two discs each. In the first they stand apart. In the second one stands half behind the other, as people do in a crowd: their true boxes, 44 pixels wide and 12 apart, overlap with an IoU of 32/56 = 0.57. Suppose that a detector has found
# each disc 12 times, a few pixels off.


# %%
def discs(distance):
    """A picture (3, 96, 96) with two discs of radius 22."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    pixels = torch.full((3, 96, 96), 0.9)
    left, right = 48 - distance / 2, 48 + distance / 2
    for cx, colour in ((left, (0.55, 0.75, 0.9)), (right, (0.95, 0.8, 0.6))):
        inside = (x - cx) ** 2 + (y - 48) ** 2 < 22**2
        pixels = torch.where(inside, torch.tensor(colour)[:, None, None], pixels)
    return pixels


# %%
threshold = 0.2
drawn, axes = plots.panels(4, height=2.2)
for i, (name, distance) in enumerate((("apart", 48), ("crowd", 12))):
    (found, scores), picture = candidates(distance), discs(distance)
    kept = nms(found, scores, threshold)
    draw_boxes(picture, found, one_colour=3, title=f"{name}: {len(found)} boxes", ax=axes[2 * i])
    after = f"after NMS, {threshold}"
    draw_boxes(picture, found[kept], one_colour=3, title=after, ax=axes[2 * i + 1])
plots.show(
    drawn,
    alt="Left: two discs apart with many boxes each, one box each after NMS. Right: two discs that "
    "overlap; after NMS with the same threshold only one box is left for both.",
)

# %% [markdown]
# On the left NMS does its work. On the right it has thrown away a true object. So, another threshold? For 200 such pictures of each kind: how often is exactly one box left for each disc?


# %%
def answered(distance, threshold, pictures=200):
    """The share of pictures for which NMS leaves two boxes, one of each disc."""
    right = 0
    for seed in range(pictures):
        found, scores = candidates(distance, seed=seed)
        whose = torchvision.ops.nms(found, scores, threshold) // 12  # the first 12 are of disc 0
        right += sorted(whose.tolist()) == [0, 1]
    return right / pictures


thresholds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
shares = {name: [answered(d, t) for t in thresholds] for name, d in (("apart", 48), ("crowd", 12))}

# %%
ax = plots.curves(thresholds, shares, "Pictures answered rightly by NMS", "threshold", "share")
plots.show(
    ax,
    alt="Share of pictures answered rightly against the threshold. Apart: all up to 0.2, then "
    "falling to none. Crowd: a hill around 0.4 that stays below 0.7.",
)
best = {name: thresholds[values.index(max(values))] for name, values in shares.items()}
print("the crowd needs a higher threshold than the others:", best["crowd"] > best["apart"])
in_both = [min(pair) for pair in zip(*shares.values())]
print("a threshold that serves nine of ten in both:", max(in_both) > 0.9)

# %% [markdown]
# Low enough to remove the copies, and neighbours vanish; high enough to keep the neighbours, and copies stay. From the boxes alone NMS cannot tell a copy from a neighbour: it never looks at the picture.
#
# Anchors, a rule, a clean-up: each mends what the one before it caused. DETR removes the cause. **What if each object were learned by exactly
# one prediction?** Then nobody is taught to say it twice, and nothing has to be cleaned up. (The detector for crowds of section 2 was taught so, by a *Hungarian loss*, before DETR; DETR keeps the match, and says all at once.)

# %% [markdown]
# ## 5. A loss for boxes
#
# Before we choose who learns what, we need to say how *wrong* a box is, so that a gradient can mend it.
# $1 - \text{IoU}$? A box slides from left to right over another of the same size:

# %%
fixed = torch.tensor([40.0, 40, 60, 60])
shifts = torch.arange(-40.0, 41, 4)
sliding = fixed + shifts[:, None] * torch.tensor([1.0, 0, 1, 0])  # (21, 4)
lines = {
    "IoU": package_boxes.box_iou(sliding, fixed).tolist(),
    "GIoU": package_boxes.generalized_box_iou(sliding, fixed).tolist(),
}
ax = plots.curves(shifts.tolist(), lines, "A box of 20 px slides over another", "shift in pixels")
plots.show(
    ax,
    alt="IoU is a peak, and flat zero where the boxes do not touch; GIoU goes on falling there, "
    "down to −0.33.",
)

# %% [markdown]
# Where the boxes do not touch, IoU is 0 and stays 0: **flat, no gradient, nothing to learn from.** Small objects are often not touched.
# **Generalized IoU** looks at the smallest box that encloses both, the *hull*, and subtracts the share of it that neither fills:
#
# $$\text{GIoU} = \text{IoU} - \frac{\text{hull} - \text{union}}{\text{hull}}$$
#
# (In the figure the curves coincide where the boxes touch, for two boxes of one size in a row fill their hull.)
#
# Our two boxes by hand: the hull goes from (0, 0) to (5, 5), an area of 25; the union was 18.
# $\text{GIoU} = 0.111 - 7/25 = -0.169$.


# %%
def giou(a, b):
    """(..., 4) and (..., 4), corners → (...)."""
    begin = torch.maximum(a[..., :2], b[..., :2])
    end = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (end - begin).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return shared / union - (hull - union) / hull


print("by hand:", giou(torch.tensor([0.0, 0, 4, 2]), torch.tensor([2.0, 1, 5, 5])))
ours = giou(several[:, None], others)  # (6, 5)
theirs = torchvision.ops.generalized_box_iou(several, others)
package = package_boxes.generalized_box_iou(several[:, None], others)
print("torchvision within 1e-6:", (ours - theirs).abs().max().item() < 1e-6)
print("package within 1e-6:    ", (ours - package).abs().max().item() < 1e-6)


# %% [markdown]
# The plain distance of the numbers,
# $\lvert\Delta c_x\rvert + \lvert\Delta c_y\rvert + \lvert\Delta w\rvert + \lvert\Delta h\rvert$, called **L1**, has a
# gradient everywhere.
#
# > **Claim:** so L1 is loss enough for boxes.
# >
# > **Measurement:** two predictions, one for a large object and one for a small one, each shifted by a tenth of its own width.

# %%
for name, true in (("large", (0.5, 0.5, 0.8, 0.8)), ("small", (0.5, 0.5, 0.08, 0.08))):
    true = torch.tensor(true)  # (cx, cy, w, h), in shares of the picture
    said = true + torch.tensor([true[2] / 10, 0, 0, 0])
    overlap = giou(package_boxes.cxcywh_to_xyxy(said), package_boxes.cxcywh_to_xyxy(true))
    print(f"{name}: L1 {(said - true).abs().sum():.3f}, 1 − GIoU {1 - overlap:.3f}")

# %% [markdown]
# Equally wrong to the eye, and in the GIoU. But L1 takes the small object ten times less seriously.
#
# And GIoU alone? Let a box walk towards an object that it does not touch, by each loss, and by DETR's sum of both,
# $5\,\text{L1} + 2\,(1 - \text{GIoU})$:

# %%
true, start = torch.tensor([0.7, 0.7, 0.2, 0.2]), torch.tensor([0.25, 0.3, 0.15, 0.1])
corners = package_boxes.cxcywh_to_xyxy


def l1(box):
    return (box - true).abs().sum()


def giou_loss(box):
    return 1 - giou(corners(box), corners(true))


walkers = {
    "1 − IoU": lambda box: 1 - package_boxes.box_iou(corners(box), corners(true)),
    "L1": l1,
    "1 − GIoU": giou_loss,
    "5 L1 + 2 (1 − GIoU)": lambda box: 5 * l1(box) + 2 * giou_loss(box),
}

# %%
reached = {}
for name, loss in walkers.items():
    box, reached[name] = start.clone().requires_grad_(), []
    optimizer = torch.optim.Adam([box], lr=0.01)
    for _ in range(101):
        reached[name].append(package_boxes.box_iou(corners(box.detach()), corners(true)).item())
        optimizer.zero_grad()
        loss(box).backward()
        optimizer.step()

# %%
every = list(range(0, 101, 5))
lines = {name: [values[i] for i in every] for name, values in reached.items()}
ax = plots.curves(every, lines, "A box walks to its object", "steps", "IoU")
plots.show(
    ax,
    alt="IoU against steps for four losses. With 1 − IoU the box never moves; the others arrive.",
)
print("it never moved:", [name for name, values in reached.items() if max(values) == 0])

# %% [markdown]
# With $1 - \text{IoU}$ the box stays where it is. With GIoU it touches first, then stalls for some twenty steps; with
# L1 there is no such pause. DETR takes both: L1 that pulls from anywhere, GIoU that treats small and large alike.

# %% [markdown]
# ## 6. Who learns what? The match
#
# Now the central step. A model makes $N_q$ predictions, always the same number and many more than a picture usually has
# objects: DETR 100. The $T$ objects of the picture are to be given to $T$ *different* predictions, so that the total
# cost is least. The other predictions are given **"no object"**.
#
# A small case: the costs of four predictions (rows) for three objects (columns).

# %%
cost = torch.tensor([[3.0, 1, 6], [2, 2, 9], [5, 4, 9], [4, 2, 8]])
queries, objects = [f"query {i}" for i in range(4)], ["star", "ring", "cross"]

# %% [markdown]
# > **Claim:** simply give each object, one after the other, the cheapest prediction that is still free.
# >
# > **Measurement:** against all ways there are.


# %%
def greedy(cost):
    """For each object in turn the cheapest query that is free."""
    free, chosen = set(range(len(cost))), []
    for t in range(cost.shape[1]):
        chosen.append(min(free, key=lambda i: cost[i, t].item()))
        free.remove(chosen[-1])
    return chosen


def brute_force(cost):
    """The cheapest of all ways to give T objects to T different queries."""
    ways = itertools.permutations(range(len(cost)), cost.shape[1])
    return list(min(ways, key=lambda way: sum(cost[i, t].item() for t, i in enumerate(way))))


for name, way in (("greedy", greedy(cost)), ("brute force", brute_force(cost))):
    print(f"{name:>11}: queries {way} for {objects}, cost {cost[way, range(3)].sum():.0f}")

# %%
drawn, axes = plots.panels(2, height=2.6)
for ax, (name, way) in zip(axes, (("greedy", greedy(cost)), ("the best", brute_force(cost)))):
    pairs, total = [(i, t) for t, i in enumerate(way)], cost[way, range(3)].sum()
    plots.matching(cost, pairs, queries, objects, f"{name}: {total:.0f} in all", ax=ax)
plots.show(
    drawn,
    alt="Two graphs between four queries and three objects. Greedy pays 11; the best match pays 10 "
    "by giving the cross to query 0.",
)

# %% [markdown]
# Greedy let the ring have query 0, one cheaper than its next choice; the cross, for which query 0 was by far the best, had to pay for it. One must look at all objects at once. But trying all ways is
# hopeless:

# %%
for n, t in ((4, 3), (20, 5), (100, 7)):
    print(f"{n:>3} queries, {t} objects: {math.perm(n, t):,} ways")

# %% [markdown]
# ### The Hungarian algorithm
#
# It finds the best match without trying all. The idea at its core: serve one object after the other, and *let others change places* when that is cheaper. A newcomer
# may take a query that is in use, if its former object can move to another query, whose object can move on, and so on until a free query is reached. Each
# such chain has a price: plus the cost of each new pair, minus that of each pair that is given up. **Take the cheapest chain.** After the last object,
# no other match is cheaper.
#
# By hand: star takes query 1 (cost 2). Ring takes query 0 (cost 1). Now the cross. Directly, the cheapest free query is 3, for 8. Through query 0: cross takes it (6), ring gives it
# up (−1) and moves to query 3 (2): 7 in all. That chain is the cheapest.
#
# In the code `price[j]` is the cheapest chain found so far that ends at query $j$, and `before[j]` the query that it
# came through. For the cross `price` begins as its own column of costs (6 at query 0, 8 at query 3), with `before`
# None. Looking at query 0, held by ring, the chain through it ends at 3 for 7: so `price[3]` becomes 7 and `before[3]`
# becomes 0. Then the way is walked back: query 3 takes over what query 0 held (ring), and query 0, which came from
# nowhere, takes the cross.


# %%
def hungarian(cost):
    """The query of each object, for a cost (N_q, T), by cheapest chains."""
    holder = {}  # query → its object
    for newcomer in range(cost.shape[1]):
        price = dict(enumerate(cost[:, newcomer].tolist()))  # query → price of a chain to it
        before = dict.fromkeys(price)  # the query its object comes from; None: it is the newcomer
        for _ in range(len(holder)):  # longer and longer chains
            for i, t in holder.items():  # the object at i could move on to j
                for j in price:
                    longer = price[i] - cost[i, t].item() + cost[j, t].item()
                    if longer < price[j] - 1e-9:
                        price[j], before[j] = longer, i
        end = min((i for i in price if i not in holder), key=price.get)
        while before[end] is not None:  # walk back: each object moves one on
            holder[end] = holder[before[end]]
            end = before[end]
        holder[end] = newcomer
    return sorted(holder, key=holder.get)


# %%
print("by cheapest chains:", hungarian(cost), "by brute force:", brute_force(cost))

# %% [markdown]
# In practice one calls scipy's `linear_sum_assignment`, and so does our package. It, too, takes one cheapest chain after the other, and finds each faster, because it
# keeps prices for rows and columns from one object to the next: that is Kuhn's *Hungarian method* of 1955, named for the two Hungarians on whose theorems it rests, in the form of Jonker and Volgenant. On random costs:

# %%
agree = 0
for _ in range(50):
    random = torch.rand(8, 4)
    rows, columns = linear_sum_assignment(random)
    least = random[rows, columns].sum()
    ways = brute_force(random), hungarian(random)
    agree += all(abs(random[way, range(4)].sum() - least) < 1e-6 for way in ways)
print("all three find the same least cost:", agree, "of 50")

large = torch.rand(100, 20)
rows, columns = linear_sum_assignment(large)
same = hungarian(large) == rows[columns.argsort()].tolist()
print("100 queries, 20 objects, the same match:", same)

# %% [markdown]
# And with more objects than queries? Then some objects get none, whatever the match. scipy serves those that cost least in all, without a word:

# %%
# 3 queries, 5 objects
crowded = torch.tensor([[5.0, 1, 4, 2, 9], [3, 8, 1, 7, 5], [6, 2, 9, 1, 4]])
rows, columns = linear_sum_assignment(crowded)
print("of the objects 0 to 4 these have a query:", sorted(columns.tolist()))

# %% [markdown]
# The loss would then teach that the others are not there. So the package refuses such a picture, and names it; $N_q$ is
# chosen well above the most objects that a picture has.

# %% [markdown]
# ## 7. The cost of a pair
#
# What makes a prediction a good partner for an object? DETR adds three costs:
#
# $$\text{cost} = -\,p(\text{class}) + 5\,\lVert \text{box} - \text{box}^* \rVert_1 - 2\,\text{GIoU}(\text{box}, \text{box}^*)$$
#
# where the asterisk marks the truth. Let us see it on our picture (objects are numbered, since two are stars), with eight predictions as a half-trained model might give them: some near an object, one nowhere, none quite
# certain; and one that fits the triangle best and calls it a ring. Two checks follow: our costs against the package's, and our match against that of `transformers`, the library of Hugging Face, which has a DETR of its own.

# %%
KINDS = ["star", "ring", "triangle"]  # the classes of this section; the last logit is "no object"
side = torch.tensor([96.0, 96, 96, 96])
true_boxes = package_boxes.xyxy_to_cxcywh(scene.boxes / side)  # (T, 4), (cx, cy, w, h) in 0..1
true_labels = torch.tensor([KINDS.index(name) for name in scene.names])  # (T,)

generator = torch.Generator().manual_seed(3)
near = true_boxes[[0, 0, 1, 2, 3, 3]] + 0.05 * torch.randn(6, 4, generator=generator)
nowhere = torch.tensor([[0.2, 0.75, 0.2, 0.3], [0.8, 0.15, 0.25, 0.2]])
said_boxes = torch.cat((near, nowhere)).clamp(0.02, 0.98)  # (N_q, 4)
logits = torch.randn(8, 4, generator=generator)  # (N_q, C+1)
logits[range(6), true_labels[[0, 0, 1, 2, 3, 3]]] += 1.5  # a little sure of the right class
said_boxes[7] = true_boxes[3] + 0.01  # and one fits the triangle nearly to the pixel ...
logits[7] = torch.tensor([0.0, 3, 0, 1])  # ... but takes it for a ring


# %%
def three_costs(probabilities, boxes, labels, target_boxes):
    """Every query with every object: (N_q, C+1), (N_q, 4), (T,), (T, 4) → three costs (N_q, T)."""
    by_class = -probabilities[:, labels]  # (N_q, T)
    l1 = (boxes[:, None] - target_boxes).abs().sum(-1)  # (N_q, 1, 4) − (T, 4) → (N_q, T)
    overlap = giou(corners(boxes)[:, None], corners(target_boxes))  # (N_q, T)
    return by_class, 5 * l1, -2 * overlap


parts = three_costs(logits.softmax(-1), said_boxes, true_labels, true_boxes)
total = sum(parts)
detr = matching.MatchingCost(1.0, 5.0, 2.0)
ours = matching.matching_cost(
    logits[None], said_boxes[None], true_labels[None], true_boxes[None], detr, "softmax"
)[0]
print("package within 1e-5:", (total - ours).abs().max().item() < 1e-5)

# %%
from transformers.loss.loss_for_object_detection import HungarianMatcher

target = {"class_labels": true_labels, "boxes": true_boxes}
said = {"logits": logits[None], "pred_boxes": said_boxes[None]}
theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)(said, [target])[0]
rows, columns = linear_sum_assignment(total)
print("our match:               ", list(zip(rows.tolist(), columns.tolist())))
same = theirs[0].tolist() == rows.tolist() and theirs[1].tolist() == columns.tolist()
print("the same in Hugging Face:", same)

# %%
names = [f"{name} {t}" for t, name in enumerate(scene.names)]
pairs, asked = list(zip(rows.tolist(), columns.tolist())), [f"query {i}" for i in range(8)]
chosen = corners(said_boxes[rows]) * side
drawn, axes = plots.panels(2, height=3.4)
plots.matching(total, pairs, asked, names, "the match", ax=axes[0])
draw_boxes(scene.pixels, chosen, [names[t] for t in columns], title="the chosen boxes", ax=axes[1])
plots.show(
    drawn,
    alt="Eight queries on the left, the four objects on the right, four lines of the match; and "
    "the four chosen boxes on the picture.",
)

# %% [markdown]
# The large star and the triangle had several candidates; one was chosen, the others are told "no object". **That is where duplicates end**: not by a clean-up,
# but because the second-best is taught to be silent.
#
# Do we need all three costs? Leave one out, and see how good the chosen boxes are:

# %%
for name, costs in (
    ("all three", total),
    ("without class", parts[1] + parts[2]),
    ("class only", parts[0]),
):
    rows, columns = linear_sum_assignment(costs)
    overlap = package_boxes.box_iou(corners(said_boxes[rows]), corners(true_boxes[columns]))
    sure = logits.softmax(-1)[rows, true_labels[columns]]
    print(
        f"{name:>13}: queries {rows.tolist()}, mean IoU {overlap.mean():.1f}, "
        f"mean p of the class {sure.mean():.1f}"
    )

# %% [markdown]
# Without the class the triangle goes to the prediction that is sure of a ring. With the class alone boxes may be anywhere, and the loss would drag them across the picture. The match must look
# at everything that the loss will look at.
#
# (Two differences from the loss below. The match takes $p$, the loss $-\log p$: so here the class changes the cost of a
# pair by at most 1, and cannot drown the other two. And the loss has $1 - \text{GIoU}$; the 1 is the same for every
# pair and changes no match.)

# %% [markdown]
# ## 8. The loss
#
# The match is fixed; no gradient goes through it. Now each prediction knows what it should have said. For the class,
# **cross-entropy**: how surprised is the model by the truth? With $p$ the probability that it gave to the right answer,
# the loss is $-\log p$: nothing for $p = 1$, 0.69 for $p = 1/2$, 4.6 for $p = 0.01$.

# %%
right = torch.full((8,), len(KINDS))  # "no object", the last class, for all ...
rows, columns = linear_sum_assignment(total)
right[rows] = true_labels[columns]  # ... but those that were matched
surprise = -logits.softmax(-1)[range(8), right].log()  # (N_q,)
theirs = torch.nn.functional.cross_entropy(logits, right, reduction="none")
print("what each should say:", [[*KINDS, "no object"][k] for k in right])
print("−log p:", surprise)
print("torch within 1e-6:", (surprise - theirs).abs().max().item() < 1e-6)

# %% [markdown]
# In DETR 100 queries meet about seven objects: 93 times "no object". A model that always says "no object" is right 93 times in 100. DETR
# weighs these answers with 0.1. How much of the loss of a new model, for which every answer is equally likely, then comes from the objects?

# %%
for weight in (1.0, 0.1):
    weights = torch.tensor([1.0] * 7 + [weight] * 93)
    share = weights[:7].sum() / weights.sum()
    print(f"weight {weight}: {share:.0%} of the loss comes from the 7 objects")

# %% [markdown]
# So about half of it, instead of a fourteenth: enough to be heard.
#
# The boxes of the matched queries get their L1 and their GIoU, summed and divided by the number of objects (in a batch: of all its pictures). This is equation 2 of the DETR paper, with two things that the paper says after it, the weight 0.1 and the division by the number of objects, and one that only its code has: the class term is a *mean* over the queries, divided by the sum of their weights. All in all:


# %%
def hungarian_loss(logits, boxes, labels, target_boxes, no_object=0.1):
    """One picture: (N_q, C+1), (N_q, 4), (T,), (T, 4) → three losses, unweighted."""
    with torch.no_grad():
        cost = sum(three_costs(logits.softmax(-1), boxes, labels, target_boxes))
        rows, columns = linear_sum_assignment(cost)
    right = torch.full((len(logits),), logits.shape[-1] - 1)
    right[rows] = labels[columns]
    weight = torch.ones(logits.shape[-1])
    weight[-1] = no_object
    by_class = torch.nn.functional.cross_entropy(logits, right, weight)  # a weighted mean
    said, true = boxes[rows], target_boxes[columns]  # (T, 4)
    l1 = (said - true).abs().sum() / len(true)
    overlap = (1 - giou(corners(said), corners(true))).sum() / len(true)
    return by_class, l1, overlap


# %%
ours = hungarian_loss(logits, said_boxes, true_labels, true_boxes)
target = {"labels": true_labels, "boxes": true_boxes}
outputs = losses.Outputs(logits[None, None], said_boxes[None, None])  # one layer, one picture
section_8 = losses.set_losses(outputs, [target], losses.DETR_LOSS)
rounded = {name: round(value.item(), 3) for name, value in section_8.items()}
same = all(abs(a * w - b) < 1e-5 for a, w, b in zip(ours, (1, 5, 2), section_8.values()))
print("weighted by 1, 5 and 2:", rounded)
print("package within 1e-5:", same)

# %% [markdown]
# ### Order does not matter
#
# > **Claim:** this is a loss for sets.
# >
# > **Measurement:** shuffle the predictions; shuffle the objects.

# %%
shuffled, reordered = torch.randperm(8), torch.randperm(4)
again = [
    hungarian_loss(logits[shuffled], said_boxes[shuffled], true_labels, true_boxes),
    hungarian_loss(logits, said_boxes, true_labels[reordered], true_boxes[reordered]),
]
same = [all(abs(a - b) < 1e-6 for a, b in zip(ours, other)) for other in again]
print("the same within 1e-6:", same)

# %% [markdown]
# ## 9. It learns a set
#
# No network yet: 1296 free predictions, whose numbers are the parameters. At first they are the anchors of section 2, unsure of everything. Their only teacher is the loss. Once by the rule of section 3, once by the match.


# %%
def rule_loss(logits, boxes, labels, target_boxes):
    """What section 3 assigned: objects, background (the last class), or nothing (left out)."""
    told = rule >= 0
    right = torch.where(told, labels[rule.clamp(min=0)], len(KINDS))
    weight = torch.tensor([1.0, 1, 1, 0.1])
    by_class = torch.nn.functional.cross_entropy(logits[rule > -2], right[rule > -2], weight)
    said, true = boxes[told], target_boxes[rule[told]]
    l1 = (said - true).abs().sum(-1).mean()
    overlap = (1 - giou(corners(said), corners(true))).mean()
    return by_class, l1, overlap


# %%
def learn(loss, steps=300):
    """The predictions after some steps: logits (A, 4) and boxes (A, 4)."""
    first = package_boxes.xyxy_to_cxcywh(anchors / 96).clamp(0.01, 0.99)
    first = first.logit()  # the inverse of the sigmoid
    free = torch.cat((torch.zeros(len(first), 4), first), dim=1).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    for _ in range(steps):
        by_class, l1, overlap = loss(free[:, :4], free[:, 4:].sigmoid(), true_labels, true_boxes)
        optimizer.zero_grad()
        (by_class + 5 * l1 + 2 * overlap).backward()
        optimizer.step()
    return free[:, :4].detach(), free[:, 4:].detach().sigmoid()


# %%
drawn, axes = plots.panels(2, height=3.3)
for ax, (title, loss) in zip(axes, (("the rule", rule_loss), ("the match", hungarian_loss))):
    free_logits, free_boxes = learn(loss)
    scores, labels = free_logits.softmax(-1)[:, :-1].max(dim=-1)
    sure = scores > 0.5
    said, kinds = corners(free_boxes[sure]), labels[sure]
    fits = package_boxes.box_iou(corners(true_boxes)[:, None], said) > 0.5  # (T, n)
    per_object = (fits & (true_labels[:, None] == kinds)).sum(dim=1).tolist()
    print(f"{title:>9}: {len(said)} boxes surer than 0.5; right ones for each object {per_object}")
    called = [KINDS[k] for k in kinds]
    title = f"{title}: {len(said)} boxes"
    draw_boxes(scene.pixels, said * side, called, title=title, ax=ax)
plots.show(
    drawn,
    alt="What the predictions say after training by the rule, dozens of boxes that mostly lie on "
    "one another, and by the match, exactly one box on each of the four objects.",
)

# %% [markdown]
# By the rule, each object is named exactly as often as it was taught (the bars of section 3; in the figure the copies lie on one another): work for NMS. By the match each object is named **once**, and 1292 predictions are silent.
#
# Here the optimizer finds, for this one picture, who takes what. A network has to do it anew for every picture, in one pass: its queries must come to an agreement. That is what the self-attention among queries is for, in the decoder layer of 04 ([06](06_detr.ipynb) shows what happens without it). And
# during training the match is made anew in every step; [06](06_detr.ipynb) measures how often it changes its mind.

# %% [markdown]
# ## 10. A loss after every layer
#
# A decoder has several layers (04), and each could already answer. DETR reads an answer after *every* layer, with the
# same *prediction heads* (small networks that read a class and a box off a query; not heads of attention), matches each
# by itself, and adds up all losses: **auxiliary losses**. In the package the layers travel stacked in one tensor,
# $(K, B, N_q, \ldots)$, and are matched in one go:

# %%
layers = torch.randn(3, 1, 8, 4), torch.rand(3, 1, 8, 4) * 0.4 + 0.2  # K = 3 layers, one picture
with_auxiliary = losses.set_losses(losses.Outputs(*layers), [target], losses.DETR_LOSS)
print(list(with_auxiliary))


# %% [markdown]
# What is it for? Six layers of numbers, each made from the one before; the answers are read off after the last one only, or after every one. How good is the answer of the *first* layer after training?


# %%
def first_layer_after_training(auxiliary, steps=200):
    """The whole loss of the first of six layers, when all or only the last one is taught."""
    start = torch.randn(1, 1, 8, 32, generator=torch.manual_seed(0))
    layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(6))
    head = torch.nn.Linear(32, 8)
    optimizer = torch.optim.Adam([*layers.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(steps):
        x, said = start, []
        for layer in layers:
            x = x + torch.tanh(layer(x))
            said.append(head(x))
        answers = torch.cat(said if auxiliary else said[-1:])  # (K, B, N_q, 8)
        found = losses.Outputs(answers[..., :4], answers[..., 4:].sigmoid())
        optimizer.zero_grad()
        sum(losses.set_losses(found, [target], losses.DETR_LOSS).values()).backward()
        optimizer.step()
    first = losses.Outputs(said[0][..., :4], said[0][..., 4:].sigmoid())
    return sum(losses.set_losses(first, [target], losses.DETR_LOSS).values()).item()


# %%
with_, without = first_layer_after_training(True), first_layer_after_training(False)
print(
    "taught after every layer, the first one's loss is less than a third of that without:",
    with_ < without / 3,
)

# %% [markdown]
# Without auxiliary losses only the last layer's answer is ever looked at, and earlier ones need not be answers at all. With them every layer gives an answer that the next one can improve.

# %% [markdown]
# ## 11. Focal loss
#
# The weight 0.1 for "no object" is one way to keep many easy answers from drowning a few hard ones. Deformable DETR
# takes another: a yes-or-no question for every class (a sigmoid instead of a softmax; "no object" is simply *no* to
# all), and a loss that looks away from what is already right. With $p_t$ the probability of the right answer:
#
# $$\text{FL}(p_t) = -\alpha_t\,(1 - p_t)^\gamma \log p_t, \qquad \gamma = 2$$
#
# $\alpha_t$ is 0.25 for *yes* and 0.75 for *no*. That looks the wrong way round, since *yes* is the rare answer. But
# the factor with $\gamma$ has already taken nearly all of the weight away from *no*, where most answers are easy:
# without that factor a large $\alpha_t$ for *yes* works best, and with $\gamma = 2$ a small one
# ([paper](https://arxiv.org/abs/1708.02002), found by trial). With the 300 queries of Deformable DETR and 80 classes
# there are 24,000 questions a picture, and for seven objects 7 of them are answered *yes*.

# %%
p = torch.linspace(0.05, 0.95, 19)
lines = {f"γ = {g}": (-((1 - p) ** g) * p.log()).tolist() for g in (0, 1, 2)}
title = "Focal loss (without α); γ = 0 is cross-entropy"
xlabel = "probability of the right answer"
ax = plots.curves(p.tolist(), lines, title, xlabel, "loss (logarithmic)", log="y")
plots.show(
    ax,
    alt="Three falling curves over the probability of the right answer, on a logarithmic axis. For "
    "unlikely answers they are close to each other; at 0.95, each step of γ divides the loss by "
    "twenty.",
)

# %%
sample, truth = 3 * torch.randn(6, 8), (torch.rand(6, 8) > 0.7).float()
ours = losses.sigmoid_focal_loss(sample, truth)
theirs = torchvision.ops.sigmoid_focal_loss(sample, truth, alpha=0.25, gamma=2)
print("torchvision within 1e-6:", (ours - theirs).abs().max().item() < 1e-6)

# %% [markdown]
# On the right of the figure, where an answer is nearly right, the curves part: at 0.95 each step of $\gamma$ divides
# the loss by twenty. Now suppose that a model gives each of the 7 objects a probability of 0.12, and denies all else
# with 0.99 (the logits −2 and −4.6):

# %%
hard = torch.full((7,), -2.0)  # logits: 7 objects missed,
easy = torch.full((300 * 80 - 7,), -4.6)  # the rest rightly denied
for name, of in (
    ("cross-entropy", torch.nn.functional.binary_cross_entropy_with_logits),
    ("focal loss", torchvision.ops.sigmoid_focal_loss),
):
    missed = of(hard, torch.ones(7), reduction="sum")
    denied = of(easy, torch.zeros(len(easy)), reduction="sum")
    print(f"{name:>13}: {missed / (missed + denied):.0%} of the loss comes from the 7 objects")

# %% [markdown]
# Cross-entropy would spend nearly all of its effort on what is right already. Focal loss hears the seven.

# %% [markdown]
# ## 12. How good is a detector? Precision, recall, AP
#
# A loss teaches; it does not say how good a detector is. Let us judge one: how well does the Deformable DETR of 00 find crescents, on 40 pictures that it never saw? A detection is **right** if it overlaps a crescent
# that nobody surer has claimed, by an IoU of at least 0.5. A second box on the same crescent is **wrong**.

# %%
from ddetr_lite.datasets.shapes import ShapesConfig, render_picture

loaded, config = course.detector(), ShapesConfig()
CRESCENT = loaded.classes.index("crescent")
judged = []  # (detections, true boxes of crescents), picture by picture
for index in range(100, 140):
    pixels, notes = render_picture(config, "val", index)
    with torch.no_grad():
        detections = loaded.model([torch.from_numpy(pixels.copy()).permute(2, 0, 1)])[0]
    crescents = [
        note["bbox"] for note in notes if config.classes[note["category_id"] - 1] == "crescent"
    ]
    judged.append((detections, [[x, y, x + w, y + h] for x, y, w, h in crescents]))


# %%
def right_or_wrong(boxes, crescents, threshold=0.5):
    """For each box, the surest first, whether it is right."""
    free, verdict = set(range(len(crescents))), []
    for box in boxes.tolist():
        best = max(free, key=lambda t: iou(box, crescents[t]), default=None)
        verdict.append(best is not None and iou(box, crescents[best]) >= threshold)
        if verdict[-1]:
            free.remove(best)
    return verdict


# %%
scores, right = [], []
for detections, crescents in judged:
    of_crescent = detections["labels"] == CRESCENT
    scores += detections["scores"][of_crescent].tolist()
    right += right_or_wrong(detections["boxes"][of_crescent], crescents)
objects_in_all = sum(len(crescents) for _, crescents in judged)
order = torch.tensor(scores).argsort(descending=True)
claim = "crescents; some detections are right, most are very unsure and wrong:"
print(objects_in_all, claim, 0.5 > sum(right) / len(right) > 0)
right = torch.tensor(right)[order]

# %% [markdown]
# Go down the list from the surest. After each detection two shares: **precision**, how many of those said so far are right; **recall**, how many of the crescents have been found.

# %%
found = right.float().cumsum(0)
precision = found / torch.arange(1, len(found) + 1)
recall = found / objects_in_all
levels = torch.arange(101) / 100
best_beyond = torch.stack(
    [precision[recall >= r].max() if (recall >= r).any() else torch.tensor(0.0) for r in levels]
)

# %%
ax = plots.precision_recall(
    recall, precision, levels, best_beyond, "Crescents in 40 pictures, IoU ≥ 0.5"
)
plots.show(
    ax,
    alt="Precision against recall: near one for the surest detections, falling as recall grows. "
    "The area below the line is AP.",
)

# %% [markdown]
# The line is the best precision at this recall or beyond. **Average precision** (AP) is the area below it: its mean over 101 recalls, evenly spaced from 0 to 1. COCO's evaluation, `pycocotools`, on the same detections:

# %%
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def as_coco(rows):
    """Rows (picture, box, score) as pycocotools wants them."""
    notes = []
    for picture, (x0, y0, x1, y1), score in rows:
        width, height = x1 - x0, y1 - y0
        note = {"id": len(notes) + 1, "image_id": picture, "category_id": 1, "score": score}
        box = {"bbox": [x0, y0, width, height], "area": width * height, "iscrowd": 0}
        notes.append({**note, **box})
    return notes


# %%
truth, said = COCO(), []
crescents_of = [(i, box, 1.0) for i, (_, crescents) in enumerate(judged) for box in crescents]
pictures_of = [{"id": i} for i in range(40)]
notes = as_coco(crescents_of)
truth.dataset = {"images": pictures_of, "categories": [{"id": 1}], "annotations": notes}
for i, (d, _) in enumerate(judged):
    triples = zip(d["boxes"].tolist(), d["scores"].tolist(), d["labels"])
    said += [(i, box, score) for box, score, label in triples if label == CRESCENT]

# %%
with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(as_coco(said)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
print("pycocotools within 1e-6:", abs(best_beyond.mean().item() - evaluation.stats[1]) < 1e-6)
print(f"AP of crescents at IoU 0.5: {best_beyond.mean():.1f}")

# %% [markdown]
# (Two dozen crescents are few: one more or less found moves AP by several hundredths. Benchmarks use thousands.) What is reported as *the* AP is the mean over ten thresholds of IoU, 0.5, 0.55, ..., 0.95, and over all classes. At 0.95 a box must fit nearly to the pixel,
# so this AP is always lower; the first DETR had 0.42 on COCO, the data set of photos on which detectors are compared.
#
# > **Claim:** duplicates do no harm; one can always look at the best box.
# >
# > **Measurement:** say everything twice.

# %%
twice = right.repeat_interleave(2)
twice[1::2] = False  # the copies: their crescent is claimed already
found = twice.float().cumsum(0)
precision_, recall_ = found / torch.arange(1, len(found) + 1), found / objects_in_all
doubled = torch.stack(
    [precision_[recall_ >= r].max() if (recall_ >= r).any() else torch.tensor(0.0) for r in levels]
)
share = doubled.mean() / best_beyond.mean()
print(f"AP of everything said twice, as a share of before: {share:.1f}")

# %% [markdown]
# A copy is a mistake, and costs as much as a wrong box. That is why detectors need NMS, or a loss that teaches to say it once.

# %% [markdown]
# ## 13. The query that we follow
#
# In 00 we met one query of the trained detector, the one that finds the ring. If this picture were one to train on, which query would be told *ring*? The match for all 20 queries, after each of the two layers (with Deformable
# DETR's class cost: the focal loss of saying *yes* less that of saying *no*, times 2):

# %%
model, followed = loaded.model, course.followed_query()
with torch.no_grad():
    outputs = model.outputs(model.batch([scene.pixels]))
labels = torch.tensor([loaded.classes.index(name) for name in scene.names])
target = {"labels": labels, "boxes": true_boxes}
matches = matching.match(outputs.logits, outputs.boxes, [target], matching.MatchingCost(), "focal")
for k in range(len(outputs.logits)):
    own = matches.of_layer(k)
    told = dict(zip(names, own.query[own.target.argsort()].tolist()))
    print(f"after layer {k + 1}: {told}")
print("the query that we follow:", followed.index)

# %%
said = outputs.logits[-1], outputs.boxes[-1], labels[None], true_boxes[None]
cost = matching.matching_cost(*said, matching.MatchingCost(), "focal")[0]  # (N_q, T)
own = matches.of_layer(len(outputs.logits) - 1)
pairs = list(zip(own.query.tolist(), own.target.tolist()))
chosen = corners(outputs.boxes[-1, 0, own.query]) * side
drawn, axes = plots.panels(2, height=4.2)
plots.matching(cost, pairs, [str(i) for i in range(20)], names, "20 queries, 4 objects", ax=axes[0])
draw_boxes(scene.pixels, chosen, [names[t] for t in own.target], title="matched boxes", ax=axes[1])
plots.show(
    drawn,
    alt="The match between 20 queries and the four objects of the picture, and the matched boxes, "
    "which fit the objects.",
)

# %% [markdown]
# Our query would be told *ring* after both layers, and the other three objects keep their queries, too. It need not be so: each layer is matched by itself, and another query may suit an object better after the second layer than after the first.
#
# Where all of this stands in the paper and in the code ($\hat\sigma$ is the match, $\hat\sigma(i)$ the query of object $i$;
# $\varnothing$ is "no object"; other hats mark what the model says):

# %%
course.equation_map("05")

# %% [markdown]
# ## Summary
#
# - Anchors, assignment rules and NMS are hand-made parts: sizes chosen for a data set, many predictions that learn the same object, and a threshold that has to tell copies from neighbours.
# - IoU: shared area over covered area; flat where boxes are apart. GIoU goes on pointing the way. L1 depends on the size of the object. DETR takes L1 and GIoU.
# - The match gives each object a query of its own, at the least total cost: class, L1 and GIoU. Brute force finds it; cheapest chains find it fast.
# - The loss: cross-entropy for all queries, with "no object" weighing 0.1; L1 and GIoU for those matched. Order does not matter. The second-best learns to be silent.
# - Auxiliary losses: one for each decoder layer. Focal loss: looks away from what is already right.
# - AP: the area below the precision–recall curve; a duplicate is a mistake.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `box_iou`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# Section 1, for tensors of boxes that stretch against one another.


# %% tags=["exercise"]
def box_iou(a, b):
    """a, b: (..., 4), corners, that stretch against one another.
    Returns (...). Two boxes without area give 0.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `torch.maximum(a[..., :2], b[..., :2])` is the upper left corner of what both share. Sides may come out negative, and the union may be 0: `clamp` helps with both.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("box_iou", box_iou)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def box_iou(a, b):
#     """a, b: (..., 4), corners, that stretch against one another.
#     Returns (...). Two boxes without area give 0.
#     """
#     begin = torch.maximum(a[..., :2], b[..., :2])
#     end = torch.minimum(a[..., 2:], b[..., 2:])
#     shared = (end - begin).clamp(min=0).prod(-1)
#     areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
#     return shared / (areas - shared).clamp(min=1e-9)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `generalized_box_iou`
#
# Difficulty ●●○○○ · Importance ●●●●○ · about 10 minutes
#
# Section 5, from memory.


# %% tags=["exercise"]
def generalized_box_iou(a, b):
    """a, b: (..., 4), corners, that stretch against one another; a box may have no area.
    Returns (...), in −1..1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# The hull is found like the shared part, with minimum and maximum changing places; it never has negative sides.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("generalized_box_iou", generalized_box_iou)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def generalized_box_iou(a, b):
#     """a, b: (..., 4), corners, that stretch against one another; a box may have no area.
#     Returns (...), in −1..1.
#     """
#     begin = torch.maximum(a[..., :2], b[..., :2])
#     end = torch.minimum(a[..., 2:], b[..., 2:])
#     shared = (end - begin).clamp(min=0).prod(-1)
#     union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
#     hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
#     return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `matching_cost`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# DETR's cost of every pair, with its weights: 1 for the class, 5 for L1, 2 for GIoU. `three_costs` of section 7 gives them
# apart; here their sum is asked for, one table.


# %% tags=["exercise"]
def matching_cost(probabilities, boxes, labels, target_boxes):
    """(N_q, C+1), (N_q, 4), (T,), (T, 4); boxes are (cx, cy, w, h). Returns (N_q, T)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Three tables $(N_q, T)$. `cxcywh_to_xyxy` and `generalized_box_iou` may be taken from
# `ddetr_lite.set_prediction.boxes`; import them inside the function, then it can be kept for other notebooks.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("matching_cost", matching_cost)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def matching_cost(probabilities, boxes, labels, target_boxes):
#     """(N_q, C+1), (N_q, 4), (T,), (T, 4); boxes are (cx, cy, w, h). Returns (N_q, T)."""
#     from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, generalized_box_iou
#
#     by_class = -probabilities[:, labels]
#     l1 = (boxes[:, None] - target_boxes).abs().sum(-1)
#     overlap = generalized_box_iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target_boxes))
#     return by_class + 5 * l1 - 2 * overlap
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `class_loss`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# The class part of the loss, when the match is known: `queries[s]` is the query of the object whose class is `labels[s]`.


# %% tags=["exercise"]
def class_loss(logits, labels, queries, no_object):
    """(N_q, C+1), (T,), (T,) for T objects, the weight of "no object".
    Returns a scalar tensor, a weighted mean.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# First make the class that each query should say; the last one is "no object". A weighted mean divides by the sum of the weights.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("class_loss", class_loss)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def class_loss(logits, labels, queries, no_object):
#     """(N_q, C+1), (T,), (T,) for T objects, the weight of "no object".
#     Returns a scalar tensor, a weighted mean.
#     """
#     last = logits.shape[-1] - 1
#     classes = torch.full((len(logits),), last, device=logits.device)
#     classes[queries] = labels
#     weights = torch.ones(last + 1, device=logits.device)
#     weights[last] = no_object
#     return torch.nn.functional.cross_entropy(logits, classes, weights)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 5 · `average_precision`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 15 minutes
#
# Section 12 as a function, with 101 recalls.


# %% tags=["exercise"]
def average_precision(scores, right, objects):
    """scores: (n,), in any order; right: (n,), boolean; objects: how many there are.
    Returns a scalar in 0..1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Sort by score, sum up what is right, divide once by the number said so far and once by the number of objects. Then for each of the recalls 0, 1/100, ..., 1: the best precision where at least this recall is reached.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("average_precision", average_precision)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def average_precision(scores, right, objects):
#     """scores: (n,), in any order; right: (n,), boolean; objects: how many there are.
#     Returns a scalar in 0..1.
#     """
#     found = right[scores.argsort(descending=True)].float().cumsum(0)
#     precision = found / torch.arange(1, len(found) + 1)
#     recall = found / objects
#     best = torch.zeros(101)
#     for i in range(101):
#         beyond = precision[recall >= i / 100]
#         if len(beyond):
#             best[i] = beyond.max()
#     return best.mean()
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.restore()
for function in (box_iou, generalized_box_iou, matching_cost, class_loss):
    course.use(function)

# %% [markdown]
# The package's loss now runs on what you have written. It must say what it said in section 8:

# %%
target = {"labels": true_labels, "boxes": true_boxes}
outputs = losses.Outputs(logits[None, None], said_boxes[None, None])
again = losses.set_losses(outputs, [target], losses.DETR_LOSS)
same = all(abs(again[name] - before) < 1e-5 for name, before in section_8.items())
print("the same within 1e-5:", same)
course.reset()

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("N_q", "T", "C", "K", "B", "A", "p", "σ")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("05")

# %% [markdown]
# **Next:** the loss is ready, and so are attention, positions and layers. [06 · DETR](06_detr.ipynb) puts them together, and trains. Back to
# [04 · The Transformer](04_transformer.ipynb).
