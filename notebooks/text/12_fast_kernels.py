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
# # 12 · Fast kernels: the same numbers in less time
#
# In 08 you wrote deformable attention as a loop, then with `grid_sample`; the detector ran on a third form, and nobody said why. This notebook does. It counts what *must* be done, looks at what the plain form does beyond that,
# and takes the fast form for CPUs apart. Then it writes kernels for a GPU, small ones first. They run here too, without a GPU: in an interpreter, slowly, so that one can watch.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | count the bytes and multiplications of an operation, and say how fast it can be at best; find where a form made of tensor operations spends its time; write deformable attention as a sparse matrix times a table, and its gradient as the transposed product; read and write a small Triton kernel, and say which program computes what; say why sums in another order have other last bits, and which numbers may be halves |
# | **You need first** | [08 · Multi-scale deformable attention](08_multi_scale_deformable_attention.ipynb) |
# | **Time** | 130 minutes to read and run, 65 for the exercises |
# | **Device** | any CPU; nothing is downloaded. The interpreter needs Triton, which comes with PyTorch on Linux; elsewhere its cells say so and go on |

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # Triton asks once, when it is imported: so this comes first

import itertools
import json
import math
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddetr_lite import course, kernels, plots
from ddetr_lite.benchmarks import machine, msda
from ddetr_lite.course.tables import Table
from ddetr_lite.kernels import cpu, multi_scale_deformable_attention, reference

# %%
torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
CPU = torch.device("cpu")
results = course.checkpoint().parents[1] / "results"  # logs of the runs that belong to the course

# %% [markdown]
# ## 1. What has to be done
#
# Before one makes something faster, one counts. However the operation of 08 is written, it has to read all its inputs at least once and write its output once (**the least**). And each sample costs four corners, each corner $D$ multiplications with their additions (a **multiply-add** each).
#
# By hand, for one picture, one head, one map of 3 × 3 cells with $D = 2$ channels, 3 queries with one point each, in float32 (4 bytes a number):
#
# - values 9 · 2 numbers, 72 bytes; locations 3 · 2, 24 bytes; weights 3, 12 bytes; output 3 · 2, 24 bytes: **132 bytes**;
# - 3 samples · 4 corners · 2 channels = **24 multiply-adds**.


# %%
def work(value_shape, locations_shape, size=4):
    """Of a forward pass. size: bytes a number of the values; locations and weights are float32."""
    B, N, M, D = value_shape
    _, N_q, _, L, P, _ = locations_shape
    samples = B * N_q * M * L * P
    moved = {"values": B * N * M * D * size, "locations": 8 * samples, "weights": 4 * samples}
    moved["output"] = B * N_q * M * D * size
    return {"samples": samples, "bytes": moved, "multiply-adds": 4 * samples * D}


small = work((1, 9, 1, 2), (1, 3, 1, 1, 1, 2))
print(sum(small["bytes"].values()), "bytes,", small["multiply-adds"], "multiply-adds")

# %% [markdown]
# And for one layer of the paper's encoder: two pictures of 800 × 1066 pixels, 4 levels, 8 heads of 32 channels, 4 points, every token a query.

# %%
setting = msda.SETTINGS["encoder"]
N = sum(height * width for height, width in setting.levels)
value_shape, locations_shape = (2, N, 8, 32), (2, N, 8, 4, 4, 2)
encoder = work(value_shape, locations_shape)
least = sum(encoder["bytes"].values())
gather = 4 * encoder["samples"] * 32 * 4  # four corners, 32 channels, 4 bytes
print(f"levels {setting.levels}: N = {N:,} tokens")
print(f"{encoder['samples']:,} samples, {4 * encoder['samples']:,} corners")
print(f"{encoder['multiply-adds'] / 1e6:.0f} million multiply-adds")
print(f"at least {least / 1e6:.0f} MB from and to memory; all corners read: {gather / 1e6:,.0f} MB")

# %%
moved = {**encoder["bytes"], "all corners": gather}
megabytes, title = [count / 1e6 for count in moved.values()], "One layer of the encoder"
ax = plots.bars(megabytes, list(moved), title, "MB", "{:,.0f}", highlight=4)
plots.show(
    ax,
    alt="Values, locations, weights and output are 18 to 36 megabytes each; all corners together "
    "more than two thousand.",
)

# %% [markdown]
# Each value is read 64 times on average: 18 million corners for 285,000 rows of values (the $D$ channels of one cell and head, in two pictures). These reads need not come from memory. A processor keeps what it used last in a **cache**, which is small and fast. That is why the bar on the right is not part of the least; but the cache has to deliver it.

# %% [markdown]
# ## 2. The floor
#
# A machine moves so many bytes a second (its *bandwidth*) and does so many multiply-adds a second. Both go on at the same time, so the longer of the two is a bound that no code can beat, if its inputs come from memory and its output goes there. (What the step before has left in a large cache can be had for less.) The model is called **roofline** (Williams and others, 2009):
#
# $$t \;\ge\; \max\left(\frac{\text{bytes}}{\text{bandwidth}},\ \frac{\text{multiply-adds}}{\text{multiply-adds a second}}\right)$$
#
# Which of the two it is depends on the multiply-adds for each byte, the **intensity**:

# %%
layer = N * 256 * 256 / (4 * (2 * N * 256 + 256 * 256))  # tokens in, tokens out, and the matrix
intensity = {
    "add two tensors": 1 / 12,
    "deformable attention": encoder["multiply-adds"] / least,
    "linear layer": layer,
}
for name, ratio in intensity.items():
    print(f"{name:>21}: {ratio:5.2f} multiply-adds a byte")

# %% [markdown]
# What does the machine in front of you allow? Copy 256 MB, and multiply two large matrices. Beside it stands a GPU, **by its data sheet** (NVIDIA's H100 SXM: 3.35 TB/s, 67 TFLOPS in float32, where a multiply-add counts as two). A data sheet is no measurement; it is what a measurement can be compared with.

# %% tags=["nbval-ignore-output"]
TERA = 1e12
square = torch.randn(1024, 1024)
seconds = min(machine.seconds(lambda: square @ square, CPU) for _ in range(5))
roofs = {  # bytes, multiply-adds a second
    "this CPU, measured": (machine.memory_bandwidth(CPU), 1024**3 / seconds),
    "H100, data sheet": (3.35 * TERA, 67 * TERA / 2),
}
for name, (bandwidth, arithmetic) in roofs.items():
    rates = f"{bandwidth / 1e9:,.0f} GB/s, {arithmetic / 1e9:,.0f} billion multiply-adds/s"
    moving, computing = least / bandwidth * 1e3, encoder["multiply-adds"] / arithmetic * 1e3
    print(f"{name}: {rates}; memory {moving:.3f} ms, arithmetic {computing:.3f} ms")

# %% tags=["nbval-ignore-output"]
x = [2.0**k for k in range(-4, 7)]
lines = {name: [min(a, b * i) / 1e9 for i in x] for name, (b, a) in roofs.items()}
ax = plots.curves(x, lines, "", "multiply-adds a byte", "billion multiply-adds a second", "xy")
bold = {"fontsize": 10, "fontweight": "bold", "color": plots.INK}
ax.set_title("What can be reached", loc="left", pad=18, **bold)
above = {"ha": "center", "fontsize": 8, "transform": ax.get_xaxis_transform()}
for name, ratio in intensity.items():
    ax.axvline(ratio, color=plots.INK, linestyle=":", linewidth=1)
    ax.text(ratio, 1.02, name, color=plots.INK, **above)
