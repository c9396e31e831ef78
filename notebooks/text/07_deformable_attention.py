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
# # 07 · Deformable attention: look at a few places, and learn where
#
# DETR's queries look at every cell of the map, and have to find out which few of them matter. Deformable attention turns this
# round: each query *says* where it wants to look, a handful of places, and how much each counts. Then the cost no longer grows with
# the square of the number of pixels. One question decides whether this can work: can "where" be learned?

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | sample a map between its cells by hand, and give the gradient with respect to the place; say why rounding would not learn; get from deformable convolution to deformable attention; build deformable attention from a loop and equal the package's; draw where it looks before and after training; show that its cost is linear |
# | **You need first** | [02 · Multi-head attention](02_multi_head_attention.ipynb) and [06 · DETR](06_detr.ipynb) |
# | **Time** | 85 minutes to read and run, 50 for the exercises |
# | **Device** | any CPU; two cells train for a few seconds, and nothing is downloaded |

# %%
import math
import time

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from ddetr_lite import course, plots
from ddetr_lite.kernels import multi_scale_deformable_attention, reference
from ddetr_lite.layers import attention
from ddetr_lite.layers import deformable_attention as package
from ddetr_lite.plots.detection import offsets as offsets_around
from ddetr_lite.plots.detection import sampling_points

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. A few places instead of all
#
# In attention a query is compared with all $N$ keys; that gives the weights, and the result is the weighted mean of all $N$ values. Deformable attention has **no keys**. From the query's vector one matrix computes $P$ *offsets*, steps in $x$ and
# $y$ from the place where the query stands, its **reference point**; another computes $P$ numbers, whose softmax gives the weights. (In the encoder each cell is a query and stands at its own centre; an object query gets a place of its own: [09](09_deformable_detr.ipynb).) The result is the weighted mean of the values at these $P$ places, and $P$ is 4 in the paper, 2 in our detector.
#
# How many values are looked at, if each of $N$ cells is a query, for a photo of 800 × 1333 pixels and one head?

# %%
for stride in (32, 16, 8):
    n = math.ceil(800 / stride) * math.ceil(1333 / stride)
    print(
        f"stride {stride:>2}: {n:>6,} cells; attention looks at {n * n:>11,} values, "
        f"deformable attention at {4 * n:>6,}"
    )

# %% [markdown]
# ## 2. Between the cells
#
# An offset like (1.3, −0.4) falls between the cells. What is the value there? **Bilinear sampling** takes the four cells around and mixes them: the nearer, the more.
#
# Cell centres lie at whole positions: cell (0, 0) at $x = 0$, $y = 0$. By hand, on a map of one channel,
#
# $$\begin{pmatrix} 1 & 3 \\ 5 & 11 \end{pmatrix}\qquad\text{at } x = 0.25,\ y = 0.5:$$
#
# the upper row gives 0.75 · 1 + 0.25 · 3 = 1.5, the lower one 0.75 · 5 + 0.25 · 11 = 6.5; half of each is **4**.


# %%
def sample(feature, x, y):
    """feature: (H, W). The value at column x and row y; outside the map everything is 0."""
    x0, y0 = math.floor(x), math.floor(y)
    result = 0.0
    for row, weight_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, weight_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < len(feature) and 0 <= column < len(feature[0]):
                result += weight_x * weight_y * feature[row][column]
    return result


print("by hand:", sample([[1.0, 3], [5, 11]], 0.25, 0.5))

# %% [markdown]
# torch calls this `grid_sample`. It counts places from −1 to 1 across the whole map, where the *borders* of the outer cells are at −1 and 1 (`align_corners=False`). We count from 0 to 1 as in 00, so a location $l$ lies at $x = l \cdot W - \frac{1}{2}$.

