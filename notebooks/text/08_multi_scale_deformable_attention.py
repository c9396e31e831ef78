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
# # 08 · Multi-scale deformable attention: several maps at once
#
# A small object may be lost on a coarse map; on a fine map, a few points may see too little of a large one. With
# deformable attention a query need not choose: it looks at a few points on *every* map, and its weights say which map helps.
# This is the operation at the heart of Deformable DETR. At the end of this notebook you will have written it.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | say why one map is not enough; put several maps into one row of tokens and find a token's place again; say what level embeddings, reference points and valid ratios are for; follow one query through all levels, number by number; write the operation as a loop, and show that other ways give the same; check its gradients |
# | **You need first** | [07 · Deformable attention](07_deformable_attention.ipynb) |
# | **Time** | 70 minutes to read and run, 55 for the exercises |
# | **Device** | any CPU; no cell takes more than some seconds, and nothing is downloaded |

# %%
import torch
from torch.nn import functional as F

from ddetr_lite import course, plots
from ddetr_lite.batching import flatten_levels, mask_for
from ddetr_lite.kernels import backends_for, multi_scale_deformable_attention, reference
from ddetr_lite.layers import deformable_transformer as package
from ddetr_lite.layers.deformable_attention import record_samples
from ddetr_lite.layers.positional_encoding import sine_encoding_2d
from ddetr_lite.plots.detection import sampling_points
from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
scene, shipped, followed = course.picture(), course.detector(), course.followed_query()

# %% [markdown]
# ## 1. One map is not enough
#
# The detector of 00 takes three maps from its backbone, the outputs of its later stages, each half as fine as the one before: strides 8, 16 and 32. How large are the objects of our picture, in cells of each? (In words and pictures we count levels, points, heads and layers from 1; code counts from 0, and so do rows, columns and the numbers of tokens and queries.)

# %%
model = shipped.model.eval()
batch = model.batch([scene.pixels])
with torch.no_grad():
    maps, masks, positions = model.levels(batch)  # per level (B, d, H, W), (B, H, W), (B, H, W, d)
level_shapes = [tuple(m.shape[-2:]) for m in maps]
side = (scene.boxes[:, 2:] - scene.boxes[:, :2]).amax(dim=1)  # the longer side, pixels
print("maps:", level_shapes)
for name, pixels in zip(scene.names, side.tolist()):
    cells = [round(pixels / stride, 1) for stride in (8, 16, 32)]
    print(f"{name:>8}: {pixels:.0f} pixels = {cells} cells")

# %%
drawn, axes = plots.panels(4, height=2.2)
plots.picture(scene.pixels, "the picture", ax=axes[0])
for level, ax in enumerate(axes[1:]):
    strength = maps[level][0].norm(dim=0)  # (H, W): how loud each cell is
    height, width = strength.shape
    plots.matrix(strength, numbers=False, title=f"level {level + 1}: {height} × {width}", ax=ax)
plots.show(
    drawn,
    alt="The picture, and the strength of the three feature maps of 12 × 12, 6 × 6 and 3 × 3 "
    "cells: ever coarser views.",
)

# %% [markdown]
# On the coarsest map the small star is less than one cell. On the finest, the large star is six cells wide, and each of its cells has seen only a part of it (06: a cell sees more than its own square, but not everything). Which map does a query really use? Section 7 measures it. (The paper takes four levels; its fourth is made from the backbone's last map by one more convolution, with stride 2.)

# %% [markdown]
# ## 2. All maps in one row
#
# The maps become tokens as in 06, row by row, and are put one behind the other. A list says how large each was, so that a token's place can be found again.

# %%
tokens = flatten_levels(maps)  # (B, N, d)
begins = [0]
for height, width in level_shapes:
    begins.append(begins[-1] + height * width)
print("tokens of each level:", [h * w for h, w in level_shapes], "· levels begin at", begins[:-1])