plots.show(
    ax,
    alt="Two roofs on logarithmic axes, this CPU far below the GPU: each rises with the "
    "multiply-adds a byte, then is flat. Deformable attention lies under the slope of the GPU's.",
)

# %% [markdown]
# Left of the bend memory decides, right of it arithmetic. On the data sheet's GPU the bend is at 10 multiply-adds a byte, so there deformable attention is bound by bytes: save bytes, and it can become faster. But not only bytes of memory. The corners come out of the caches that sit in each of its 132 processors, 128 bytes a clock cycle each (its clock ticks more than a thousand million times a second):

# %%
bandwidth, arithmetic = roofs["H100, data sheet"]
caches = 132 * 128 * 1.98e9  # processors · bytes a cycle · cycles a second
print(f"the bend: {arithmetic / bandwidth:.0f} multiply-adds a byte")
print(f"memory     {least / bandwidth * 1e6:3.0f} µs")
print(f"arithmetic {encoder['multiply-adds'] / arithmetic * 1e6:3.0f} µs")
print(f"caches     {gather / caches * 1e6:3.0f} µs")

# %% [markdown]
# So for code that fetches each corner by itself, the *gather* is the floor of the forward pass on that chip. (All of this is calculated. Section 11 says what has been measured.)

# %% [markdown]
# ## 3. Where the plain form spends its time
#
# > **Claim:** deformable attention is slow because it multiplies so much.
# >
# > **Measurement:** torch can show us every operation that it runs, with its tensors. We add up the bytes that each takes and gives, for the plain form of 08, a `grid_sample` for each level. Places are "model-like": each query looks around its own place, at the compass of 07 with some noise; "uniform" ones are anywhere. (A *view* is the same memory seen in another shape, and moves nothing.)