# %%
feature = torch.randn(5, 7)  # (H, W)
locations = torch.rand(20, 2) * 1.2 - 0.1  # (x, y) in 0..1, some of them outside
ours = torch.tensor([sample(feature, x * 7 - 0.5, y * 5 - 0.5) for x, y in locations.tolist()])
grid = 2 * locations[None, None] - 1  # (1, 1, 20, 2)
theirs = F.grid_sample(feature[None, None], grid, align_corners=False)[0, 0, 0]
print("torch within 1e-6:  ", (ours - theirs).abs().max().item() < 1e-6)
x, y = (locations * torch.tensor([7.0, 5]) - 0.5).T.tolist()
package_s = torch.stack([reference.bilinear_sample(feature[..., None], *at)[0] for at in zip(x, y)])
print("package within 1e-6:", (ours - package_s).abs().max().item() < 1e-6)

# %%
across, down = torch.linspace(-0.5, 6.5, 120).tolist(), torch.linspace(-0.5, 4.5, 86).tolist()
between = torch.tensor([[sample(feature, x, y) for x in across] for y in down])
drawn, axes = plots.panels(2, height=2.7)
titles = ("the cells", "and all places between")
for ax, table, title in zip(axes, (feature, between), titles):
    plots.matrix(table, signed=True, limit=2, numbers=False, title=title, ax=ax)
plots.show(
    drawn,
    alt="A map of 5 × 7 cells, and the same map sampled at many places between the cells: "
    "soft transitions.",
)

# %% [markdown]
# ## 3. Can "where" be learned?
#
# Training moves a number against the gradient of the loss. So ask: if $x$ grows a little, how does the sampled value $s$ change? With $a$ and $b$ the two upper cells, $c$ and $d$ the two lower ones, and the fractions $f_x = x - \lfloor x \rfloor$, $f_y = y - \lfloor y \rfloor$, the formula gives:
#
# $$\begin{aligned} \frac{\partial s}{\partial x} &= (1 - f_y)\,(b - a) + f_y\,(d - c) \\ \frac{\partial s}{\partial y} &= (1 - f_x)\,(c - a) + f_x\,(d - b) \end{aligned}$$
#
# the slope of the map to the right, and downwards ($y$ grows downwards). By hand, for the example above: 0.5 · (3 − 1) + 0.5 · (11 − 5) = **4** in $x$, and 0.75 · (5 − 1) + 0.25 · (11 − 3) = **5** in $y$.

# %%
small = torch.tensor([[1.0, 3], [5, 11]])
place = torch.tensor([0.25, 0.5], requires_grad=True)  # x, y in cells
grid = (place + 0.5) / 2 * 2 - 1  # two cells a side: in 0..1, then in −1..1
value = F.grid_sample(small[None, None], grid[None, None, None], align_corners=False)
value.sum().backward()
print("value", value.item(), "gradient", place.grad)

# %% [markdown]
# So a sampling point *feels the slope* and can walk along it.
#
# > **Claim:** rounding to the nearest cell would do as well, and is simpler.
# >
# > **Measurement:** a point that wants to reach the highest place of a smooth hill, by gradient ascent, with bilinear and with nearest sampling.

# %%
rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
hill = torch.exp(-((columns - 11) ** 2 + (rows - 5) ** 2) / 40)  # highest at x = 11, y = 5


def climb(mode, steps=150):
    """The places (steps, 2) of a point that starts at (3, 12)."""
    place, walked = torch.tensor([3.0, 12.0], requires_grad=True), []
    optimizer = torch.optim.Adam([place], lr=0.2)
    for _ in range(steps):
        walked.append(place.detach().clone())
        grid = ((place + 0.5) / 16 * 2 - 1)[None, None, None]
        height = F.grid_sample(hill[None, None], grid, mode=mode, align_corners=False)
        optimizer.zero_grad()
        (-height.sum()).backward()
        optimizer.step()
    return torch.stack(walked)


# %%
walks = {mode: climb(mode) for mode in ("bilinear", "nearest")}
drawn, axes = plots.panels(2, height=3.0)
for ax, (mode, walk) in zip(axes, walks.items()):
    plots.matrix(hill, numbers=False, title=mode, ax=ax)
    ax.plot(*walk.T, color=plots.COLOURS[1], linewidth=2)
    ax.plot(*walk[-1], "o", color=plots.COLOURS[1], markersize=8)