# %%
def place_of(token):
    """Which level, row and column a token is."""
    level = max(k for k in range(len(level_shapes)) if begins[k] <= token)
    row, column = divmod(token - begins[level], level_shapes[level][1])
    return level, row, column


level, row, column = place_of(160)
same = torch.equal(tokens[0, 160], maps[level][0, :, row, column])
print(f"token 160 is on level {level + 1}, row {row}, column {column}: {same}")

# %% [markdown]
# ### Which level am I?
#
# A position (03) says where a cell lies in the *picture*. Cells of different levels may lie at nearly the same place; what then tells them apart? Each level has a learned vector, the **level embedding**, which is added to the position of all its cells.
#
# > **Claim:** the position of 03 is enough to tell the levels apart.
# >
# > **Measurement:** for each token we look for the nearest position among all others: is it from its own level?


# %%
def nearest_is_of_own_level(position):
    """position: (N, d). The share of tokens whose nearest other position is from the same level."""
    distance = torch.cdist(position, position)
    distance.fill_diagonal_(torch.inf)
    counts = torch.tensor([h * w for h, w in level_shapes])
    level_of = torch.repeat_interleave(torch.arange(3), counts)
    return (level_of[distance.argmin(dim=1)] == level_of).float().mean().item()


sines = [sine_encoding_2d(mask, tokens.shape[-1], "deformable") for mask in masks]
bare = torch.cat([sine[0].flatten(0, 1) for sine in sines])  # (N, d)
full = torch.cat([position[0].flatten(0, 1) for position in positions])
alone, embedded = nearest_is_of_own_level(bare), nearest_is_of_own_level(full)
print(f"sines alone: {alone:.0%}, with level embedding: {embedded:.0%}")

# %% [markdown]
# With sines alone, the nearest position is always one of another level. With the embedding every level is a group of its own. (Content may tell levels apart as well, so this does not prove that training would fail without the embedding; only a training run could.)

# %% [markdown]
# ## 3. Reference points
#
# Where does a query stand? A query of the decoder has a point of its own, learned, or proposed by the encoder ([09](09_deformable_detr.ipynb)). In the **encoder** every token is a query, and stands at the centre of its own cell: row $i$ of $H$ lies at $(i + \frac{1}{2}) / H$. This point, in 0..1 of the picture, is the same on all levels.
#
# By hand, for levels of 2 × 2 and 1 × 1 cells: (¼, ¼), (¾, ¼), (¼, ¾), (¾, ¾), and (½, ½).

# %%
whole = torch.ones(1, 2, 2)  # no padding: the picture fills both maps
points = package.encoder_reference_points([(2, 2), (1, 1)], whole)  # (B, N, L, 2)
print("shape (B, N, L, 2):", tuple(points.shape))
print("on the first level:", points[0, :, 0].tolist())
print("the same on both:", torch.equal(points[:, :, 0], points[:, :, 1]))

# %% [markdown]
# ### Valid ratios
#
# Now a batch of two pictures of different sizes: the smaller one is padded at the right and below (06). A point at ½ of the *picture* is not at ½ of the *map*. The **valid ratio** of a level is the share of the map that is picture, in $x$ and in $y$; locations are shares of the map, so points of the picture are multiplied by it.

# %%
tall, wide = torch.rand(3, 96, 48), torch.rand(3, 64, 96)
padded = model.batch([tall, wide])
with torch.no_grad():
    _, padded_masks, _ = model.levels(padded)
ratios = package.valid_ratios(padded_masks)  # (B, L, 2)
print("tall picture, 48 of 96 wide:\n", ratios[0])
print("wide picture, 64 of 96 high:\n", ratios[1])

# %% [markdown]
# 64 of 96 is 2/3, and on the coarsest map two of three rows. But cells are whole: a picture of 50 pixels would fill 2 of 3 coarse columns (0.667), and 6.25, so 7, of 12 fine ones (0.583). So each level has its own ratio. A token's centre is first divided by its own level's ratio, which gives
# a point of the picture, and then multiplied by each level's. (The first step is not quite exact, for a cell that is half padding counts as whole: in the tall picture above 48 pixels fill 1.5 coarse cells and count as 2.)