# %%
class Traffic(TorchDispatchMode):
    """Notes for every operation of torch the bytes of the tensors that it takes and gives."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        result = operation(*arguments, **(named or {}))
        if not operation.is_view:
            everything = torch.utils._pytree.tree_leaves((arguments, result))
            tensors = [x for x in everything if torch.is_tensor(x)]
            name = operation.overloadpacket.__name__
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
        return result


# %%
shape = msda.Setting(msda.SMALL, batch=1)  # levels of 32 × 32 to 4 × 4, 8 heads of 32 channels
inputs = msda.make_input(shape, "model-like", CPU, torch.float32, seed=0)
value, locations, weights = inputs
levels = list(shape.levels)
needed = work(value.shape, locations.shape)
small_least = sum(needed["bytes"].values())
with Traffic() as plain, torch.no_grad():
    reference.grid_sample(value, levels, locations, weights)
for name, count in plain.bytes.most_common(4):
    print(f"{name:>16}: {count / 1e6:5.1f} MB")
total = plain.bytes.total()
ratio = total / small_least
print(f"in all {total / 1e6:.0f} MB, {ratio:.0f} times the least of {small_least / 1e6:.1f} MB")
print(f"multiply-adds for each byte moved: {needed['multiply-adds'] / total:.2f}")

# %% [markdown]
# The claim is wrong: there are about seven bytes to move for each multiply-add, far left of every bend of section 2. Where do the bytes come from? The form makes a tensor of **all samples**: $D$ numbers for each of $B \cdot N_q \cdot M \cdot L \cdot P$. It is written by `grid_sample`, read and written by `stack`, read and written by the multiplication with the weights, and read once more by the sum. *Six passes* over the largest tensor of all, which is not even the result. For the encoder's layer:

# %%
samples_tensor = encoder["samples"] * 32 * 4
passes = 6 * samples_tensor
print(f"the samples: {samples_tensor / 1e6:.0f} MB", end="; ")
print(f"six passes: {passes / 1e6:,.0f} MB, {passes / least:.0f} times the least")

# %% [markdown]
# ### What is kept for the backward pass
#
# Training has to hold some of these tensors until the backward pass. `saved_tensors_hooks` shows us each:


# %%
def kept(form, level_shapes, *inputs):
    """Bytes that autograd keeps until the backward pass, beyond the inputs themselves."""
    leaves, storages = [x.clone().requires_grad_() for x in inputs], {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form(leaves[0], level_shapes, *leaves[1:])
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


kept_plain = kept(reference.grid_sample, levels, *inputs)
own = sum(x.nbytes for x in inputs)
print(f"grid_sample form: {kept_plain / 1e6:.1f} MB beside inputs of {own / 1e6:.1f} MB")

# %% [markdown]
# ### Lines, not numbers
#
# Do the bytes explain the time? The course keeps a log of a careful run on a CPU (section 6 shows all of it); it has this very shape, for two pictures, and how fast that machine copies memory:

# %%
log = json.loads((results / "msda-cpu" / "float32.json").read_text(encoding="utf-8"))
wanted = ("small-256", "model-like")
(entry,) = [row for row in log["rows"] if (row["setting"], row["locations"]) == wanted]
took, speed = entry["peers"]["grid_sample"]["forward"], log["machine"]["copy bandwidth, GB/s"] * 1e9
moving = 2 * total / speed * 1e3
print(f"grid_sample, two pictures: {moving:.1f} ms to move its bytes, {took:.1f} ms taken")

# %% [markdown]
# The bytes do not explain the time. One reason can be counted: memory is not read byte by byte, but in **lines** of 64 bytes, and one number costs its whole line. `grid_sample` wants maps as $(B \cdot M, D, H, W)$, a *plane* for each channel: the $D$ channels of one cell lie far apart, each in a line of its own. Our values come as $(B, N, M, D)$: a *row* for each cell and head, its channels side by side. Which lines does one sample touch, on a map of 16 × 16 cells with 32 channels, one head?

# %%
cells = [(6, 4), (6, 5), (7, 4), (7, 5)]  # row and column of the four corners
numbers = torch.arange(16 * 16 * 32)  # where each number lies
planes, table = numbers.view(32, 16, 16), numbers.view(16, 16, 32)
touched = {}
for name, places in (
    ("planes", [planes[:, r, c] for r, c in cells]),
    ("rows", [table[r, c] for r, c in cells]),
):
    touched[name] = torch.zeros(16 * 32, dtype=torch.bool)
    touched[name][torch.cat(places) * 4 // 64] = True  # 4 bytes a number, 64 a line
    print(f"{name}: {touched[name].sum()} of {len(touched[name])} lines, for 128 numbers")

# %%
drawn, axes = plots.panels(1, 2, height=2.2)
for ax, (name, lines) in zip(axes, touched.items()):
    plots.matrix(lines[None], numbers=False, title=f"{name}: {lines.sum()} lines", ax=ax)
    ax.set_aspect("auto")
axes[1].set_xlabel("512 lines of memory, one after the other")
plots.show(
    drawn,
    alt="Memory as a strip of 512 lines, those that a sample touches in blue: with planes 32 "
    "stripes of two lines, all over the strip; with rows two stripes of four.",
)

# %% [markdown]
# Eight times as many lines for the same numbers. So the plan is: **rows instead of planes, and no tensor of samples.**

# %% [markdown]
# ## 4. A weighted sum of rows
#
# A query's result is a sum: for each of its samples four rows of values, each times a share (its bilinear weight times the weight of the sample). That is a product of matrices,
#
# $$\text{output} = S\, V,$$
#
# where $V$ holds the values, a row for each cell ($R$ rows; 9 below), and row $q$ of $S$ holds the shares of query $q$: few numbers, and zeros else. A matrix of that kind is **sparse**.
#
# By hand, on a map of 3 × 3 cells. Its first channel is 1, 2, ..., 9, the second is 8 in the middle, and 0 else. At $x = \frac{1}{2}$, $y = \frac{1}{2}$ the four upper left cells count a quarter each: (1 + 2 + 4 + 5)/4 = 3, and 8/4 = 2.


# %%
def corners(x, y, width):
    """The rows of the four cells around a place on the map, and their bilinear shares."""
    column, row = math.floor(x), math.floor(y)
    fx, fy = x - column, y - row
    first = row * width + column
    rows = [first, first + 1, first + width, first + width + 1]
    return rows, [(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]


V = torch.zeros(9, 2)  # (R, D)
V[:, 0], V[4, 1] = torch.arange(1, 10), 8
places = [(0.5, 0.5), (1.25, 1.0), (1.5, 1.75)]  # (x, y) of three queries, in cells
found = [corners(x, y, 3) for x, y in places]
rows, shares = (torch.tensor(part) for part in zip(*found))  # (3, 4) each
S = torch.zeros(3, 9).scatter_add(1, rows, shares)  # (N_q, R)
print(S @ V)

# %%
drawn, axes = plots.panels(3, height=4.2, width_ratios=[9, 2, 2])
names = [f"query {q}" for q in range(3)]
cells = [f"cell {r}" for r in range(9)]
plots.matrix(S, names, [str(r) for r in range(9)], "S: shares", "cells", numbers=True, ax=axes[0])
plots.matrix(V, cells, ["0", "1"], "V: values", "channels", numbers=True, ax=axes[1])
plots.matrix(S @ V, names, ["0", "1"], "S V: output", "channels", ax=axes[2])
plots.show(
    drawn,
    alt="Three matrices: S with a row for each query and at most four shares in it; V with a row "
    "for each cell; their product, the output.",
)

# %% [markdown]
# Nobody stores the zeros. torch has an operation that does just this; it was made for words: the vectors of a *bag* of words are looked up in a table (as in 01) and summed. `embedding_bag` takes for each bag its rows and their weights, and sums in *registers*, the few places inside a processor on which it computes, faster than any cache: a row is read where it lies, the result is written once, and no tensor of samples exists.

# %%
output = F.embedding_bag(rows, V, per_sample_weights=shares, mode="sum")  # (N_q, D)
print("embedding_bag is S V:", torch.allclose(output, S @ V))

# %% [markdown]
# ### A frame of zeros instead of masks
#
# Samples may lie outside of the map, where all is zero. One can ask for each corner whether it is inside, and mask it. Or one stores the map with a **frame** of one cell of zeros; then a corner outside is a row like any other. What is farther away is first moved to the frame ($x$ to $-1$ or to $W$, $y$ likewise), so that its share of any cell inside is 0. Each line of the framed map is $W + 2$ cells long, and each cell is a row of the table: cell (0, 0) of the map is row $W + 3$.

# %%
x, y = -0.25, 1.75  # left of the map's first column
framed = F.pad(V[:, 0].view(3, 3), (1, 1, 1, 1))  # (H + 2, W + 2)
rows_outside, shares_outside = corners(x + 1, y + 1, 5)  # the frame shifts all by one cell
inside_table = framed.flatten()[rows_outside]
print("rows", rows_outside, "hold", inside_table.tolist(), "with shares", shares_outside)
sample = (inside_table * torch.tensor(shares_outside)).sum()
theirs = reference.bilinear_sample(V.view(3, 3, 2), x, y)[0]
print("sum:", sample.item(), "· bilinear_sample of 07:", theirs.item())

# %%
ax = plots.matrix(framed, title="the first channel in its frame", numbers=False)
for row in range(25):
    i, j = divmod(row, 5)
    style = {"ha": "center", "color": "white" if framed[i, j] > 5 else plots.INK}
    ax.text(j, i, f"{framed[i, j]:.0f}", va="bottom", **style)
    ax.text(j, i, f"row {row}", va="top", fontsize=6, **style)
ax.plot(x + 1, y + 1, "o", color=plots.COLOURS[1], markersize=9)
s = 0.46  # half a square, nearly
for row in rows_outside:
    i, j = divmod(row, 5)
    across, down = [j - s, j + s, j + s, j - s, j - s], [i - s, i - s, i + s, i + s, i - s]
    ax.plot(across, down, color=plots.COLOURS[1])
plots.show(
    ax,
    alt="A map of 3 × 3 cells in a frame of zeros, each cell with the number of its row; a sample "
    "at the left edge with its four corners, two of them in the frame.",
)

# %% [markdown]
# ### All levels, heads and pictures in one table
#
# The framed maps of all levels stand one behind the other, as in 08, then some rows of zeros, for a sample on the last corner of the frame. Row $r$ of head $m$ is row $r \cdot M + m$ of the flat table $(R \cdot M, D)$, and pictures follow each other. What does the frame cost, and how large do row numbers get?

# %%
R = cpu.table_rows(setting.levels)
print(f"{R:,} rows instead of {N:,}: {R / N - 1:.0%} more")
print(f"largest row number: {2 * R * 8:,}; an int32 holds {2**31 - 1:,}")
size = 4 * encoder["samples"] * 8  # bytes
print(f"row numbers of a layer: {size / 1e6:.0f} MB as int64, half of it as int32")

# %% [markdown]
# Torch counts in int64 unless told otherwise, which would be more bytes than all inputs together; `embedding_bag` takes int32 as well. With the package's functions that make the table and find the rows, the whole operation is:


# %%
def with_bags(value, level_shapes, locations, weights):
    """The operation of 08. Shapes as there; returns (B, N_q, M·D)."""
    M, D = value.shape[2:]
    table = cpu.pad_levels(value, level_shapes)  # (B, R, M, D)
    row, fx, fy, below, _ = cpu.find_samples(locations, level_shapes)  # (B, N_q, M, L·P)
    rows = torch.stack((row, row + M, row + below, row + below + M), dim=3)  # (B, N_q, M, 4, L·P)
    w = weights.flatten(3)  # (B, N_q, M, L·P)
    left, right = w * (1 - fx), w * fx
    shares = torch.stack((left * (1 - fy), right * (1 - fy), left * fy, right * fy), dim=3)
    bags, each = rows.flatten(0, 2).flatten(1), shares.flatten(0, 2).flatten(1)  # (B·N_q·M, 4·L·P)
    output = F.embedding_bag(bags, table.view(-1, D), per_sample_weights=each, mode="sum")
    return output.view(*locations.shape[:2], M * D)


theirs = reference.grid_sample(value, levels, locations, weights)
ours = with_bags(value, levels, locations, weights)
print("grid_sample within 1e-5:", (ours - theirs).abs().max().item() < 1e-5)
print("row numbers are", cpu.find_samples(locations, levels).row.dtype)

# %% [markdown]
# ## 5. Backward: the transposed product
#
# From $\text{output} = S\, V$ follows the gradient of the values, as for every product of matrices:
#
# $$\frac{\partial\,\text{loss}}{\partial V} = S^\top\, \frac{\partial\,\text{loss}}{\partial\,\text{output}}$$
#
# The gradient of the output, $(N_q, D)$, we call $G$. Read by rows: forward, a query *collects* from its cells; backward, its gradient is *handed back* to the same cells with the same shares. A cell that several queries looked at gets the sum.

# %%
G = torch.tensor([[1.0, 0], [0, 1], [1, 1]])  # (N_q, D): the gradient of the output
leaf = V.clone().requires_grad_()
F.embedding_bag(rows, leaf, per_sample_weights=shares, mode="sum").backward(G)
print("autograd gives Sᵀ G:", torch.allclose(leaf.grad, S.T @ G))

# %%
drawn, axes = plots.panels(3, height=4.2, width_ratios=[3.2, 1, 2.2])
plots.matrix(S.T, cells, ["0", "1", "2"], "Sᵀ", "queries", numbers=True, ax=axes[0])
plots.matrix(G, names, ["0", "1"], "G", "channels", ax=axes[1])
plots.matrix(S.T @ G, cells, ["0", "1"], "gradient of V", "channels", numbers=True, ax=axes[2])
plots.show(
    drawn,
    alt="The transposed matrix S, a column for each query; the gradient of the output; their "
    "product, a row for each cell.",
)

# %% [markdown]
# Without the zeros: each bag gives its gradient, times the share, to each of its rows, and these are *added*. Here lies a trap:

# %%
given = (shares[..., None] * G[:, None]).flatten(0, 1)  # (N_q·4, D): what each corner gets
right = torch.zeros(9, 2).index_add(0, rows.flatten(), given)
wrong = torch.zeros(9, 2)
wrong[rows.flatten()] += given
print("index_add is Sᵀ G:", torch.allclose(right, S.T @ G))
print("`wrong[rows] += given` is Sᵀ G:", torch.allclose(wrong, S.T @ G))

# %% [markdown]
# `wrong[rows] += given` reads all rows, adds, and writes them back: of several sums for one row only one stays. We shall meet that again on the GPU.
#
# ### Locations and weights need four numbers
#
# The gradient of a sample's weight is a dot product over the channels: its query's row of $G$ times the sampled row. The sampled row is a mixture of four corners, so the dot product is the same mixture of four dot products, one with each corner's row. And the slope of 07, from four cells $a$, $b$, $c$, $d$, becomes the slope from these four numbers. So the backward pass needs **four dot products for each sample**, and again no tensor of samples:

# %%
place = torch.tensor([1.25, 1.5], requires_grad=True)  # (x, y) in cells, on the map of above
weight = torch.tensor(0.5, requires_grad=True)
grid = ((place + 0.5) / 3 * 2 - 1)[None, None, None]
sampled = F.grid_sample(V.T.reshape(1, 2, 3, 3), grid, align_corners=False).flatten()  # (D,)
(weight * sampled * G[2]).sum().backward()

four, (fx, fy) = corners(1.25, 1.5, 3)[0], (0.25, 0.5)
a, b, c, d = (V[four] @ G[2]).tolist()  # one dot product for each corner
mixed = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * d)
slopes = 0.5 * ((1 - fy) * (b - a) + fy * (d - c)), 0.5 * ((1 - fx) * (c - a) + fx * (d - b))
print("weight:", round(weight.grad.item(), 3), "· from four dot products", mixed)
by_autograd = [round(slope, 3) for slope in place.grad.tolist()]
print("place: ", by_autograd, "· from four dot products", list(slopes))

# %% [markdown]
# (That is the slope by cells, times the sample's weight of ½; for a location in 0..1 it is $W$ and $H$ times as large.) The package's `cpu` form is this: one `embedding_bag` forward; backward four dot products for each sample, and a transposed sparse product, in which SciPy sums each picture on one thread, row after row, so that the bits are the same every time. What does it move and keep?

# %%
with Traffic() as ours, torch.no_grad():
    cpu.embedding_bag(value, levels, locations, weights)
kept_ours = kept(cpu.embedding_bag, levels, *inputs)
for name, moved, held in (
    ("grid_sample", plain.bytes.total(), kept_plain),
    ("embedding_bag", ours.bytes.total(), kept_ours),
):
    moves = f"moves {moved / 1e6:3.0f} MB, {moved / small_least:.0f} times the least"
    print(f"{name:>13}: {moves}; keeps {held / 1e6:4.1f} MB")

# %% [markdown]
# Half the bytes, and far fewer lines for them. It is still much more than the least: places, rows and shares are made by dozens of operations, and each of them writes a tensor. A kernel of its own (section 7) keeps all these in registers.

# %% [markdown]
# ## 6. Measured on a CPU
#
# > **Claim:** the speed-up of a form in the forward pass is also its speed-up in training.
# >
# > **Measurement:** three forms of the same operation, forward alone, and forward with backward, in turns, on this machine: `grid_sample`, our `with_bags` (its backward comes from autograd), and the package's (its backward is written by hand).

# %% tags=["nbval-ignore-output"]
forms = {
    "ddetr_lite": cpu.embedding_bag,
    "grid_sample": reference.grid_sample,
    "with_bags": with_bags,
}
times = msda.measure(forms, shape, inputs, repeats=5)  # all have to give the same result first
print("milliseconds, and how many times as fast as grid_sample:")
for name in ("grid_sample", "with_bags", "ddetr_lite"):
    for what, label in (("forward", "forward"), ("both", "forward and backward")):
        took = times[name][what]
        print(f"{name:>12}, {label:<20} {took:7.1f} ms  {times['grid_sample'][what] / took:5.2f} ×")

# %% [markdown]
# Such numbers hold for one machine, one shape and one moment: whoever measures while other work is going on measures that work. So here is the log of section 3 (two cores, nothing else running, fifteen repetitions, all in turns). `encoder-quarter` has a quarter of the paper's cells; `decoder` has 300 queries on those maps; `small` has the levels of section 3, with 64, 128 and 256 channels in 8 heads.

# %%
on = log["machine"]
print(f"{log['date']} · {on['chip']} · {on['threads']} threads · torch {on['torch']}")
print(f"{'how many times as fast as grid_sample':44} forward   both")
gains = {}
for row in log["rows"]:
    plain_times, mine = row["peers"]["grid_sample"], row["peers"]["ddetr_lite"]
    gain = {what: plain_times[what] / mine[what] for what in ("forward", "both")}
    name = f"{row['setting']}, {row['locations']}"
    print(f"{name:44} {gain['forward']:7.2f} {gain['both']:6.2f}")
    if row["locations"] == "model-like":
        gains[row["setting"]] = {"forward": gain["forward"], "forward and backward": gain["both"]}

# %%
ax = plots.grouped_bars(gains, "Times as fast as grid_sample, model-like locations", line=1.0)
plots.show(
    ax,
    alt="For five shapes how many times as fast as grid_sample the package is, forward and with "
    "backward: from hardly more than once to almost nine times.",
)

# %% [markdown]
# The claim is wrong, in both directions: at the shape of the encoder (a quarter of the paper's area) the gain of 8.73 forward becomes 5.78 with backward; for 8 channels a head (`small-64`) 1.23 becomes 1.60. And the gain forward grows with the channels of a head: 1.23 for 8, 3.13 for 16, 8.54 for 32, more than the lines of section 3 alone would give; perhaps the tensor of samples no longer fits into a cache. That was not tested. At the `decoder` it is only 1.19: the package copies all cells into a table with frames (section 4), however few queries look at them. The log has two other forms: Hugging Face's, and one that gathers rows as ours does, compiled by torch:

# %%
lines = []
for row in log["rows"]:
    if row["locations"] == "model-like":
        times = (f"{took['forward']:.1f} / {took['both']:.1f}" for took in row["peers"].values())
        lines.append((row["setting"], *times))
        if row["setting"] == "encoder-quarter":
            ratio = row["peers"]["ddetr_lite"]["forward"] / row["floor ms"]["memory forward"]
            print("encoder-quarter, forward: the package takes", end=" ")
            print(f"{ratio:.0f} times the floor of the memory")
Table(("ms, forward / with backward", *log["rows"][0]["peers"]), lines)

# %% [markdown]
# With narrow heads (`small-64`, `small-128`) and at the `decoder` the compiled form is the fastest forward; at `encoder-quarter` it is far behind, so rows alone do not explain it, and we have not looked further. Its backward, which has to add gradients to rows wherever they fall, is slower than the package's everywhere. (Left to itself, `backend="auto"`, the package takes its own form on a CPU from 8 channels a head on, else `grid_sample`.)
#
# And 35 times the floor of memory is a lot. Memory is not the only bound of a CPU, but the form is also dozens of operations, and not one (section 5). Which brings us to kernels.

# %% [markdown]
# ## 7. A kernel of our own
#
# A large GPU has a hundred processors and more, and each works on many things at once. A **kernel** is code for one small piece of the work; it runs as thousands of **programs**, one for each piece, in any order. In Triton a kernel is a Python function. A program asks for its number, works out which *block* of the data is its own, loads it, computes, and stores. There is no `for` loop over the programs in the code: the machine does that.
#
# The first line of this notebook asked for Triton's **interpreter**: it runs programs one after the other with NumPy, and lets them print.

# %%
TRITON = find_spec("triton") is not None
if TRITON:
    import triton
    import triton.language as tl
else:  # macOS and Windows: kernels can be read here, but not run
    triton, tl = SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=int)


def launch(kernel, programs, *arguments, **constants):
    """Run so many programs of a kernel; without Triton, say so. Returns whether it has run."""
    if TRITON:
        kernel[(programs,)](*arguments, **constants)
    else:
        print("There is no Triton on this system: the kernel is not run.")
    return TRITON


# %% [markdown]
# Two vectors are added, four numbers a program. Tensors arrive as *pointers*: `a + place` are the addresses of the block's numbers. A block's places are called *lanes*. The length 10 is no multiple of 4, so the last program has lanes without a number: the **mask** says which exist. Block sizes must be known when the kernel is translated (`tl.constexpr`), and be powers of two; so heads of 24 channels take 32 lanes, and 8 of them are without a channel (`in_second` in section 8).


# %%
@triton.jit
def add_kernel(a, b, result, length, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    place = program * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    exists = place < length
    x = tl.load(a + place, mask=exists, other=0.0)
    y = tl.load(b + place, mask=exists, other=0.0)
    print("program", program, "places", place, "exist", exists)  # in the interpreter only
    tl.store(result + place, x + y, mask=exists)


a, b, result = torch.arange(10.0), 100 * torch.ones(10), torch.zeros(10)
if launch(add_kernel, 3, a, b, result, 10, BLOCK=4):
    print("a + b:", torch.equal(result, a + b))

# %% [markdown]
# ### The weighted sum of rows
#
# Now the operation of section 4. A program takes BLOCK queries, and holds their sums, $(\text{BLOCK}, D)$, in registers. For each row of a bag (here four) it loads a row number and a share for each query, then the rows themselves: a block of addresses, $(\text{BLOCK}, D)$, in one load. `[:, None]` and `[None, :]` spread as in torch.


# %%
@triton.jit
def bag_kernel(V, rows, shares, out, N_q, EACH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    channel, exists = tl.arange(0, D), query < N_q
    total = tl.zeros((BLOCK, D), tl.float32)
    for k in range(EACH):
        row = tl.load(rows + query * EACH + k, mask=exists, other=0)  # (BLOCK,)
        share = tl.load(shares + query * EACH + k, mask=exists, other=0.0)
        cells = tl.load(V + row[:, None] * D + channel[None, :], mask=exists[:, None], other=0.0)
        total += share[:, None] * cells
        print("program", tl.program_id(0), "corner", k, "rows", row, "shares", share)
    tl.store(out + query[:, None] * D + channel[None, :], total, mask=exists[:, None])


collected = torch.zeros(3, 2)
if launch(bag_kernel, 2, V, rows, shares, collected, 3, EACH=4, D=2, BLOCK=2):
    print("S V:", torch.allclose(collected, S @ V))

# %% [markdown]
# Follow program 0: its queries are 0 and 1; the four corners of query 0 are rows 0, 1, 3, 4, a quarter each. Program 1 has one query and one lane that does not exist.
#
# ### Everything in one pass
#
# This kernel still *loads* row numbers and shares, which something has to have written. But they follow from locations and weights by a few multiplications, so the kernel can make them itself, in registers. Then memory sees nothing but the inputs and the output. Here for one head and one level. A bilinear weight is a product of two factors: $1 - \lvert y - r \rvert$ for row $r$ of the map, 1 at its centre and 0 a cell away, and $1 - \lvert x - c \rvert$ for column $c$.


# %%
@triton.jit
def fused_kernel(V, at, w, out, N_q, H, W, P: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    query, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    total = tl.zeros((BLOCK, D), tl.float32)
    for p in range(P):
        sample, exists = query * P + p, query < N_q
        x = tl.load(at + 2 * sample, mask=exists, other=0.0) * W - 0.5
        y = tl.load(at + 2 * sample + 1, mask=exists, other=0.0) * H - 0.5
        weight = tl.load(w + sample, mask=exists, other=0.0)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                r, c = tl.floor(y).to(tl.int32) + down, tl.floor(x).to(tl.int32) + right
                inside = exists & (r >= 0) & (r < H) & (c >= 0) & (c < W)
                share = weight * (1 - tl.abs(y - r)) * (1 - tl.abs(x - c))  # bilinear
                place = (r * W + c)[:, None] * D + channel[None, :]
                total += share[:, None] * tl.load(V + place, mask=inside[:, None], other=0.0)
    tl.store(out + query[:, None] * D + channel[None, :], total, mask=(query < N_q)[:, None])


# %%
one_value = torch.randn(1, 6 * 8, 1, 16)
one_at = 1.2 * torch.rand(1, 10, 1, 1, 4, 2) - 0.1  # some outside
one_share, fused = torch.rand(1, 10, 1, 1, 4), torch.zeros(1, 10, 16)
if launch(fused_kernel, 3, one_value, one_at, one_share, fused, 10, 6, 8, P=4, D=16, BLOCK=4):
    by_loop = reference.loop(one_value, [(6, 8)], one_at, one_share)
    print("fused = loop within 1e-5:", (fused - by_loop).abs().max().item() < 1e-5)

# %% [markdown]
# Here masks have come back, and the frame is gone: a GPU's loads take a mask along anyway, while a framed copy of the values would be one more pass over them. `static_range` is written out when the kernel is translated: four corners, four times the lines, and no loop left.

# %% [markdown]
# ## 8. Who computes what
#
# The package's kernel adds levels, heads and pictures. Its programs are numbered in one row: first the blocks of queries, then the heads, then the pictures. For 10 queries, 2 heads and blocks of 4:

# %%
BLOCK, queries, heads = 4, 10, 2
blocks = math.ceil(queries / BLOCK)  # 3
q, m = torch.arange(blocks * BLOCK), torch.arange(heads)[:, None]
# (M, N_q): the number of the program; also for the two lanes that do not exist
who = q // BLOCK + blocks * m


@triton.jit
def who_kernel(result, queries, heads, BLOCK: tl.constexpr):
    blocks = tl.cdiv(queries, BLOCK)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks % heads
    query = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(result + head * queries + query, tl.program_id(0), mask=query < queries)


seen = torch.full((heads, queries), -1)
if launch(who_kernel, blocks * heads, seen, queries, heads, BLOCK=BLOCK):
    as_expected = torch.equal(seen, who[:, :queries])
    print("each query of each head is computed by the program expected:", as_expected)

# %%
shades, title = (who % 3 + 1.0) * (q < queries), "The number of the program"
names, columns = ["head 0", "head 1"], [str(i) for i in q.tolist()]
ax = plots.matrix(shades, names, columns, title, "query", numbers=False, limit=6)
for i, j in itertools.product(range(heads), range(blocks * BLOCK)):
    text, size = (str(who[i, j].item()), 10) if j < queries else ("masked", 6)
    ax.text(j, i, text, ha="center", va="center", fontsize=size, color=plots.INK)
plots.show(
    ax,
    alt="Two rows of queries, one for each head, in blocks of four: programs 0, 1, 2 for head 0 "
    "and 3, 4, 5 for head 1; the last two lanes of a row are masked.",
)

# %% [markdown]
# Why blocks of *neighbours*? In the encoder the queries of a block are neighbouring cells, and look at nearly the same places. Rows that one query has loaded, the next finds in the cache. How many different rows do 8 neighbouring queries need, and how many do 8 queries from anywhere? (The encoder's shape, one head: 8 queries · 16 samples · 4 corners are 512 rows.)

# %%
# 8 heads of one channel: only places matter here
one_picture = msda.Setting(setting.levels, dim=8, batch=1)
_, at, _ = msda.make_input(one_picture, "model-like", CPU, torch.float32, seed=0)
row, _, _, below, _ = cpu.find_samples(at[:, :, :1], setting.levels)  # at: (1, N, M, L, P, 2)
four_rows = torch.stack((row, row + 1, row + below, row + below + 1), dim=-1)
rows_of = four_rows[0, :, 0]  # (N, L·P, 4), one head
firsts = range(0, N - 8, 100)
near = [rows_of[i : i + 8].unique().numel() / 512 for i in firsts]
far = [rows_of[torch.randint(N, (8,))].unique().numel() / 512 for _ in firsts]
near, far = sum(near) / len(near), sum(far) / len(far)
print(f"different rows: neighbours {near:.0%}, from anywhere {far:.0%}")

# %% [markdown]
# ### The package's kernel
#
# Its heart, as it stands in the package: `fused_kernel` in a loop over the levels, with $M$ heads in each row, and products in float32 whatever the values are (section 10). `here` says which queries exist, `entry` counts queries and heads in one row, `_sample` loads a place and its weight, `_cell` gives the cell before it and the fraction that is left, `start` counts the cells of the levels before. A row is read in two pieces, each WIDTH wide, half a head; `in_first` and `in_second` say which of their channels exist. (`_frame`, `reference`, `scale`, `line`, `largest`, `factor` and `KIND` are for offsets and scores, below.) $M$ and $D$ are constants of the translation: only then does the compiler know that a row of 24 channels, too, begins at a multiple of 16 bytes, and fetches it 16 bytes at a time.

# %%
source = Path(kernels.__file__).with_name("triton_kernels.py").read_text(encoding="utf-8")
forward = source[source.index("def forward_kernel") : source.index("def backward_kernel")]
print(forward[forward.index("    for level in") : forward.index("    own =")])

# %%
tiny = [(4, 6), (2, 3)]
tiny_value, tiny_at = torch.randn(2, 30, 2, 16), 1.2 * torch.rand(2, 37, 2, 2, 3, 2) - 0.1
tiny_share = torch.rand(2, 37, 2, 2, 3)
tiny_input = tiny_value, tiny, tiny_at, tiny_share
by_loop = reference.loop(*tiny_input)
if TRITON:
    theirs = multi_scale_deformable_attention(*tiny_input, backend="triton")
    print("package's kernel = loop within 1e-5:", (theirs - by_loop).abs().max().item() < 1e-5)
else:
    print("There is no Triton on this system: the kernel is not run.")

# %% [markdown]
# Its programs take tiles of 256 numbers, one *warp* each: for the encoder's layer, in float32, 8 queries of 32 channels. (The 32 threads of a warp work in step. So where backward sums over channels, it waits for no other warp.) Each thread has eight of these numbers, four of either piece: all of one query. Read in one piece, they would be four of two queries, and each thread would work out two places instead of one. For backward it keeps nothing but its inputs; places and shares are made anew, arithmetic instead of bytes. And a layer may hand over offsets and scores instead of locations and weights (`fused_deformable_attention`); then these never exist in memory at all.

# %%
blocks = math.ceil(N / 8)
print(f"{blocks * 8 * 2:,} programs: {blocks:,} blocks of 8 queries × 8 heads × 2 pictures")
if TRITON:
    given = tiny_value, tiny_at, tiny_share
    held = kept(lambda *x: multi_scale_deformable_attention(*x, "triton"), tiny, *given)
    print(f"kept for backward beyond the inputs: {held} bytes")

# %% [markdown]
# ## 9. Sums in any order
#
# Backward, programs hand gradients back to cells, and many programs have the same cell. Read, add, write: what happens if others do so at the same time? In the trap of section 5 one sum stayed. Here each of 3 programs has 8 lanes that add 1, four to cell 0 and four to cell 1; once by load and store, once by **atomic** addition, which nobody can interrupt:


# %%
@triton.jit
def count_kernel(cells, ATOMIC: tl.constexpr):
    cell = tl.arange(0, 8) // 4  # lanes 0 to 3: cell 0; 4 to 7: cell 1
    if ATOMIC:
        tl.atomic_add(cells + cell, 1.0)
    else:
        tl.store(cells + cell, tl.load(cells + cell) + 1.0)


for atomic in (False, True):
    cells = torch.zeros(2)
    if launch(count_kernel, 3, cells, ATOMIC=atomic):
        print("atomic:        " if atomic else "load and store:", cells.tolist())

# %% [markdown]
# 12 is right. (The interpreter runs programs one by one, so only lanes of one program get into each other's way. On a GPU programs would, too.)
#
# Atomic additions have two costs. First, those to the same cell wait for each other. How many are there? Each level gets the same number of samples, but the levels are not equally large. For the encoder's shape, with model-like places, counting only corners that lie on the map:

# %%
added = []
for level, (height, width) in enumerate(setting.levels):
    cells = (at[0, :, :, level] * torch.tensor([width, height]) - 0.5).floor()
    x, y = cells.unbind(-1)  # (N, M, P)
    counts = [
        ((x + i >= 0) & (x + i < width) & (y + j >= 0) & (y + j < height)).sum()
        for i in (0, 1)
        for j in (0, 1)
    ]
    added.append(sum(counts).item() / 8)  # of one head
sizes = [height * width for height, width in setting.levels]
print(f"the two small levels: {sum(sizes[2:]) / N:.0%} of the cells, half of the samples,", end=" ")
print(f"{sum(added[2:]) / sum(added):.0%} of the additions (the rest of theirs falls outside)")

# %%
labels = [f"{height} × {width}" for height, width in setting.levels]
per_cell = [count / size for count, size in zip(added, sizes)]
title = "Additions to each cell of a level, one head"
ax = plots.bars(per_cell, labels, title, "", "{:,.0f}", highlight=3)
plots.show(ax, alt="Additions to a cell grow from 20 on the finest level to 917 on the coarsest.")

# %% [markdown]
# Nine hundred additions want the same cell of the coarsest level, and that for each of 32 channels. In all the backward pass adds as many numbers as the forward pass reads at corners, 2.3 GB; but a read can be shared in a cache, and an addition has to be carried out. In the package's backward kernel the additions are two lines, one for each piece of a row (`sem="relaxed"`: they order no other reads or writes). (Gradients of locations and weights need no such lines: each belongs to one query, and so to one program.)

# %%
additions = 4 * encoder["samples"] * 32
print(f"{additions / 1e6:.0f} million additions, {4 * additions / 1e9:.1f} GB", end="; ")
print(f"forward moves at least {least / 1e9:.2f} GB")
print(*(line.strip() for line in source.splitlines() if "atomic_add(" in line), sep="\n")

# %% [markdown]
# ### The second cost: the last bits
#
# > **Claim:** the order of a sum does not matter.
# >
# > **Measurement:** four numbers in all 24 orders, then 300 in fifty orders, as the programs of a GPU may happen to come.


# %%
def added_up(numbers):
    """One after the other, in float32."""
    total = torch.zeros(())
    for number in numbers:
        total = total + number
    return total.item()


orders = itertools.permutations(torch.tensor([1e8, 1.0, -1e8, 1.0]))
sums = Counter(added_up(order) for order in orders)
print("1e8, 1, −1e8, 1 in all orders:", dict(sorted(sums.items())))


# %%
def seed(number):
    return torch.Generator().manual_seed(number)


# What 300 queries give to one cell:
numbers = torch.randint(-300, 300, (300,), generator=seed(0)) / 100
arrivals = [torch.randperm(300, generator=seed(i)) for i in range(50)]
as_they_come = {added_up(numbers[order]) for order in arrivals}
sorted_first = {added_up(numbers[order.sort().values]) for order in arrivals}
print("different results, as they come:", len(as_they_come), end=" ")
print("· sorted by query first:", len(sorted_first))
print(f"largest difference: {max(as_they_come) - min(as_they_come):.0e}")

# %% [markdown]
# A float32 holds 24 binary digits; 1e8 + 1 has more, so the 1 is lost, unless the two large numbers meet first. The differences are tiny, but they are there: two runs of one training part ways, and a bug that shows in one run may not show in the next. Whoever needs the same bits in every run *sorts* the additions by cell first, and adds in that order. That costs a sort, and gives up the atomics. The package's kernel does so when asked, and has to give the same gradient:

# %%
gradients = []
for deterministic in (False, True) if TRITON else ():
    torch.use_deterministic_algorithms(deterministic)
    leaf = tiny_value.clone().requires_grad_()
    output = multi_scale_deformable_attention(leaf, tiny, tiny_at, tiny_share, backend="triton")
    output.square().sum().backward()
    gradients.append(leaf.grad)
torch.use_deterministic_algorithms(False)
if TRITON:
    gap = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()
    print("atomic = sorted within 1e-5:", gap.item() < 1e-5)


# %% [markdown]
# ## 10. Halves
#
# If bytes are the bound, make numbers smaller. A *half* is a number of 2 bytes; bfloat16 is one of them: the exponent of a float32, but 8 binary digits instead of 24.
#
# > **Claim:** bfloat16 halves the bytes, so give it everything.
# >
# > **Measurement:** what becomes of places near column 200, of a sum, and of the result.

# %%
places = torch.tensor([200.0, 200.25, 200.5, 200.75, 201.0, 201.5])
print("in cells: ", places.tolist())
print("bfloat16: ", places.bfloat16().tolist())
columns = torch.arange(200.0, 206)
halves = ((columns + 0.5) / 400).bfloat16().float()  # centres of cells, in 0..1, on a map 400 wide
become = [round(x, 2) for x in (halves * 400 - 0.5).tolist()]
print("columns", columns.int().tolist(), "become", become)

# %%
columns = torch.arange(190.0, 210.01, 0.25)
wrong_by = {}
for dtype in (torch.float32, torch.bfloat16):
    rounded = ((columns + 0.5) / 400).to(dtype).float() * 400 - 0.5  # in cells again
    wrong_by[str(dtype).removeprefix("torch.")] = (rounded - columns).tolist()
title = "How far a sample lies from its place, on a map 400 columns wide"
ax = plots.curves(columns.tolist(), wrong_by, title, "column", "columns too far right")
plots.show(
    ax,
    alt="Float32 stays at zero. Bfloat16 goes up and down like a saw: by 0.4 columns at most up "
    "to column 200, by 0.8 columns beyond.",
)

# %% [markdown]
# From 128 to 256 a bfloat16 has only whole numbers: nothing is left of the fraction that bilinear sampling (and its gradient) lives on. Counted in 0..1 it is worse: from ½ to 1 its steps are 1/256, more than a column of this map, and columns 202 and 203 become the same place. So **locations stay float32**. And sums?

# %%
total = torch.zeros((), dtype=torch.bfloat16)
for _ in range(1000):
    total = total + torch.ones((), dtype=torch.bfloat16)
print("a thousand times one, added in bfloat16:", total.item())

# %%
wide = [(100, 134)]
exact, spots = torch.randn(1, 13400, 1, 32), torch.rand(1, 2000, 1, 1, 4, 2)
quarters = torch.full((1, 2000, 1, 1, 4), 0.25)
right = reference.grid_sample(exact, wide, spots, quarters)
rounded = {
    "values": (exact.bfloat16().float(), spots),
    "locations": (exact, spots.bfloat16().float()),
}
for name, (v, at_rounded) in rounded.items():
    difference = reference.grid_sample(v, wide, at_rounded, quarters) - right
    error = difference.abs().mean() / right.abs().mean()
    print(f"bfloat16 {name:>9}: mean error {error:.1%}")

# %% [markdown]
# At 256 the sum stands still: 257 is not a number that bfloat16 has. So **sums are float32**, too, and rounded once, at the end. *Values* may be halves: each is wrong by a fraction of a percent, and so is the result. Offsets should do as well (not measured here): they count cells from the reference point, and from 1 to 2 cells a bfloat16 has steps of 1/128. What is left of the bytes of a forward pass:

# %%
halves = work(value_shape, locations_shape, size=2)
moved = sum(halves["bytes"].values())
# 3 halves a sample: two of an offset, one of a score
fused = halves["bytes"]["values"] + halves["bytes"]["output"] + 6 * encoder["samples"]
print(f"all float32                                {least / 1e6:4.0f} MB")
print(f"values and output in halves                {moved / 1e6:4.0f} MB")
print(f"fused, offsets and scores in halves as well {fused / 1e6:3.0f} MB")

# %% [markdown]
# ## 11. On a chip
#
# All that sections 7 to 10 say about a GPU follows from counting and from the interpreter, which knows no time. What a chip says is another matter: tile sizes, caches and atomics have to be measured. Here is what the course's logs hold of it:

# %%
found = sorted((results / "msda-gpu").glob("*.json"))
for path in found:
    log = json.loads(path.read_text(encoding="utf-8"))
    print(log["machine"]["chip"], "·", log["dtype"], "·", log["date"])
    print(msda.table(log))
if not found:
    print("Nothing yet: this run waits in data/results/GPU_QUEUE.md.")

# %% [markdown]
# Where you have a CUDA device, one command makes the table, with every other implementation that can be imported: `ddetr-lite bench msda`.
#
# Others write such kernels, too. The package `deformops` has some in Triton and some in CUDA; its paper, [*Efficient Multi-Scale Deformable Attention on GPUs*](https://openreview.net/forum?id=Q4jZ7zKNKx) (TMLR 2026), measures them on chips. Compare its choices with ours.

# %%
course.equation_map("12")

# %% [markdown]
# ## Summary
#
# - Count first: bytes that must move, multiply-adds, and what a machine does of each in a second. The longer of the two is the floor.
# - The plain form makes a tensor of all samples and walks over it six times; and it reads planes, where the channels of a cell lie in lines of their own.
# - Deformable attention is $S\, V$, a sparse matrix times a table of rows: one `embedding_bag`. A frame of zeros takes the place of masks.
# - The gradient of the values is $S^\top$ times that of the output; locations and weights need four dot products for each sample.
# - A kernel is the code of one program: it asks for its number, loads a block, masks what does not exist, and stores. Fused, no other tensor goes through memory.
# - Many programs add to one cell: atomically, in any order, with other last bits each time; or sorted, always the same.
# - Values may be halves. Locations and sums may not.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `least_time_backward`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 15 minutes
#
# The floor of sections 1 and 2, for the backward pass. It reads values, locations, weights and the gradient of the output, and writes three gradients. Values and the output's gradient have `size` bytes a number (the output itself is not needed); all else is float32, also the gradient of the values, since it is a sum. For each corner and channel it makes *two* multiply-adds: one of a dot product (section 5), one that hands a gradient back.


# %% tags=["exercise"]
def least_time_backward(value_shape, locations_shape, size, bandwidth, arithmetic):
    """value_shape: (B, N, M, D); locations_shape: (B, N_q, M, L, P, 2); bandwidth: bytes a second;
    arithmetic: multiply-adds a second. Returns seconds, a number.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `work` of section 1 has the bytes that are read (the output's gradient is as large as the output). Written are $B \cdot N \cdot M \cdot D$ numbers of 4 bytes, and 3 numbers of 4 bytes for each sample.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("least_time_backward", least_time_backward)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def least_time_backward(value_shape, locations_shape, size, bandwidth, arithmetic):
#     """value_shape: (B, N, M, D); locations_shape: (B, N_q, M, L, P, 2); bandwidth: bytes a second;
#     arithmetic: multiply-adds a second. Returns seconds, a number.
#     """
#     B, N, M, D = value_shape
#     _, N_q, _, L, P, _ = locations_shape
#     samples, values, output = B * N_q * M * L * P, B * N * M * D, B * N_q * M * D
#     read = (values + output) * size + 12 * samples
#     written = 4 * values + 12 * samples
#     return max((read + written) / bandwidth, 8 * samples * D / arithmetic)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `corner_rows`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 20 minutes
#
# Section 4: which rows of a framed table does a sample need? The order is upper left, upper right, lower left, lower right. Places far outside are held so that their upper left corner lies on the frame (column 0 or $W + 1$ of the table, row 0 or $H + 1$); behind the table there are enough zeros.


# %% tags=["exercise"]
def corner_rows(x, y, height, width):
    """x, y: (n,), places in cells of a map (height, width), whole ones are centres.
    Returns (n, 4), whole numbers.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# First without the frame: the column is `x.floor()`, a line of the map has $W$ cells. With the frame column and line are one larger, and a line has $W + 2$ cells.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("corner_rows", corner_rows)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def corner_rows(x, y, height, width):
#     """x, y: (n,), places in cells of a map (height, width), whole ones are centres.
#     Returns (n, 4), whole numbers.
#     """
#     column = (x.floor() + 1).clamp(0, width + 1).long()
#     row = (y.floor() + 1).clamp(0, height + 1).long()
#     first = row * (width + 2) + column
#     return torch.stack((first, first + 1, first + width + 2, first + width + 3), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `weighted_rows`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# The forward pass for all heads, as one `embedding_bag`. Each head has rows of its own: `rows[q, m]` counts rows of `table[:, m]`.


# %% tags=["exercise"]
def weighted_rows(table, rows, shares):
    """table: (R, M, D); rows: (N_q, M, 4·L·P), whole numbers below R; shares: the same shape.
    Returns (N_q, M·D).
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `embedding_bag` wants a table of two axes, `table.flatten(0, 1)`, and two axes of row numbers. Where in the flat table is row $r$ of head $m$?
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("weighted_rows", weighted_rows)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def weighted_rows(table, rows, shares):
#     """table: (R, M, D); rows: (N_q, M, 4·L·P), whole numbers below R; shares: the same shape.
#     Returns (N_q, M·D).
#     """
#     bags = rows * table.shape[1] + torch.arange(table.shape[1])[:, None]  # rows of the flat table
#     output = torch.nn.functional.embedding_bag(
#         bags.flatten(0, 1), table.flatten(0, 1), per_sample_weights=shares.flatten(0, 1), mode="sum"
#     )
#     return output.reshape(len(rows), -1)  # (N_q, M·D)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `value_gradient`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# $S^\top G$ without the zeros: the part of the backward pass that SciPy does in the package. Mind the trap of section 5.


# %% tags=["exercise"]
def value_gradient(grad, rows, shares, table_rows):
    """grad: (bags, D), of the output; rows, shares: (bags, 4·L·P); table_rows: R.
    Returns (R, D), the table's gradient.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `shares[..., None] * grad[:, None]` is $(\text{bags}, 4 \cdot L \cdot P, D)$: what each bag gives to each of its rows. `index_add` adds rows to rows.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("value_gradient", value_gradient)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def value_gradient(grad, rows, shares, table_rows):
#     """grad: (bags, D), of the output; rows, shares: (bags, 4·L·P); table_rows: R.
#     Returns (R, D), the table's gradient.
#     """
#     given = (shares[..., None] * grad[:, None]).flatten(0, 1)  # (bags·4·L·P, D)
#     empty = torch.zeros(table_rows, grad.shape[1], dtype=grad.dtype)
#     return empty.index_add(0, rows.flatten(), given)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.use(value_gradient)

# %% [markdown]
# A backward pass through the detector of 00: all gradients of values, in its encoder and its decoder, go through your function. The gradients of all its parameters must be what the package's own gives:

# %%
detector, scene = course.detector().model, course.picture()


def all_gradients():
    detector.zero_grad()
    outputs = detector.outputs(detector.batch([scene.pixels]))
    (outputs.logits.square().mean() + outputs.boxes.square().mean()).backward()
    found = torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])
    detector.zero_grad()
    return found


mine = all_gradients()
course.reset()
theirs = all_gradients()
gap = ((mine - theirs).abs().max() / theirs.abs().max()).item()
print(f"the same within 1e-4 of the largest: {gap < 1e-4}")

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("B", "N", "N_q", "M", "D", "L", "P", "H", "W", "V", "R", "S", "G")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("12")

# %% [markdown]
# **Next:** what others made of Deformable DETR. [13 · What came next](13_what_came_next.ipynb). Back to [11 · Train on COCO](11_train_on_coco.ipynb).