plots.show(
    drawn,
    alt="A hill seen from above with a point's walk: the bilinear one walks to the top, "
    "the nearest one stays at its start.",
)
for mode, walk in walks.items():
    moved = bool((walk != walk[0]).any())
    arrived = (walk[-1] - torch.tensor([11.0, 5])).norm().item() < 0.5
    print(f"{mode:>8}: moved {moved}, ends within half a cell of the top {arrived}")

# %% [markdown]
# With rounding the value does not change when the point moves a little, so its gradient is zero and it never moves. **Bilinear sampling is what makes "where" learnable.** A limit remains: the point feels only the slope between its four cells. On a map that is pure
# noise from cell to cell, the slope says nothing about what lies three cells away. Several points that look at once have a better chance.

# %% [markdown]
# ## 4. Where it comes from: deformable convolution
#
# A convolution (06) looks at nine fixed cells around each place. **Deformable convolution** (Dai et al. 2017, with weights for each point Zhu et al. 2019) adds to each of the nine an offset that the network computes from the map itself. With all offsets zero it is the plain convolution:

# %%
x, kernel = torch.randn(1, 6, 8, 8), torch.randn(6, 6, 3, 3)
offsets = torch.zeros(1, 2 * 9, 8, 8)
plain = F.conv2d(x, kernel, padding=1)
deformed = deform_conv2d(x, offsets, kernel, padding=1)
print("offsets of zero = convolution, within 1e-4:", (deformed - plain).abs().max().item() < 1e-4)


# %% [markdown]
# The kernel has a matrix of its own for each of the nine points, the same for every place. Deformable *attention* has **one** value matrix for all points of a head, and instead the query computes a *weight* for each point. The two are equal where the
# kernel holds the same matrix at each of its points, and the weights of the points come from outside (torchvision calls them `mask`). (With a single point, $P = 1$, the softmax makes its weight 1, and a head is a deformable 1 × 1 convolution.) Let us check that they are equal for one head, with a kernel of 1 × 3 points, the identity as the matrix, and random weights (no softmax, to be general). The package's function takes values $(B, N, M, D)$, for $M$ heads of $D$ channels, the sizes of the maps (here one), and for each query, head, map and point a place in 0..1 and a weight:

# %%
height, width, channels, points = 6, 9, 4, 3
x = torch.randn(1, channels, height, width)
identity = torch.eye(channels)[:, :, None, None]
same_matrix = identity.expand(-1, -1, 1, points)  # the identity at each point
offsets = torch.randn(1, points, 2, height, width - 2)  # (y, x) here, in cells
weights = torch.randn(1, points, height, width - 2)
convolved = deform_conv2d(x, offsets.flatten(1, 2), same_matrix, mask=weights)  # (1, C, H, W − 2)
convolved = convolved.flatten(2).transpose(1, 2)  # (1, N_q, C): each cell of the result is a query

# %%
row, column = torch.meshgrid(torch.arange(height), torch.arange(width - 2), indexing="ij")
along = torch.arange(points)[:, None, None]  # where the points stand without offsets
at_x = (column + along + offsets[0, :, 1] + 0.5) / width  # (P, H, W − 2)
at_y = (row + offsets[0, :, 0] + 0.5) / height
locations = torch.stack((at_x, at_y), dim=-1).permute(1, 2, 0, 3).flatten(0, 1)  # (N_q, P, 2)
shares = weights[0].permute(1, 2, 0).flatten(0, 1)  # (N_q, P)
value = x.flatten(2).transpose(1, 2)[:, :, None]  # (B, N, M, D) with one head
attended = multi_scale_deformable_attention(
    value, [(height, width)], locations[None, :, None, None], shares[None, :, None, None]
)
print("equal to deform_conv2d within 1e-5:", (attended - convolved).abs().max().item() < 1e-5)