# %%
def reference_points(level_shapes, ratios):
    """ratios: (B, L, 2). Returns (B, N, L, 2): each token's point on every level's map."""
    result = []
    for b in range(len(ratios)):
        rows = []
        for own, (height, width) in enumerate(level_shapes):
            for i in range(height):
                for j in range(width):
                    x, y = (j + 0.5) / width, (i + 0.5) / height  # on its own level's map
                    centre = torch.tensor([x, y])
                    rows.append(centre / ratios[b, own] * ratios[b])  # (L, 2): on every level's map
        result.append(torch.stack(rows))
    return torch.stack(result)


# %%
narrow = torch.arange(96).expand(1, 96, 96) >= 50  # padding, for a picture 50 pixels wide
uneven = package.valid_ratios([mask_for(narrow, shape) for shape in level_shapes])
for some in (ratios, uneven):
    ours = reference_points(level_shapes, some)
    theirs = package.encoder_reference_points(level_shapes, some)
    print("package within 1e-6:", (ours - theirs).abs().max().item() < 1e-6)
print("a picture of 50 pixels has ratios in x of", uneven[0, :, 0])

# %% [markdown]
# ## 4. One query through all levels
#
# The query that we follow, in the decoder's first layer. Its reference is a box ([09](09_deformable_detr.ipynb) says why); what matters here is where it looks: for each head, level and point a location in 0..1, the same scale for all levels. On each level it becomes a place in *cells*: $x = \text{location} \cdot W - \frac{1}{2}$. And each has a weight; those of a
# head sum to one **over all its levels and points**.