# %% [markdown]
# ## 5. Deformable attention, step by step
#
# The Deformable DETR paper first writes the attention of [02](02_multi_head_attention.ipynb) as a sum over heads $m$ and over all tokens $k$ (its equation 1), and then cuts the second sum down to $P$ points (equation 2), for a query $z$ at the place $p$ (vectors are columns here, as in the paper, and so the matrices stand on the left):
#
# $$\text{MultiHeadAttn}(z, x) = \sum_{m=1}^{M} W_m \Big[\sum_{k=1}^{N} A_{mk}\; W'_m\, x_k\Big]$$
#
# $$\text{DeformAttn}(z, p, x) = \sum_{m=1}^{M} W_m \Big[\sum_{k=1}^{P} A_{mk}\; W'_m\, x(p + \Delta p_{mk})\Big]$$
#
# Offsets $\Delta p_{mk}$ and weights $A_{mk}$ are made from $z$; the $A_{mk}$ of a head are a softmax over its $P$ points. Read the rest from the inside: the map $x$ at the place $p + \Delta p_{mk}$; the value matrix $W'_m$ of the head; times the weight $A_{mk}$; summed over $P$ points; $W_m$ of the head, summed over $M$ heads (that is one matrix on all heads side by side, as $W^O$ in 02).
# Sampling is a weighted sum, so $W'_m$ may as well come first, once for the whole map: that is how it is done. First for one query, as a loop:


# %%
def one_query(z, p, feature, layer):
    """z: (d,), p: (x, y) in cells, feature: (H, W, d); matrices of `layer`. Returns (d,)."""
    M, P = layer.heads, layer.points
    offsets = layer.sampling_offsets(z).view(M, P, 2)
    A = layer.attention_weights(z).view(M, P).softmax(-1)  # the weights of a head sum to 1
    values = layer.value_proj(feature).unflatten(-1, (M, -1))  # (H, W, M, D)
    heads = []
    for m in range(M):
        found = 0
        for k in range(P):
            x, y = (p + offsets[m, k]).tolist()
            found = found + A[m, k] * reference.bilinear_sample(values[:, :, m], x, y)  # (D,)
        heads.append(found)
    return layer.output_proj(torch.cat(heads))  # (d,)


# %%
d, height, width = 32, 6, 8
layer = package.DeformableAttention(d, heads=8, points=4)
# As if trained: a new layer ignores the query.
nn.init.normal_(layer.sampling_offsets.weight, std=0.3)
nn.init.normal_(layer.attention_weights.weight, std=0.3)
feature, queries = torch.randn(height, width, d), torch.randn(5, d)
places = torch.rand(5, 2)  # the reference points, (x, y) in 0..1
with torch.no_grad():
    in_cells = places * torch.tensor([width, height]) - 0.5
    loop = torch.stack([one_query(z, p, feature, layer) for z, p in zip(queries, in_cells)])
    tokens = feature.flatten(0, 1)[None]  # (1, N, d)
    theirs = layer(queries[None], places[None, :, None], tokens, [(height, width)])[0]  # (N_q, d)
print("package within 1e-5:", (loop - theirs).abs().max().item() < 1e-5)


# %% [markdown]
# ### The same, all at once
#
# All queries, heads and points in one `grid_sample`: heads take the place of pictures. (`layer.samples` returns locations and weights, with an axis for levels; until [08](08_multi_scale_deformable_attention.ipynb) there is one level.)


# %%
def deformable_attention(value, shape, locations, weights):
    """value: (N, M, D), locations: (N_q, M, P, 2) in 0..1, weights: (N_q, M, P).
    Returns (N_q, M·D).
    """
    maps = value.permute(1, 2, 0).unflatten(-1, shape)  # (M, D, H, W)
    grid = 2 * locations.transpose(0, 1) - 1  # (M, N_q, P, 2)
    samples = F.grid_sample(maps, grid, align_corners=False)  # (M, D, N_q, P)
    result = (samples * weights.transpose(0, 1)[:, None]).sum(-1)  # (M, D, N_q)
    return result.permute(2, 0, 1).flatten(1)  # (N_q, M·D)


with torch.no_grad():
    locations, weights = layer.samples(queries[None], places[None, :, None], [(height, width)])
    locations, weights = locations[0, :, :, 0], weights[0, :, :, 0]  # one picture, one level
    value = layer.value_proj(feature).flatten(0, 1).unflatten(-1, (8, -1))  # (N, M, D)
    fast = layer.output_proj(deformable_attention(value, (height, width), locations, weights))
print("loop within 1e-5:", (fast - loop).abs().max().item() < 1e-5)

# %% [markdown]
# The package takes yet another way on a CPU: [12](12_fast_kernels.ipynb) is about it, and measures it.

# %% [markdown]
# ## 6. Where it begins, and where training moves it
#
# A new layer cannot know where to look. The authors let every query begin with a **compass**: eight heads, eight directions, and $P$ points one, two, three, ... cells away. The matrix that computes the offsets is zero, and the compass stands in its bias; the weights are all equal.

# %%
compass = package.compass_offsets(heads=8, levels=1, points=4)[:, 0]  # (M, P, 2)
ax = offsets_around(compass, title="offsets of a new layer, in cells", reach=7)
plots.show(
    ax,
    alt="Eight arms of four points each in the eight directions of a compass around the reference "
    "point, one to four cells away.",
)
lengths = compass.abs().amax(-1)[:, 0].tolist()
print("the length of an arm's steps is one cell, the larger of |x| and |y|:", lengths)

# %% [markdown]
# Now train it on a task in which *where* is everything: on smooth random maps, the query is one of four words, "right", "left", "down", "up", and the answer is the map's value **four cells away in that direction**. It has never been told what the words mean.

# %%
WORDS = ("right", "left", "down", "up")
steps_away = torch.tensor([[4.0, 0], [-4, 0], [0, 4], [0, -4]])  # (x, y) in cells


def task(pictures=8, queries=20, side=16):
    """Smooth maps (B, d, H, W), words (B, N_q), reference points (B, N_q, 2), and the right
    answers (B, N_q, d).
    """
    feature = F.interpolate(torch.randn(pictures, d, 6, 6), (side, side), mode="bicubic")
    words = torch.randint(4, (pictures, queries))
    reference_points = 0.25 + 0.5 * torch.rand(pictures, queries, 2)
    places = reference_points + steps_away[words] / side
    answer = F.grid_sample(feature, 2 * places[:, :, None] - 1, align_corners=False)[..., 0]
    return feature, words, reference_points, answer.transpose(1, 2)


# %%
torch.manual_seed(0)
model = nn.ModuleDict(
    {"words": nn.Embedding(4, d), "attention": package.DeformableAttention(d, heads=8, points=4)}
)


def answer(feature, words, places):
    tokens = feature.flatten(2).transpose(1, 2)  # (B, N, d)
    queries = model["words"](words)  # (B, N_q, d)
    return model["attention"](queries, places[:, :, None], tokens, [feature.shape[-2:]])


# %%
@torch.no_grad()
def looks_at():
    """Offsets in cells (4, M, P, 2) and weights (4, M, P) for each of the four words."""
    queries, middle = model["words"](torch.arange(4))[None], torch.full((1, 4, 1, 2), 0.5)
    locations, weights = model["attention"].samples(queries, middle, [(16, 16)])
    return (locations[0, :, :, 0] - 0.5) * 16, weights[0, :, :, 0]