# %%
locations, weights = followed.locations[0], followed.weights[0]  # (M, L, P, 2), (M, L, P)
heads, levels, points_each = weights.shape
print(f"{heads} heads × {levels} levels × {points_each} points = {weights.numel()} samples")
sums = weights.sum(dim=(1, 2))  # (M,)
print("each head's weights sum to 1, within 1e-6:", (sums - 1).abs().max().item() < 1e-6)
print("head 1:")
for level, (height, width) in enumerate(level_shapes):
    for p in range(points_each):
        x, y = (locations[0, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        place = f"x {x:5.1f}, y {y:5.1f} of {width} × {height} cells"
        print(f"  level {level + 1}, point {p + 1}: {place}, weight {weights[0, level, p]:.2f}")

# %%
drawn, axes = plots.panels(4, height=2.5)
centre = followed.boxes[0][:2]  # (x, y) in 0..1
sampling_points(scene.pixels, locations, weights, centre, title="all levels", ax=axes[0])
for level, ax in enumerate(axes[1:]):
    height, width = level_shapes[level]
    plots.matrix(maps[level][0].norm(dim=0), numbers=False, title=f"on level {level + 1}", ax=ax)
    x, y = (locations[:, level].flatten(0, 1) * torch.tensor([width, height]) - 0.5).T
    area = 20 + 120 * weights[:, level].flatten()
    ax.scatter(x, y, s=area, color=plots.COLOURS[level], edgecolors="white", zorder=3)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
plots.show(
    drawn,
    alt="The sampling points of the followed query: over the picture, and on each of the three "
    "maps, where they fall between ever larger cells.",
)

# %% [markdown]
# Around a reference *point* an offset counts cells, so the same offset reaches four times as far on level 3 as on level 1. This query starts from a *box* ([09](09_deformable_detr.ipynb)), and offsets count in parts of it: how far it looks no longer grows with the level. What a coarse level adds then is a wider mixture at each sample.

# %% [markdown]
# ## 5. The operation
#
# Equation 3 of the paper: as in 07, with one more sum.
#
# $$\begin{aligned} &\text{MSDeformAttn}(z, p, \{x^l\}) \\ &\quad = \sum_{m=1}^{M} W_m \Big[\sum_{l=1}^{L}\sum_{k=1}^{P} A_{mlk}\; W'_m\, x^l\big(\phi_l(p) + \Delta p_{mlk}\big)\Big] \end{aligned}$$
#
# where $l$ counts levels, $k$ points, and $\phi_l$ turns a point of the picture into one of level $l$. Everything but the matrices $W_m$ and $W'_m$ is one function, of values, level shapes, locations and weights. As a loop:


# %%
def loop(value, level_shapes, locations, weights):
    """value: (B, N, M, D), locations: (B, N_q, M, L, P, 2) in 0..1, weights: (B, N_q, M, L, P).
    Returns (B, N_q, M·D).
    """
    B, N_q, M, _, P, _ = locations.shape
    result = torch.zeros(B, N_q, M, value.shape[-1], dtype=value.dtype)
    maps = value.split([h * w for h, w in level_shapes], dim=1)  # L tensors (B, H·W, M, D)
    for level, (height, width) in enumerate(level_shapes):
        feature = maps[level].unflatten(1, (height, width))  # (B, H, W, M, D)
        for b in range(B):
            for q in range(N_q):
                for m in range(M):
                    for p in range(P):
                        x, y = locations[b, q, m, level, p].tolist()
                        place = x * width - 0.5, y * height - 0.5  # in cells
                        sample = reference.bilinear_sample(feature[b, :, :, m], *place)
                        result[b, q, m] += weights[b, q, m, level, p] * sample
    return result.flatten(2)


# %% [markdown]
# ### The same, a level at a time
#
# With `grid_sample`, heads in the place of pictures (07), and the levels side by side:


# %%
def with_grid_sample(value, level_shapes, locations, weights):
    B, N_q, M, L, P, _ = locations.shape
    maps = value.split([h * w for h, w in level_shapes], dim=1)  # L tensors (B, H·W, M, D)
    samples = []
    for level, shape in enumerate(level_shapes):
        feature = maps[level].permute(0, 2, 3, 1).reshape(B * M, -1, *shape)  # (B·M, D, H, W)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B·M, N_q, P, 2)
        samples.append(F.grid_sample(feature, grid, align_corners=False))  # (B·M, D, N_q, P)
    stacked = torch.stack(samples, dim=3)  # (B·M, D, N_q, L, P)
    mixed = stacked * weights.transpose(1, 2).reshape(B * M, 1, N_q, L, P)
    return mixed.sum(dim=(3, 4)).reshape(B, -1, N_q).transpose(1, 2)  # (B, N_q, M·D)


# %%
small_levels = [(4, 6), (2, 3)]
value = torch.randn(2, 30, 2, 16)
at = torch.rand(2, 5, 2, 2, 3, 2) * 1.2 - 0.1  # some of them outside
share = torch.rand(2, 5, 2, 2, 3)
by_loop = loop(value, small_levels, at, share)
fast = with_grid_sample(value, small_levels, at, share)
print("grid_sample = loop within 1e-5:", (fast - by_loop).abs().max().item() < 1e-5)
for backend in backends_for(value):
    theirs = multi_scale_deformable_attention(value, small_levels, at, share, backend)
    print(f"package, {backend:>9}, within 1e-5:", (theirs - by_loop).abs().max().item() < 1e-5)

# %% [markdown]
# `reference` is the package's form with `grid_sample`; `cpu` is the one that the package takes on a CPU ([12](12_fast_kernels.ipynb) takes it apart and measures it), and `auto` chooses. And a check from elsewhere, the same function in Hugging Face's code:

# %%
from transformers.models.deformable_detr import modeling_deformable_detr as hugging_face

theirs = hugging_face.MultiScaleDeformableAttention()
sizes, starts = torch.tensor(small_levels), torch.tensor([0, 24])  # starts: where levels begin
# The step is for its CUDA code.
found = theirs(value, sizes, small_levels, starts, at, share, im2col_step=64)
print("Hugging Face within 1e-5:", (found - by_loop).abs().max().item() < 1e-5)

# %% [markdown]
# ## 6. Are the gradients right?
#
# Training needs three of them: with respect to values, locations, and weights. `torch.autograd.gradcheck` nudges every single input by a millionth, in float64, and compares the change of every output with what the backward pass says.

# %%
parts = value[:1, :, :, :3], at[:1, :2], share[:1, :2]  # small, for each number is nudged
double = [tensor.double().requires_grad_() for tensor in parts]
for name in ("reference", "cpu"):
    right = torch.autograd.gradcheck(
        lambda v, a, s: multi_scale_deformable_attention(v, small_levels, a, s, name), double
    )
    print(f"gradients of {name}: {right}")

# %% [markdown]
# > **Claim:** then the gradients are right everywhere.
# >
# > **Measurement:** the same with a sample that lies exactly on a cell's centre.

# %%
line = torch.tensor([1.0, 5, 2], dtype=torch.float64)[None, None, None]  # one channel, 1 × 3 cells
slopes = {}
# The middle cell is at x = 1.
for name, x in (("left of it", 1 - 1e-6), ("on it", 1.0), ("right of it", 1 + 1e-6)):
    place = torch.tensor([x, 0.0], dtype=torch.float64, requires_grad=True)
    grid = (place + 0.5) / torch.tensor([3.0, 1.0]) * 2 - 1
    F.grid_sample(line, grid[None, None, None], align_corners=False).sum().backward()
    slopes[name] = place.grad[0].item()
print({name: round(slope, 3) for name, slope in slopes.items()})

# %% [markdown]
# Where $x$ (or $y$) is a whole number the map has a kink: here the slope to the left is 5 − 1 = 4, that to the right 2 − 5 = −3, and there is no one gradient. Any code must choose; torch takes the right side. In training either side will do: a new encoder begins with *all* points of a token's own level on centres (its reference is a centre, and
# the compass counts whole cells), and leaves them with the first step. But a *test* has to compare gradients at places where neither $x$ nor $y$ is whole.

# %% [markdown]
# ## 7. Which level helps?
#
# > **Claim:** small objects are looked at on fine levels, large ones on coarse levels.
# >
# > **Measurement:** for 60 pictures that the detector never saw, all detections surer than 0.5, in its last layer: how the weight is shared among the three levels, for small and for large boxes.

# %%
from ddetr_lite.datasets.shapes import ShapesConfig, render_picture

shares, sizes = [], []
for index in range(100, 160):
    drawing, _ = render_picture(ShapesConfig(), "val", index)
    pixels = torch.from_numpy(drawing.copy()).permute(2, 0, 1)
    with record_samples(model) as samples, torch.no_grad():
        outputs = model.outputs(model.batch([pixels]))
    _, found = samples["transformer.decoder.layers.1.cross_attn"]  # (B, N_q, M, L, P)
    sure = outputs.logits[-1, 0].sigmoid().amax(dim=-1) > 0.5
    shares.append(found[0, sure].sum(dim=-1).mean(dim=1))  # (n, L)
    areas = outputs.boxes[-1, 0, sure, 2:].prod(dim=-1)  # (n,)
    sizes.append(areas.sqrt())  # the side of a square of that area, in 0..1
shares, sizes = torch.cat(shares), torch.cat(sizes)

# %%
small, large = sizes < 0.2, sizes >= 0.4
bands = {"small (< 0.2)": small, "medium": ~small & ~large, "large": large}
table = torch.stack([shares[chosen].mean(dim=0) for chosen in bands.values()])  # (3, L)
strides = ["stride 8", "stride 16", "stride 32"]
ax = plots.matrix(table, list(bands), strides, "Share of the weight on each level", numbers=True)
plots.show(
    ax,
    alt="A table of the share of the weight on the three levels for small, medium and large "
    "objects.",
)
print("boxes:", {name: int(chosen.sum()) for name, chosen in bands.items()})
finest = table[0, 0] > table[2, 0]
print("small objects give the finest level more than large ones do:", finest.item())
coarse = table[2, 1:] > table[0, 1:]
print("large ones give the two coarse levels more than small ones do:", coarse.all().item())

# %% [markdown]
# As it stands the claim is wrong: objects of *every* size give the finest map by far the most (an even share would be 0.33). Only a tendency is left: the larger the object, the smaller that share. This is one detector, its last layer, and the boxes that were counted above. (Would the finest map be enough, then? Its cells know of the coarse ones, since the encoder has let the levels look at one another. In [10](10_convergence_and_ablations.ipynb), section 4.4, a model with one map of stride 8 is about as good as one with three.)

# %% [markdown]
# ## 8. Explore
#
# The sampling points of each query of our detector, by layer. As a picture for one, and with sliders for all: move them, if you run this notebook.


# %%
with record_samples(model) as samples, torch.no_grad():
    outputs = model.outputs(batch)


def explore(layer=0, query=followed.index, ax=None):
    """Draw where one query looks, and what it takes the thing for."""
    locations, weights = samples[f"transformer.decoder.layers.{layer}.cross_attn"]
    looks = locations[0, query], weights[0, query]
    scores = outputs.logits[layer, 0, query].sigmoid()
    thing = shipped.classes[int(scores.argmax())]
    title = f"query {query}, layer {layer + 1}: {thing} {scores.max():.2f}"
    box = cxcywh_to_xyxy(outputs.boxes[layer, 0, query]) * 96
    return sampling_points(scene.pixels, *looks, box=box, title=title, ax=ax)


# %%
drawn, axes = plots.panels(2, height=3.4)
for layer, ax in enumerate(axes):
    explore(layer, ax=ax)
plots.show(
    drawn,
    alt="The sampling points of the followed query and the box it says, after the first and after "
    "the second layer.",
)

# %% tags=["nbval-ignore-output"]
import ipywidgets

last = outputs.logits.shape[2] - 1
alt = "Where the chosen query looks in the chosen layer, and the box that it says."
_ = ipywidgets.interact(
    lambda layer, query: plots.show(explore(layer - 1, query), alt=alt),
    layer=(1, len(outputs.logits)),
    query=ipywidgets.IntSlider(followed.index, 0, last),
)

# %%
course.equation_map("08")

# %% [markdown]
# ## Summary
#
# - Several maps, from fine to coarse. Their tokens stand in one row; level shapes say where each begins.
# - A level embedding tells levels apart. Reference points are shares of the picture; valid ratios turn them into shares of each padded map.
# - Multi-scale deformable attention: for each head, a weighted sum over levels and points; the weights of a head sum to one over both.
# - The loop, grid_sample, and the package's other form give the same numbers; gradients are right except at the kinks, where $x$ or $y$ is whole.
# - Our detector gives most weight to its finest map, and the more the smaller an object is.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `valid_ratio`
#
# Difficulty ●●○○○ · Importance ●●●○○ · about 10 minutes
#
# The valid ratio of one level, for a batch. Padding is at the right and below.


# %% tags=["exercise"]
def valid_ratio(mask):
    """mask: (B, H, W), True on padding.
    Returns (B, 2): the shares of the map that are picture, (x, y).
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# The first row tells how many columns are picture; the first column, how many rows. $x$ comes first.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("valid_ratio", valid_ratio)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def valid_ratio(mask):
#     """mask: (B, H, W), True on padding.
#     Returns (B, 2): the shares of the map that are picture, (x, y).
#     """
#     x = (~mask[:, 0]).float().mean(dim=1)
#     y = (~mask[:, :, 0]).float().mean(dim=1)
#     return torch.stack((x, y), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `encoder_reference_points`
#
# Difficulty ●●●●○ · Importance ●●●●○ · about 20 minutes
#
# Section 3: each token's point on every level. Loops are fine.


# %% tags=["exercise"]
def encoder_reference_points(level_shapes, ratios):
    """level_shapes: L pairs (H, W); ratios: (B, L, 2), (x, y).
    Returns (B, N, L, 2), tokens level after level.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# The centre of a cell is $((j + \frac{1}{2}) / W, (i + \frac{1}{2}) / H)$. Divide by the ratio of its own level,
# multiply by all.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("encoder_reference_points", encoder_reference_points)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def encoder_reference_points(level_shapes, ratios):
#     """level_shapes: L pairs (H, W); ratios: (B, L, 2), (x, y).
#     Returns (B, N, L, 2), tokens level after level.
#     """
#     points = []
#     for level, (height, width) in enumerate(level_shapes):
#         for i in range(height):
#             for j in range(width):
#                 x, y = (j + 0.5) / width, (i + 0.5) / height  # on its own level's map
#                 centre = torch.tensor([x, y], device=ratios.device)
#                 points.append(centre / ratios[:, level])  # (B, 2): of the picture
#     return torch.stack(points, dim=1)[:, :, None] * ratios[:, None]  # (B, N, L, 2)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `multi_scale_attention`
#
# Difficulty ●●●●○ · Importance ●●●●● · about 25 minutes
#
# The operation of section 5, in any way that you like: this is what the detector will run on. A loop is slow, but enough to see it work.


# %% tags=["exercise"]
def multi_scale_attention(value, level_shapes, locations, weights):
    """value: (B, N, M, D), locations: (B, N_q, M, L, P, 2) in 0..1, weights: (B, N_q, M, L, P).
    Returns (B, N_q, M·D).
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `value.split([h * w for h, w in level_shapes], dim=1)` gives the levels. For each, `grid_sample` wants $(B \cdot M, D, H, W)$ and a grid $(B \cdot M, N_q, P, 2)$ in −1..1.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("multi_scale_attention", multi_scale_attention)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def multi_scale_attention(value, level_shapes, locations, weights):
#     """value: (B, N, M, D), locations: (B, N_q, M, L, P, 2) in 0..1, weights: (B, N_q, M, L, P).
#     Returns (B, N_q, M·D).
#     """
#     B, N_q, M, L, P, _ = locations.shape
#     maps = value.split([h * w for h, w in level_shapes], dim=1)  # L tensors (B, H·W, M, D)
#     result = 0
#     for level, shape in enumerate(level_shapes):
#         feature = maps[level].permute(0, 2, 3, 1).reshape(B * M, -1, *shape)  # (B·M, D, H, W)
#         grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B·M, N_q, P, 2)
#         samples = torch.nn.functional.grid_sample(feature, grid, align_corners=False)
#         share = weights[:, :, :, level].transpose(1, 2).reshape(B * M, 1, N_q, P)
#         result = result + (samples * share).sum(-1)  # (B·M, D, N_q, P), then (B·M, D, N_q)
#     return result.reshape(B, -1, N_q).transpose(1, 2)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.restore()
for function in (valid_ratio, encoder_reference_points, multi_scale_attention):
    course.use(function)

# %% [markdown]
# The detector of 00 now looks through your operation, in its encoder and in its decoder. It must find what it found:

# %%
with torch.no_grad():
    mine = model([scene.pixels])[0]
course.reset()
with torch.no_grad():
    theirs = model([scene.pixels])[0]
difference = (mine["boxes"][:4] - theirs["boxes"][:4]).abs().max().item()
print("the same boxes within a hundredth of a pixel:", difference < 0.01)
print("the same classes:", torch.equal(mine["labels"][:4], theirs["labels"][:4]))

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("B", "N", "N_q", "M", "D", "L", "P", "H", "W", "z", "p", "Δp", "A", "W_m")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("08")

# %% [markdown]
# **Next:** the whole model. [09 · Deformable DETR](09_deformable_detr.ipynb). Back to
# [07 · Deformable attention](07_deformable_attention.ipynb).