# %%
def learn(steps=400):
    """Train all of the model that may be trained. Returns the error of every step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, errors = torch.optim.Adam(trained, lr=3e-3), []
    for _ in range(steps):
        feature, words, places, wanted = task()
        loss = (answer(feature, words, places) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return errors


# %%
before = looks_at()
seen = learn()
after = looks_at()
print("the error falls to less than half:", sum(seen[-20:]) < sum(seen[:20]) / 2)

# %%
drawn, axes = plots.panels(5, height=2.2, sharex=True, sharey=True)
titles = ["before, all words", *(f"after, “{word}”" for word in WORDS)]
shown = [(before[0][0], before[1][0]), *zip(*after)]  # offsets and weights
for ax, title, (steps, weights) in zip(axes, titles, shown):
    offsets_around(steps, weights, 6, title, ax)
plots.show(
    drawn,
    alt="Five maps of sampling points. Before training a compass of equal dots; after training, "
    "for each word, a large dot lies four cells away in its direction.",
)

# %%
for k, word in enumerate(WORDS):
    near = (after[0][k] - steps_away[k]).norm(dim=-1) < 1.5
    share = (after[1][k] * near).sum() / 8  # of all heads
    print(
        f"“{word}”: more than a quarter of the weight lies within 1.5 cells of the right place:",
        share.item() > 0.25,
    )

# %% [markdown]
# (At the start, 2 of 32 equal points lie there: a sixteenth. After training several heads look at one and the same place, so their dots lie on one another.) Is it the points that have moved, or have only the weights chosen among them?
#
# > **Claim:** the compass has points in all directions; it is enough to weigh them.
# >
# > **Measurement:** the same training with the offsets held at the compass.

# %%
torch.manual_seed(0)
model = nn.ModuleDict(
    {"words": nn.Embedding(4, d), "attention": package.DeformableAttention(d, heads=8, points=4)}
)
model["attention"].sampling_offsets.requires_grad_(False)
held = learn()
larger = sum(held[-20:]) > 1.5 * sum(seen[-20:])
print("with the offsets held, more than 1.5 times the error remains:", larger)

# %% [markdown]
# Weights alone get part of the way, because the compass already has a point on each goal. The rest came from points that moved.

# %% [markdown]
# ## 7. What it costs
#
# > **Claim:** the cost of deformable attention grows in proportion to the number of cells, that of attention with its square.
# >
# > **Measurement:** one layer of each, every cell is a query, maps of growing side; the slope of the line on logarithmic axes is the exponent.

# %%
layers = {
    "attention": attention.MultiHeadAttention(64, 8),
    "deformable attention": package.DeformableAttention(64, 8, 4),
}
sides = [24, 32, 45, 64]
seconds = {name: [] for name in layers}

# %%
for side in sides:
    tokens, places = torch.randn(1, side * side, 64), torch.rand(1, side * side, 1, 2)
    for name, layer in layers.items():
        given = (tokens, tokens) if name == "attention" else (places, tokens, [(side, side)])
        took = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.no_grad():
                layer(tokens, *given)
            took.append(time.perf_counter() - start)
        seconds[name].append(min(took))

# %% tags=["nbval-ignore-output"]
N = torch.tensor([float(side * side) for side in sides])
lines = {name: [value / values[0] for value in values] for name, values in seconds.items()}
dashed = {"∝ N": (N / N[0]).tolist(), "∝ N²": (N / N[0]).square().tolist()}
ax = plots.curves(
    N.tolist(), lines | dashed, "Time of a layer", "cells N", "relative to 576", "xy", list(dashed)
)
plots.show(
    ax,
    alt="Time against cells on logarithmic axes, with dashed lines for N and for N². "
    "Attention follows N², deformable attention stays near N.",
)

# %% tags=["nbval-ignore-output"]
for name, values in seconds.items():
    x, y = N.log(), torch.tensor(values).log()
    x, y = x - x.mean(), y - y.mean()
    exponent = ((x * y).sum() / x.square().sum()).item()  # the slope of the line
    print(f"{name}: N to the power of {exponent:.1f}")

# %% [markdown]
# The claim holds as far as times can show it: attention comes near an exponent of 2, and deformable attention stays far below. How near it comes to 1 depends on the machine, for a time is more than its multiplications: what every call costs, however small its input, lifts the left end of a line, and so the exponent is smaller; where a map no longer fits into the processor's cache, slower memory may lift the right end. Multiplications can be counted exactly. How many does each of the two layers need, with $d$ channels?

# %%
d = 64
for n in (576, 4096, 16_700):
    matrices = n * d * d
    full = 4 * matrices + 2 * n * n * d  # four matrices; scores and weighted means
    few = 2 * matrices  # values, output
    few += n * d * 8 * 4 * 3  # offsets and weights
    few += n * 8 * 4 * 4 * d // 8  # four corners
    print(
        f"N = {n:>6,}: attention {full / 1e6:>8,.0f} million, "
        f"deformable {few / 1e6:>5,.0f} million, per cell {few / n:,.0f}"
    )

# %% [markdown]
# ## 8. The query that we follow
#
# In 06 queries of DETR looked at our picture with a table of weights, one for each of 144 cells. Here is the ring's query in DETR's *first* decoder layer (the mean of its heads), and beside it the one of Deformable DETR, on the finest of its three levels ([08](08_multi_scale_deformable_attention.ipynb) has all of them): this small detector has 4 heads with 2 points each. The cross is where the query stands; larger dots weigh more.

# %%
scene, followed, shipped = course.picture(), course.followed_query(), course.detector("detr")
with attention.record_attention(shipped.model) as recorded, torch.no_grad():
    outputs = shipped.model.outputs(shipped.model.batch([scene.pixels]))
ring = outputs.logits[-1, 0, :, shipped.classes.index("ring")].argmax()
table = recorded["transformer.decoder.layers.0.multihead_attn"][0, :, ring].mean(dim=0)  # (N,)
# Of the first layer, the finest level:
level = followed.locations[0][:, :1], followed.weights[0][:, :1]

# %%
drawn, (left, right) = plots.panels(2, height=3.6)
cells, centre = table.reshape(12, 12), followed.boxes[0][:2]
plots.attention_over_picture(scene.pixels, cells, title="DETR: all cells", ax=left)
sampling_points(scene.pixels, *level, centre, title="deformable: a few points", ax=right)
plots.show(
    drawn,
    alt="The ring in our picture: on the left DETR's weights on all cells, on the right the few "
    "sampling points of Deformable DETR around its reference point.",
)
all_cells, few_points = table.numel(), level[1].shape[-1]
print(f"weights of a head: DETR {all_cells} · Deformable DETR, on this level: {few_points}")

# %%
course.equation_map("07")

# %% [markdown]
# ## Summary
#
# - Deformable attention has no keys: from the query come $P$ offsets and $P$ weights for each head; values are sampled there.
# - Bilinear sampling mixes the four cells around a place; its gradient with respect to the place is the slope of the map. Rounding has none, and cannot learn where.
# - Deformable convolution has a matrix for each point; deformable attention has one for each head, and the query computes a weight for each point.
# - It begins with a compass; training moves points and weights.
# - Each cell costs the same number of multiplications, however many cells there are.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `bilinear_sample`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 15 minutes
#
# Section 2, for a map of $D$ channels. Where $x$ or $y$ is not a number (NaN) or infinite, the result is NaN: a location that went wrong must not look like a zero.


# %% tags=["exercise"]
def bilinear_sample(feature, x, y):
    """feature: (H, W, D); x, y: numbers, in cells, whole ones are centres.
    Outside everything is 0. Returns (D,).
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `math.floor` gives the cell on the left; the fraction is what is left over. Each of the four cells counts only if it is on the map. `math.isfinite` tells numbers from NaN and infinity.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("bilinear_sample", bilinear_sample)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def bilinear_sample(feature, x, y):
#     """feature: (H, W, D); x, y: numbers, in cells, whole ones are centres.
#     Outside everything is 0. Returns (D,).
#     """
#     import math
#
#     if not (math.isfinite(x) and math.isfinite(y)):
#         return feature.new_full((feature.shape[2],), float("nan"))
#     x0, y0 = math.floor(x), math.floor(y)
#     fx, fy = x - x0, y - y0
#     result = feature.new_zeros(feature.shape[2])
#     for row, wy in ((y0, 1 - fy), (y0 + 1, fy)):
#         for column, wx in ((x0, 1 - fx), (x0 + 1, fx)):
#             if 0 <= row < feature.shape[0] and 0 <= column < feature.shape[1]:
#                 result = result + wx * wy * feature[row, column]
#     return result
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `slope`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 15 minutes
#
# The gradient of section 3, by its formula, for a place whose four cells are all on the map. (Autograd gives the same numbers, and the check accepts them. But somebody has to have written what autograd calls: a kernel computes this formula, as you will see in [12](12_fast_kernels.ipynb), section 5.)


# %% tags=["exercise"]
def slope(feature, x, y):
    """feature: (H, W); x, y: numbers, in cells.
    Returns (2,): how the sampled value changes with x, and with y.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Name the four cells $a$, $b$, $c$, $d$. The slope in $x$ is $b - a$ in the upper row and $d - c$ in the lower one, mixed by
# $f_y$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("slope", slope)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def slope(feature, x, y):
#     """feature: (H, W); x, y: numbers, in cells.
#     Returns (2,): how the sampled value changes with x, and with y.
#     """
#     column, row = int(x), int(y)
#     fx, fy = x - column, y - row
#     a, b = feature[row, column], feature[row, column + 1]
#     c, d = feature[row + 1, column], feature[row + 1, column + 1]
#     return torch.stack(((1 - fy) * (b - a) + fy * (d - c), (1 - fx) * (c - a) + fx * (d - b)))
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `compass_offsets`
#
# Difficulty ●●●○○ · Importance ●●●○○ · about 10 minutes
#
# The start of section 6: head $m$ looks in the direction $(\cos, \sin)$ of the angle $2\pi \cdot m / M$, as $(x, y)$, where $y$ grows downwards as in every picture; point $k$ is $k + 1$ cells away ($m$ and $k$ count from 0), where "away" is the larger of $\lvert x \rvert$ and $\lvert y \rvert$ (as a king walks in chess).


# %% tags=["exercise"]
def compass_offsets(heads, points):
    """Returns (heads, points, 2): offsets (x, y) in cells."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# $\cos$ and $\sin$ of the angles are $x$ and $y$. Divide each direction by the larger of its two absolute values; then multiply by $1, 2, \ldots, P$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("compass_offsets", compass_offsets)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def compass_offsets(heads, points):
#     """Returns (heads, points, 2): offsets (x, y) in cells."""
#     import math
#
#     angles = torch.arange(heads) * (2 * math.pi / heads)
#     directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2)
#     directions = directions / directions.abs().max(dim=-1, keepdim=True).values
#     return directions[:, None] * torch.arange(1, points + 1)[None, :, None]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `sampling_locations`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# From reference points and offsets to locations. The offsets count cells; the locations lie in 0..1. In the code that the authors released first, $W$ and $H$ were exchanged in just this line. On square maps nobody can tell.


# %% tags=["exercise"]
def sampling_locations(reference, offsets, height, width):
    """reference: (N_q, 2), (x, y) in 0..1; offsets: (N_q, M, P, 2), (x, y) in cells.
    Returns (N_q, M, P, 2) in 0..1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# $x$ is measured against the width, $y$ against the height. `reference[:, None, None]` is $(N_q, 1, 1, 2)$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("sampling_locations", sampling_locations)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def sampling_locations(reference, offsets, height, width):
#     """reference: (N_q, 2), (x, y) in 0..1; offsets: (N_q, M, P, 2), (x, y) in cells.
#     Returns (N_q, M, P, 2) in 0..1.
#     """
#     return reference[:, None, None] + offsets / offsets.new_tensor([width, height])
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.restore()
for function in (bilinear_sample, slope, compass_offsets, sampling_locations):
    course.use(function)

# %% [markdown]
# A new layer now begins with your compass, and looks where your locations say. It must give what the package's own gives:


# %%
def new_layer_says():
    torch.manual_seed(5)
    layer = package.DeformableAttention(32, heads=8, points=4)
    tokens = torch.randn(1, 48, 32)
    with torch.no_grad():
        return layer(tokens[:, :5], torch.full((1, 5, 1, 2), 0.4), tokens, [(6, 8)])


mine = new_layer_says()
course.reset()
print("the same within 1e-6:", (mine - new_layer_says()).abs().max().item() < 1e-6)

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("N", "N_q", "M", "D", "P", "d", "H", "W", "z", "p", "Δp", "A", "W_m")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("07")

# %% [markdown]
# **Next:** one map is not enough for small and large objects alike. [08 · Multi-scale deformable attention](08_multi_scale_deformable_attention.ipynb). Back to
# [06 · DETR](06_detr.ipynb).
