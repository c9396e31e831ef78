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
# # 13 · What came next: five ideas after Deformable DETR
#
# Deformable DETR is from 2021, and detectors went on. Five papers are a good path to what is used today: Conditional DETR, DAB-DETR, DN-DETR, DINO and RT-DETR. Each of them mends one thing that you have met in this course, and most of them need few lines. What they save: on COCO, DETR was trained for 500 epochs, Deformable DETR for 50, DINO for 12 to 36. For each there is the problem, the idea, the place in this package where it would go, and a cell that shows it on small tensors.
#
# Nothing is trained here. What these ideas bring is measured in their papers, on COCO. Section 7 says how one would measure it with this code; for one of them, in part, [10](10_convergence_and_ablations.ipynb) has done so.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | say which problem of DETR each of five papers attacks, and how; take the score of a query and a cell apart into content and position; let a box's width and height shape its attention; write the noise and the mask of denoising training, and prove that nothing leaks; say which loss reaches which layer's box; count what attention over all maps costs; name the function of this package that each idea changes |
# | **You need first** | [09 · Deformable DETR](09_deformable_detr.ipynb); [10 · Convergence and ablations](10_convergence_and_ablations.ipynb) for section 7 |
# | **Time** | 45 minutes to read and run, 35 for the exercises |
# | **Device** | any CPU; nothing is trained, and nothing is downloaded |

# %%
import math

import torch
from torch import nn
from torch.nn import functional as F

from ddetr_lite import course, plots
from ddetr_lite.layers.deformable_transformer import refine_boxes
from ddetr_lite.layers.positional_encoding import sine_encoding_2d, sine_encoding_of
from ddetr_lite.models.hints import add_hints, jitter
from ddetr_lite.plots.detection import boxes as draw_boxes
from ddetr_lite.set_prediction import matching
from ddetr_lite.set_prediction.boxes import box_iou, cxcywh_to_xyxy
from ddetr_lite.set_prediction.losses import sigmoid_focal_loss

# %%
torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
scene, shipped = course.picture(), course.detector()
model = shipped.model  # the detector of 00: two stages, refinement, trained with hints
batch = model.batch([scene.pixels])
labels = torch.tensor([shipped.classes.index(name) for name in scene.names])
targets = model.normalise_targets([{"boxes": scene.boxes, "labels": labels}], batch.sizes)

# %% [markdown]
# ## 1. What is left to mend
#
# | problem | met in | mended by | how |
# |:--|:--|:--|:--|
# | a query has to find out *where* to look, from a sum in which content and position are mixed | 06 | Conditional DETR (Meng and others, 2021) | content and position side by side, not added |
# | a query's position is a vector that nobody can read, and has no size | 06 | DAB-DETR (Liu and others, 2022) | the query *is* a box, and its size shapes where it looks |
# | the match gives an object now this query, now that one, and few queries learn a box | 05, 06 | DN-DETR (Li and others, 2022) | extra queries with noised true boxes, which need no match |
# | a near miss of an object is hard to tell from a hit | 05, 10 | DINO (Zhang and others, 2023) | noise of two sizes: this is the object, this is none |
# | the encoder is costly: every cell of every map looks around | 09, 12 | RT-DETR (Zhao and others, 2024) | attention on the coarsest map only |
#
# (This DINO has nothing to do with the method of the same name that learns features without labels.)
#
# Two of these problems can be seen at once, both of the third row. First: how many queries of our detector learn a box from the course's picture?

# %%
with torch.no_grad():
    outputs = model.outputs(batch)
last = outputs.logits[-1:], outputs.boxes[-1:]  # of the last layer
match = matching.match(*last, targets, model.loss.matching, "focal")
print(
    f"{outputs.logits.shape[2]} queries, {len(match.query)} of them learn a box; "
    "the others learn 'nothing here'"
)

# %% [markdown]
# With the paper's 300 queries the picture would still have only four that learn a box.
#
# > **Claim:** a small change of the answers leaves the match as it is.
# >
# > **Measurement:** random boxes and scores in place of an untrained model: 100 queries, five objects. From step to step each number of a box moves by about a hundredth of the picture. How many of the five objects get another query?

# %%
torch.manual_seed(1)
centres, sizes = 0.1 + 0.8 * torch.rand(105, 2), 0.1 + 0.4 * torch.rand(105, 2)
boxes = torch.cat((centres, sizes), dim=-1)  # of five objects, then of 100 queries
truth, boxes = [{"labels": torch.arange(5), "boxes": boxes[:5]}], boxes[None, None, 5:]
logits = torch.randn(1, 1, 100, 5) * 0.1 - 4.6  # (K, B, N_q, C): every class is unlikely
chosen = []
for _ in range(41):
    found = matching.match(logits, boxes, truth, model.loss.matching, "focal")
    chosen.append(found.query[found.target.argsort()])  # the query of each object
    boxes = (boxes + 0.01 * torch.randn_like(boxes)).clamp(0.01, 0.99)
chosen = torch.stack(chosen)  # (41, 5)
changed = (chosen[1:] != chosen[:-1]).float().mean()  # over steps and objects
print(f"of five objects {5 * changed:.1f} get another query at each step")

# %% [markdown]
# With so many candidates that are equally good, a hundredth is enough. (How often depends on how densely the boxes lie: this is no measurement of a model.) In 06 we counted it in a real training: it is worst at the start. DN-DETR's authors measured it, too, and see in it a main reason why DETR learns slowly.

# %% [markdown]
# ## 2. Conditional DETR: content beside position
#
# In DETR's cross-attention a query is a sum, content + position, and so is a key (06). The score is the product of two sums, and has four terms:
#
# $$(c_q + p_q) \cdot (c_k + p_k) = c_q \cdot c_k + p_q \cdot p_k + \underbrace{c_q \cdot p_k + p_q \cdot c_k}_{\text{cross terms}}$$
#
# The cross terms compare a content with a place, which mean different things. (The matrices that make $Q$ and $K$ stand in between. Each of the four terms then has them in it, and all four remain.) Conditional DETR puts the two **side by side**: a query is $[c_q; p_q]$, a key $[c_k; p_k]$. Then the product of the long vectors is the sum of two products, and the cross terms are gone:
#
# $$[c_q; p_q] \cdot [c_k; p_k] = c_q \cdot c_k + p_q \cdot p_k$$
#
# By hand: $c_q = 2$, $p_q = 3$, $c_k = 5$, $p_k = 7$. The sum gives 5 · 12 = 60, side by side gives 10 + 21 = 31; the cross terms are 14 + 15 = 29.
#
# A second thing is mended with it. In DETR $p_q$ is a *learned* vector. At the start it is noise, and nothing makes it resemble the *code* of a cell, its sines (03). Conditional DETR gives each query a reference point, made from its learned vector as in 09, and makes $p_q$ from this point, with **the same sines** as the codes of the cells. On a map of 24 × 24 cells, with random content:

# %%
d, side = 256, 24
nothing = torch.zeros(1, side, side, dtype=torch.bool)  # no padding
p_k = sine_encoding_2d(nothing, d, "deformable").flatten(1, 2)[0]  # (N, d): the code of each cell


def code_of(point, temperature=10000.0):
    """point: (2,), (x, y) in 0..1. Returns (d,), y first, as sine_encoding_2d has it."""
    return sine_encoding_of(point.flip(0) * 2 * math.pi, d // 2, temperature).flatten()


place = torch.tensor([0.3, 0.6])  # where the query stands


def mark(ax, x, y, colour=plots.COLOURS[1]):
    """A cross that is seen on any ground."""
    for shade, width in (("white", 5), (colour, 2)):
        ax.plot(x, y, "+", color=shade, markersize=12, markeredgewidth=width)


# %%
p_q = code_of(place)
c_q, c_k = torch.randn(d) * 0.7, torch.randn(side**2, d) * 0.7  # about as long as the codes
terms = c_k @ c_q + p_k @ p_q + p_k @ c_q + c_k @ p_q  # (N,)
print("4 terms:", torch.allclose((c_k + p_k) @ (c_q + p_q), terms, atol=1e-3))
beside = torch.cat((c_k, p_k), dim=-1) @ torch.cat((c_q, p_q))  # (N, 2d) @ (2d,)
print("2 terms:", torch.allclose(beside, c_k @ c_q + p_k @ p_q, atol=1e-3))

# %%
learned = torch.randn(d) * 0.7  # DETR's p_q before training
parts = {
    "DETR: all four terms": (c_k + p_k) @ (c_q + learned),
    "the cross terms": p_k @ c_q + c_k @ learned,
    "learned p_q · p_k": p_k @ learned,
    "p_q of a point · p_k": p_k @ p_q,
}

# %%
drawn, axes = plots.panels(4, height=2.3)
for ax, (name, scores) in zip(axes, parts.items()):
    scores = scores - scores.mean()  # the softmax does not see the mean
    plots.matrix(scores.view(side, side), title=name, signed=True, limit=30, ax=ax)
    mark(ax, *(place * side - 0.5))
plots.show(
    drawn,
    alt="Four maps of scores of one query, with a cross at its place: DETR's four terms together "
    "and the cross terms are noise; the product with a learned vector is nearly flat; that with "
    "the code of a point is smooth, and largest at the cross.",
)

# %% [markdown]
# (Blue is above the mean of the map, orange below.) In DETR, at the start, no part of the score points anywhere in particular. With the code of a point the position part does, from the first step on and whatever the content is.
#
# Where should a query look? The paper says: at the ends of its object, left, right, top, bottom, which tell where the box is, and inside it, which tells what it is. So the code of the query's place is multiplied, channel by channel (written $\odot$), by numbers $\lambda$ that a small network makes from the query's content: $p_q = \lambda \odot \text{code}$. That is the *conditional* in the name. (In the first layer the content says nothing yet, and $\lambda$ is 1.) Then $\lambda \odot \text{code}$ goes through a matrix, and so do the codes of the cells, before both are cut into heads: so each head can look at another end. (In the authors' code the first layer also adds position to content, as DETR does.)
#
# What can such factors do? They choose what of the place counts. And they can move it: $\lambda = \text{code}(\text{there}) / \text{code}(\text{here})$ turns the code of *here* into that of *there*.

# %%
there = place + torch.tensor([0.25, 0.0])
short = torch.arange(d) % (d // 2) < 24  # the first channels of y and of x
choices = {
    "λ = 1": torch.ones(d),
    "λ = 0 for y": (torch.arange(d) >= d // 2).float(),
    "λ = 4, short waves": 4 * short.float(),  # else 0
    "code(there) / code": code_of(there) / p_q,
}

# %%
drawn, axes = plots.panels(4, height=2.3)
for ax, (name, factor) in zip(axes, choices.items()):
    attention = (p_k @ (factor * p_q) / d**0.5).softmax(0)  # (N,)
    plots.matrix(attention.view(side, side), title=name, ax=ax)
    mark(ax, *(place * side - 0.5))
plots.show(
    drawn,
    alt="Attention by position alone with four choices of λ: a spot at the query's place; an "
    "upright stripe through it when y does not count; a much smaller spot with short waves alone, "
    "four times as strong; and the first spot again, a quarter of the map to the right of the "
    "query's place.",
)

# %%
row, column = divmod(attention.argmax().item(), side)  # of the last map
goal = (there * side).long().tolist()  # (x, y), in cells
print("the last map is largest in the cell of `there`:", [column, row] == goal)

# %% [markdown]
# (Each map has its own scale: the darkest cell is its largest weight.) Such a $\lambda$ has to be learned. But a query begins at its place, and the ends of its object are not far from there.
#
# **In this code.** `layers/transformer.py`, `DecoderLayer.forward`: where the cross-attention gets `with_position(x, query_position)` and `with_position(memory, memory_position)`, it would get both halves side by side in each head, so its `MultiHeadAttention` needs queries and keys of $2d$ channels and values of $d$. `models/detr.py` would give each query a reference point, and add its $\sigma^{-1}$ to the box head's centre, as `refine_boxes` does.

# %% [markdown]
# ## 3. DAB-DETR: a query is a box
#
# If a query needs a place, why not let it *be* one? In DAB-DETR (*dynamic anchor boxes*) a query's position is four learned numbers $(x, y, w, h)$, and each layer corrects them. For the self-attention, a small network makes a vector from the sines of all four. The cross-attention is Conditional DETR's: content beside the code of $(x, y)$, with its $\lambda$. Much of that you know: `refine` of 09 corrects a box from layer to layer, and `queries_from` makes a query's position from the sines of its box.
#
# New is what the size does. The position part of the score is a product for $y$ plus a product for $x$. DAB-DETR stretches each by the box's size:
#
# $$\frac{1}{\sqrt d}\left(\text{code}(y) \cdot \text{code}(y_k)\,\frac{h_\text{ref}}{h} + \text{code}(x) \cdot \text{code}(x_k)\,\frac{w_\text{ref}}{w}\right)$$
#
# $w_\text{ref}$ and $h_\text{ref}$ are two more numbers that the query's content says: the size that it looks for. A wide box has a large $w$, so $x$ counts less, and the attention spreads along $x$. Three boxes at one place, with $w_\text{ref} = h_\text{ref} = 0.3$:

# %%
shapes = {"square": (0.3, 0.3), "wide": (0.5, 0.18), "tall": (0.18, 0.5)}
y_q, x_q = p_q.chunk(2)  # (d/2,) each
y_k, x_k = p_k.chunk(2, dim=-1)  # (N, d/2) each
drawn, axes = plots.panels(3, height=2.9)
for ax, (name, (w, h)) in zip(axes, shapes.items()):
    scores = (y_k @ y_q * 0.3 / h + x_k @ x_q * 0.3 / w) / d**0.5  # (N,)
    plots.matrix(scores.softmax(0).view(side, side), title=f"{name}: {w} × {h}", ax=ax)
    left, top = (place - torch.tensor([w, h]) / 2) * side - 0.5
    right, bottom = left + w * side, top + h * side
    outline = [left, right, right, left, left], [top, top, bottom, bottom, top]
    ax.plot(*outline, color=plots.COLOURS[1])
    ax.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
plots.show(
    drawn,
    alt="Attention by position of three boxes at one place, each with its outline: a round spot "
    "for the square box, one that is stretched along x for the wide box, and along y for the tall "
    "one.",
)

# %% [markdown]
# One more number matters: the temperature of the sines (03), 10,000 in the first Transformer, made for words. With it most wavelengths are far longer than a picture, where $y$ and $x$ go from 0 to $2\pi$; those channels say the same everywhere. DAB-DETR sets it to 20. In how many of the 576 cells lies half of the weight?

# %%
for temperature in (10000.0, 20.0):
    keys = sine_encoding_2d(nothing, d, "deformable", temperature).flatten(1, 2)[0]  # (N, d)
    weights = (keys @ code_of(place, temperature) / d**0.5).softmax(0)
    half = (weights.sort(descending=True).values.cumsum(0) < 0.5).sum().item() + 1
    print(f"temperature {temperature:6,.0f}: half of the weight lies in {half} cells")

# %% [markdown]
# **In this code.** Deformable attention has the size already: `layers/deformable_attention.py` scales its offsets by half the width and height of a reference box. (In DETR's attention the two ratios go into the query's code before the product, in `DecoderLayer.forward`; the rest stays.) What else DAB-DETR would change is `DeformableDecoder.forward` in `layers/deformable_transformer.py`: after `refine` the position of the queries would be made anew. Here it stays what it was for the proposal. How different would it be, if it were made from the boxes of layer 1?
#
# To see this, and for what follows, we need to run the decoder by itself, with queries of our own. What it was given for the course's picture is caught on the way:

# %%
decoder, caught = model.transformer.decoder, []
handle = decoder.register_forward_hook(lambda module, given, result: caught.append(given))
with torch.no_grad():
    model.outputs(batch)
handle.remove()
own, memory, level_shapes, ratios, padding = caught[0][2:7]  # own: the proposals, (B, N_q, 4)


# %%
def decode(reference, mask=None, extra=0.0):
    """Queries at these boxes (B, n, 4), `extra` added to their content: boxes and logits of all
    layers, (K, B, n, ...).
    """
    boxes = []

    def refine(k, hidden, before):
        boxes.append(refine_boxes(model.bbox_embed[k](hidden), before))
        return boxes[-1]

    content, position = model.queries_from(reference)
    hidden, _ = decoder(
        content + extra, position, reference, memory, level_shapes, ratios, padding, refine, mask
    )
    return torch.stack(boxes), torch.stack([head(h) for head, h in zip(model.class_embed, hidden)])


# %%
with torch.no_grad():
    boxes, logits = decode(own)
    print("the model's own boxes:", torch.equal(boxes, outputs.boxes))
    before = model.queries_from(own)[1][0]  # (N_q, d), the positions
    after = model.queries_from(boxes[0])[1][0]
away = (after - before).norm(dim=-1) / before.norm(dim=-1)  # (N_q,)
moved = (boxes[0, 0] - own[0]).abs().amax(dim=-1)  # (N_q,)
for what, query in (("of our objects", match.query), ("of all queries", slice(None))):
    print(
        f"{what}: a number of a box changes by up to {moved[query].max():.2f},",
        f"a position by up to {away[query].max():.2f} of its length",
    )

# %% [markdown]
# Little, here: the proposals were good already, and sines with a temperature of 10,000 change slowly. Where queries begin anywhere and six layers move them, it may be more.

# %% [markdown]
# ## 4. DN-DETR: queries that know their object
#
# The match of section 1 jumps. DN-DETR (*denoising*) goes around it: in training it adds queries made from the **true boxes, with noise**, and each has to say its own object's box and class. Nothing has to be matched, for one knows from which object a query was made. Several *groups* of them, each with noise of its own, give that many more lessons in each step. After training they are left out; nothing of the model changes, and it costs nothing then.
#
# The package has a part of this, under the name *hints* (`models/hints.py`), and the detector of 00 was trained with them. So it should be able to mend a noised box. Can it? Five groups of the four objects, corners moved by up to 0.4 of half the width and height. (DN-DETR itself moves a box's *centre* by as much, and changes width and height by up to 0.4 of themselves.)

# %%
torch.manual_seed(2)
true = targets[0]["boxes"].repeat(5, 1)  # (G·T, 4)
noised = jitter(true, 0.4)
group = torch.arange(5).repeat_interleave(4)  # 0 0 0 0 1 1 1 1 ...
with torch.no_grad():  # groups do not see each other, as in training; the reason comes below
    mended, said = decode(noised[None], mask=group[:, None] != group)
stages = {"noised": noised, "layer 1": mended[0, 0], "layer 2": mended[1, 0]}
fit = [box_iou(cxcywh_to_xyxy(b), cxcywh_to_xyxy(true)).mean().item() for b in stages.values()]
ax = plots.bars(fit, list(stages), "Mean IoU of 20 hints with their objects")
plots.show(
    ax,
    alt="Three bars of mean IoU with the true box: the noised boxes lowest, after layer 1 and "
    "layer 2 far higher.",
)
right = (said[-1, 0].argmax(dim=-1) == labels.repeat(5)).sum().item()
print(f"{right} of 20 hints say the right class")

# %%
drawn, axes = plots.panels(2, height=3.2)
for ax, name in zip(axes, ("noised", "layer 2")):
    draw_boxes(scene.pixels, cxcywh_to_xyxy(stages[name]) * 96, title=name, one_colour=0, ax=ax)
plots.show(
    drawn,
    alt="The course's picture twice: left five noised boxes around each of four objects, right the "
    "same after two layers, lying close together on the objects.",
)

# %% [markdown]
# ### Nothing may leak
#
# Queries look at one another in the decoder's self-attention. If an ordinary query could see a hint, it would read the answer there, and learn nothing for the day when there are no hints. And a group must not see the others:
#
# > **Claim:** several noised copies of a box together nearly tell the true one.
# >
# > **Measurement:** the mean of the five copies of each box from above, without any network.

# %%
average = noised.view(5, 4, 4).mean(dim=0)  # (T, 4)
near = box_iou(cxcywh_to_xyxy(average), cxcywh_to_xyxy(targets[0]["boxes"])).mean().item()
print(
    f"mean IoU of one copy {fit[0]:.2f}, of the mean of five {near:.2f}, "
    f"after the decoder {fit[-1]:.2f}"
)

# %% [markdown]
# A query that sees all groups need not look at the picture. So a **mask** hides the hints from the ordinary queries, and each group from the others. The package's mask, for four ordinary queries and two groups of three objects:

# %%
three = [{"labels": torch.arange(3), "boxes": 0.2 + 0.3 * torch.rand(3, 4)}]
longer, mask = add_hints(torch.rand(1, 4, 4), three, groups=2)  # (1, 4 + 2·3, 4), (10, 10)
names = [*(f"query {i}" for i in range(4)), *(f"hint {g}.{t}" for g in "ab" for t in range(3))]
ax = plots.matrix(mask, names, names, "dark: hidden", "who is seen", "who looks", numbers=False)
plots.show(
    ax,
    alt="A mask of 10 × 10: three light blocks on the diagonal, for four queries and two groups of "
    "three hints; all else is dark.",
)

# %% [markdown]
# DN-DETR's own mask has one block less: there hints may look at ordinary queries, which know nothing of the truth. Exercise 3 builds it.
#
# What else does the paper have? It noises **labels** too: a share of the hints gets a wrong class, and has to say the right one. For this a hint's content is the embedding of its (perhaps wrong) class, where the package's hints have a content made from their box. (All ordinary queries then begin as a class "unknown", and one number of the content says which of the two kinds a query is.) Exercise 2 makes such labels.
#
# **In this code.** `models/hints.py`, `add_hints`: labels beside boxes, and the other mask. `models/deformable_detr.py`, `outputs`: the hints' content from an `nn.Embedding`. `set_prediction/losses.py` has the loss of hints already (`hint_matches`).

# %% [markdown]
# ## 5. DINO: near is not enough
#
# DINO joins DAB-DETR's boxes, DN-DETR's noise and deformable attention, and adds three things.
#
# ### Contrastive denoising
#
# With several queries near one object only one may say "here"; the others must say "nothing here", although they see the same. Of DN-DETR's extra queries none is ever taught to say no. DINO makes two hints of each object: a **positive** one with little noise, which has to say the object, and a **negative** one with more noise, which has to say "nothing". Each corner moves in $x$ and in $y$, in either direction: by 0 to 1 for a positive hint and by 1 to 2 for a negative one, in units of half the box's size times the amount of noise. (The paper has two amounts of noise, a smaller and a larger one; in the authors' code the larger is twice the smaller.)

# %%
torch.manual_seed(3)
part, sign = torch.rand(2, 400, 2), torch.randn(2, 400, 2).sign()  # (kind, corners, x and y)
moved = sign * (part + torch.tensor([0.0, 1.0])[:, None, None])
ax = plots.scatter(
    {"positive": moved[0].T, "negative": moved[1].T},
    "Where a true corner (+) moves to",
    "x, in units of noise",
    "y, in units of noise",
    equal=True,
)
mark(ax, 0, 0, plots.INK)
plots.show(
    ax,
    alt="Displacements of a corner: positive ones fill the square from −1 to 1; negative ones fill "
    "four squares beyond its corners, from 1 to 2 away in x and in y.",
)

# %% [markdown]
# Exercise 4 makes the boxes. **In this code:** `jitter` in `models/hints.py` makes twice as many, and the negative half is left out of `hint_matches`, so that all its classes are taught 0, and no box. (`hint_matches` and `set_losses` both count groups by their length, and have to know that it has doubled.)
#
# ### Mixed query selection
#
# With two stages (09) a query's position *and* its content come from its proposal. DINO takes only the position from there; the content is a learned vector of its own, as in the plain model. For a proposal says where something is, and only roughly what. In this package (as in the authors' code of Deformable DETR) the content is made from the four numbers of the box alone, whatever the picture shows:

# %%
learned = nn.Embedding(own.shape[1], model.config.dim)  # what DINO has instead, (N_q, d)
with torch.no_grad():
    content, position = model.queries_from(own)  # (B, N_q, d) each
    flipped, _ = model.queries_from(own.flip(1))  # the same boxes in another order
same = torch.allclose(content.flip(1), flipped, atol=1e-5)
print("two stages: the content goes with the box:", same)
mixed = learned.weight.expand(len(own), -1, -1)  # (B, N_q, d): goes with the query's number
content_shape, position_shape = tuple(mixed.shape), tuple(position.shape)
print(f"mixed: content {content_shape} learned, position {position_shape} from the boxes")

# %% [markdown]
# **In this code:** `models/deformable_detr.py`, `outputs`, one line after `queries_from`: the contents of the first $N_q$ queries are the embedding's; hints, which stand behind them, keep theirs.
#
# ### Look forward twice
#
# From layer to layer a box is handed on as a plain number (09): `detach`. So the correction of layer $k$ learns from the loss of layer $k$ alone. DINO lets the next loss look one layer back: what layer $k + 1$ *says* is made from layer $k$'s box with its gradient, while what it *looks around* stays a plain number. The numbers are the same in all ways; only the gradients differ.


# %%
def boxes_of_layers(deltas, start, way):
    """deltas: K corrections (4,); start: (4,), a box. Returns K boxes; `way` decides where
    gradients go.
    """
    held = before = start
    said = []
    for delta in deltas:
        said.append(refine_boxes(delta, before if way == "look forward twice" else held))
        before = refine_boxes(delta, held)  # with the gradient of this layer alone
        held = said[-1] if way == "never detached" else before.detach()
    return torch.stack(said)  # (K, 4)


# %%
start, steps = torch.tensor([0.4, 0.5, 0.3, 0.2]), 0.3 * torch.randn(4, 4)
reached, all_boxes = {}, []
for way in ("detached, as in 09", "look forward twice", "never detached"):
    deltas = [step.clone().requires_grad_() for step in steps]
    all_boxes.append(boxes_of_layers(deltas, start, way))
    rows = []
    for box in all_boxes[-1]:
        found = torch.autograd.grad(box.sum(), deltas, retain_graph=True, allow_unused=True)
        rows.append([g is not None and bool(g.abs().max() > 0) for g in found])
    reached[way] = torch.tensor(rows)
print("the same boxes:", all(torch.allclose(boxes, all_boxes[0], atol=1e-6) for boxes in all_boxes))

# %%
names = [f"{k}" for k in range(1, 5)]
tables, titles = list(reached.values()), list(reached)
drawn = plots.matrices(
    tables, titles, names, names, xlabel="correction of layer", ylabel="loss of layer"
)
plots.show(
    drawn,
    alt="Which loss reaches which layer's correction, for three ways: only its own (a diagonal); "
    "its own and the one before (two diagonals); all before (a triangle).",
)

# %% [markdown]
# (The query's vector carries gradients back through all layers in any case.) **In this code:** `DeformableDecoder.forward` detaches what `refine` returns; that stays. `refine` in `models/deformable_detr.py`, `outputs`, would say its box from that of the layer before, kept with its gradient. Which one to keep? `refine_boxes` of the *detached* reference, `before` in the cell above. Keeping the box that was said instead gives the panel on the right.

# %% [markdown]
# ## 6. RT-DETR: pay for attention where it is cheap
#
# RT-DETR is made for speed. Its authors ask which maps need attention at all, and answer: the coarsest. It has the fewest cells, and each of them says most about *what* is there; on the finer maps, they argue, it helps little that cells look at one another. So **one encoder layer, on the coarsest map alone**, with plain attention as in DETR; then **convolutions** carry what it found to the finer maps and back. What is saved? A picture of 640 × 640 pixels has maps of 80 × 80, 40 × 40 and 20 × 20 cells. Plain attention makes $2 N^2 d$ multiply-adds for scores and sums, and $4 N d^2$ for its matrices. We count those for all cells and for the coarsest map, and what deformable attention needs for all:

# %%
cells = [80**2, 40**2, 20**2]
N, coarsest, d, M, L, P = sum(cells), cells[-1], 256, 8, 3, 4


def plain(n):
    return 2 * n**2 * d + 4 * n * d**2


deformable = 2 * N * d**2  # matrices
deformable += N * d * M * L * P * 3  # places and weights
deformable += 4 * N * M * L * P * (d // M)  # corners
counts = {
    "plain, all maps": plain(N),
    "deformable, all maps": deformable,
    "plain, coarsest map": plain(coarsest),
}
for name, count in counts.items():
    print(f"{name:>21}: {count / 1e9:6.2f} billion multiply-adds")
times = N // coarsest
print(f"{N:,} cells or {coarsest}: {times} times as many, {times**2} times as many scores")

# %%
from torch.utils.flop_counter import FlopCounterMode

from ddetr_lite.layers.attention import MultiHeadAttention

tokens = torch.randn(1, coarsest, d)
with FlopCounterMode(display=False) as counter, torch.no_grad():
    MultiHeadAttention(d, M)(tokens, tokens, tokens)
counted = counter.get_total_flops()  # torch counts a multiply-add as two operations
print("torch counts the same for the coarsest map:", counted == 2 * plain(coarsest))

# %%
billions = [count / 1e9 for count in counts.values()]
ax = plots.bars(billions, list(counts), "One attention of the encoder", "billion multiply-adds")
plots.show(
    ax,
    alt="Multiply-adds of one attention of the encoder: plain attention on all maps is by far the "
    "highest bar, deformable attention on all maps is much lower, plain attention on the coarsest "
    "map hardly to be seen.",
)

# %% [markdown]
# (Feed-forward layers and convolutions come on top in all three, so a whole encoder differs by less. And multiply-adds are not seconds: 12.)
#
# How convolutions fuse: first *top-down*, from coarse to fine: the coarse map is enlarged and joined with the finer one. Then *bottom-up*: the fine map is shrunk and joined with the coarser one. (Detectors with convolutions know this as PAN, a path aggregation network.) A sketch with one convolution for each join; RT-DETR has blocks of several:

# %%
maps = [torch.randn(1, 32, n, n) for n in (16, 8, 4)]  # (B, C, H_l, W_l), the finest first
join = nn.ModuleList(nn.Conv2d(64, 32, 3, padding=1) for _ in range(4))
shrink = nn.ModuleList(nn.Conv2d(32, 32, 3, stride=2, padding=1) for _ in range(2))
with torch.no_grad():
    fused = [maps[2]]
    for k, finer in enumerate(maps[1::-1]):  # top-down: from coarse to fine
        enlarged = F.interpolate(fused[0], scale_factor=2)
        fused.insert(0, join[k](torch.cat((enlarged, finer), dim=1)).relu())
    for k in range(2):  # bottom-up: from fine to coarse
        shrunk = shrink[k](fused[k])
        fused[k + 1] = join[2 + k](torch.cat((shrunk, fused[k + 1]), dim=1)).relu()
print([tuple(one.shape) for one in fused])

# %% [markdown]
# ### Choosing queries by class *and* place
#
# The first stage of 09 takes the tokens that are surest of an object.
#
# > **Claim:** they have the best boxes.
# >
# > **Measurement:** all tokens of the course's picture: how sure, and how well the proposed box fits.

# %%
sure = outputs.encoder_logits[0, :, 0].sigmoid()  # (N,): class 0 stands for "any object"
boxes = cxcywh_to_xyxy(outputs.encoder_boxes[0])  # (N, 4)
fit = box_iou(boxes[:, None], cxcywh_to_xyxy(targets[0]["boxes"])).amax(dim=1)  # (N,)
taken = sure.topk(model.config.queries).indices
left = torch.ones(len(fit), dtype=torch.bool).index_fill(0, taken, False)
ax = plots.scatter(
    {"is left": (sure[left], fit[left]), "becomes a query": (sure[taken], fit[taken])},
    f"{len(fit)} proposals",
    "how sure of an object",
    "IoU with the nearest object",
)
plots.show(
    ax,
    alt="For each token how sure it is against the IoU of its proposal: the few surest fit well, "
    "but most that are taken are little surer than the rest, and fit well or poorly; some that are "
    "left fit better.",
)

# %%
good = fit > 0.6  # (N,)
print(
    f"{good.sum()} proposals have an IoU above 0.6; "
    f"{good[taken].sum()} of them are taken, of {len(taken)}"
)
best = fit.topk(len(taken)).values
print(f"mean IoU of the taken {fit[taken].mean():.2f}; of as many chosen by IoU {best.mean():.2f}")

# %% [markdown]
# For the surest it holds. Below them it does not: good proposals are left, and poor ones taken that are a little surer. (There were as many good proposals as queries; half of them were left.)
#
# RT-DETR's training wants the two to agree: the gap between what a proposal says of its class and of its place is to be small (*uncertainty-minimal* selection). In the authors' code the class of a matched box is taught the IoU of this box, and not 1. What then is chosen by its class score is chosen by its place as well.
#
# Is it enough to change the target? The focal loss of 05 was made for targets 0 and 1. A box with IoU 0.8: which score has the least loss?

# %%
p, target = torch.linspace(0.01, 0.99, 99), torch.full((99,), 0.8)
losses = {
    "focal": sigmoid_focal_loss(p.logit(), target),
    "varifocal": target * F.binary_cross_entropy(p, target, reduction="none"),
}
for name, loss in losses.items():
    print(f"{name} loss with target 0.8 is least at a score of {p[loss.argmin()]:.2f}")

# %% [markdown]
# The focal factor, small for large scores, pulls beyond the target. So RT-DETR takes the *varifocal loss*: there a matched box weighs as much as its IoU, and only the others have a focal factor.
#
# **In this code.** `DeformableEncoder` in `layers/deformable_transformer.py` would be replaced: one `EncoderLayer` of `layers/transformer.py` on the last map, and a module with the convolutions; `levels` in `models/deformable_detr.py` stays. For the choice: `classification_losses` in `set_prediction/losses.py`, which would need the boxes, too, for the IoU, and the other weights. The decoder has the deformable attention and the refinement of 09, but a query's content is the vector of the token that was chosen, and its position is made anew from its box in each layer (as in section 3). RT-DETR trains with contrastive denoising, too.

# %% [markdown]
# ## 7. Build one, and measure it
#
# Where each idea goes, all in one table:
#
# | idea | where | what changes |
# |:--|:--|:--|
# | content beside position | `DecoderLayer.forward` in `layers/transformer.py` | concatenate in each head instead of adding |
# | reference points for DETR | `Detr.outputs` in `models/detr.py` | a point for each query; boxes through `refine_boxes` |
# | size shapes attention | `DecoderLayer.forward` in `layers/transformer.py` | each half of the query's code times its ratio |
# | position anew in each layer | `DeformableDecoder.forward` in `layers/deformable_transformer.py` | sines of the refined box, after `refine` |
# | noised labels | `add_hints` in `models/hints.py` | returns labels too; their embedding is the content |
# | hints see queries | `add_hints` in `models/hints.py` | the mask |
# | negative hints | `jitter` in `models/hints.py`; `hint_matches` and `set_losses` in `set_prediction/losses.py` | more noise, taught "nothing" |
# | mixed query selection | `DeformableDetr.outputs` in `models/deformable_detr.py` | content from an `nn.Embedding` |
# | look forward twice | `refine`, inside `outputs`, in `models/deformable_detr.py` | say from the box before `detach` |
# | content from the chosen token | `DeformableDetr.outputs` in `models/deformable_detr.py` | gather the memory where the proposals were taken |
# | one attention, then convolutions | `DeformableEncoder` in `layers/deformable_transformer.py` | another encoder, same memory out |
# | class and place agree | `classification_losses` in `set_prediction/losses.py` | the target is the IoU, with weights for it |
#
# A good first one is *mixed query selection*: a field in `DeformableDetrConfig`, an embedding, one line. Then, in this order:
#
# 1. **A field that is off by default.** `mixed: bool = False`, with a line that says what it does. The command line is made from the configuration, so `--mixed` is there at once. Off, the model must be what it was, to the last bit.
# 2. **A test by hand**, on a small model: what should change, and what should not. Exercise 3 and the end of this notebook are of that kind.
# 3. **A few pictures by heart:** `ddetr-lite train shapes --mixed --overfit 4` must learn them. What cannot learn four pictures has a mistake.
# 4. **A row in a study.** In `benchmarks/studies/` a study is a list of rows, and a row is a recipe. Put the new one beside its baseline, with all sizes the same.
# 5. **The same budget, the same search.** Look for the learning rate with the same care for both; let each length of schedule be a run of its own; take several seeds (10 shows how much they scatter). `ddetr-lite bench NAME --dry-run` lists the runs, `ddetr-lite bench NAME --jobs 2 --threads 1` trains them, and goes on where it was stopped.
# 6. **What it costs:** `ddetr-lite bench NAME --cost`, on an idle machine. More parameters or slower steps belong in the table, too.
#
# What you must not do is compare your run with a number of a paper: other data, other sizes, other schedules. And until your runs are there, nothing is known. Of the five ideas one has been measured here, in part: hints of boxes, in two small studies of 10. On drawings (section 6.1, two seeds) they close about half of the lead that Faster R-CNN has over Deformable DETR ++; on photos (section 6.3, one seed) no gain could be told. (The detector of 00 was trained with them, but no run without them stands beside it.)
#
# To read how others wrote them: Hugging Face's transformers, in the versions of this environment, has

# %%
import transformers

known = ("ConditionalDetr", "DabDetr", "DeformableDetr", "RTDetr")
later = ("RTDetrV2", "DFine", "LwDetr", "RfDetr", "Deimv2")
for name in (*known, *later):
    print(f"{name}ForObjectDetection:", hasattr(transformers, f"{name}ForObjectDetection"))

# %% [markdown]
# DN-DETR and DINO have no model of their own there. Their denoising is in RT-DETR's file, `get_contrastive_denoising_training_group`: noise, labels and mask, as in sections 4 and 5.

# %%
from transformers.models.rt_detr import modeling_rt_detr

name = "get_contrastive_denoising_training_group"
print("contrastive denoising:", hasattr(modeling_rt_detr, name))

# %% [markdown]
# **After these five.** The last five names are what came since, each again with one main idea:
#
# - *RT-DETRv2* ([2024](https://arxiv.org/abs/2407.17140)): another number of points on each level, and a form that samples whole cells only, for machines that cannot interpolate.
# - *D-FINE* ([2024](https://arxiv.org/abs/2410.13842)): for each side of a box a layer says how likely each of many distances is, and the next one mends these chances instead of four numbers.
# - *LW-DETR* ([2024](https://arxiv.org/abs/2406.03459)) and *RF-DETR*: a plain Transformer on patches (01) as the backbone, pretrained on many pictures, and a short decoder.
# - *DEIM* ([2024](https://arxiv.org/abs/2412.04234); the name above is its second version): several pictures pasted into one, so that each step has more objects to match.
#
# A line of its own is **one-to-many training**. One-to-one matching teaches little in each step; hints are one remedy, to match more queries is another, in training only. *Group DETR* ([2022](https://arxiv.org/abs/2207.13085)) has several groups of queries with a match each, *H-DETR* ([2022](https://arxiv.org/abs/2207.13080)) a second group for which each object counts several times, and *Co-DETR* ([2022](https://arxiv.org/abs/2211.12860)) heads of other detectors, Faster R-CNN among them, beside the decoder. A group must not see the others: that is the mask of section 4 once more.

# %%
course.equation_map("13")

# %% [markdown]
# ## 8. The whole course
#
# | | what it added |
# |:--|:--|
# | 01, 02 | a word looks at the others: scores, softmax, a weighted sum; and in several ways at once |
# | 03, 04 | places as sines; layers of attention and thinking alone; encoder and decoder |
# | 05 | objects are a set: a match and a loss, instead of anchors and of removing doubles |
# | 06 | DETR: cells of a picture as tokens, queries that become objects; and two problems, slowness and cost |
# | 07, 08 | look at few places, between the cells, on several maps |
# | 09 | Deformable DETR: references, refinement, two stages; on your own functions |
# | 10, 11 | to measure what is said, and to train on photos |
# | 12 | the same numbers in less time |
# | 13 | what others mended since, and where it would go |
#
# Where to go from here? Build one of the ideas and measure it; train on pictures of your own ([11](11_train_on_coco.ipynb)); or read one of the five papers: you know its parts now.

# %% [markdown]
# ## Summary
#
# - Conditional DETR: content and position side by side, so that no cross terms disturb where a query looks; its place is a point in the cells' own code, and $\lambda$ moves and shapes it.
# - DAB-DETR: a query is a box. Its width and height stretch the attention; layers correct it.
# - DN-DETR: noised true boxes and labels as extra queries, which need no match; a mask hides them.
# - DINO: hints with more noise teach "nothing here"; position from proposals, content learned; each loss reaches one layer farther back.
# - RT-DETR: attention on the coarsest map, convolutions for the rest; class scores that know how well the box fits.
# - To try an idea: a field, a test, a row of a study, and an equal search. Until then nothing is known.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `modulated_scores`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 10 minutes
#
# The position part of DAB-DETR's scores (section 3) for all queries and all cells. Codes are laid out as everywhere in the package: the first half of the channels is $y$, the second $x$. Sizes are (width, height).


# %% tags=["exercise"]
def modulated_scores(query, key, size, wanted):
    """query: (N_q, d), key: (N, d), codes of places; size: (N_q, 2), the queries' boxes (w, h);
    wanted: (N_q, 2), the sizes (w_ref, h_ref) that their contents ask for.
    Returns (N_q, N), before the softmax.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Two matrix products, one for each half. Each row of a product belongs to a query, and is multiplied by its ratio. $d$ counts both halves.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("modulated_scores", modulated_scores)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def modulated_scores(query, key, size, wanted):
#     """query: (N_q, d), key: (N, d), codes of places; size: (N_q, 2), the queries' boxes (w, h);
#     wanted: (N_q, 2), the sizes (w_ref, h_ref) that their contents ask for.
#     Returns (N_q, N), before the softmax.
#     """
#     (y_q, x_q), (y_k, x_k) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
#     across, down = (wanted / size).split(1, dim=-1)  # (N_q, 1) each
#     return (x_q @ x_k.T * across + y_q @ y_k.T * down) / query.shape[-1] ** 0.5
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `noised_labels`
#
# Difficulty ●○○○○ · Importance ●●●○○ · about 5 minutes
#
# DN-DETR's wrong labels (section 4). The random numbers come from outside, so that the result can be checked: a label changes where its `chance` is below `share`, and `step` says how many places farther round the classes the wrong one lies. Since a step is 1 to $C - 1$, the wrong class is never the true one. (The authors' code draws from all classes, so that some stay right.)


# %% tags=["exercise"]
def noised_labels(labels, chance, step, share, classes):
    """labels: (T,), in 0..C−1; chance: (T,), in 0..1; step: (T,), in 1..C−1;
    share: of the labels that change, about; classes: C.
    Returns (T,), whole numbers in 0..C−1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `torch.where(which, changed, labels)`. Behind the last class comes class 0 again: `%`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("noised_labels", noised_labels)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def noised_labels(labels, chance, step, share, classes):
#     """labels: (T,), in 0..C−1; chance: (T,), in 0..1; step: (T,), in 1..C−1;
#     share: of the labels that change, about; classes: C.
#     Returns (T,), whole numbers in 0..C−1.
#     """
#     return torch.where(chance < share, (labels + step) % classes, labels)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `denoising_mask`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 10 minutes
#
# DN-DETR's mask (section 4). First come the ordinary queries, then the hints, one group behind the other. Ordinary queries see all ordinary ones and no hint. A hint sees its own group and all ordinary queries.


# %% tags=["exercise"]
def denoising_mask(queries, groups, per_group):
    """queries: N_q; groups: G; per_group: T, hints of a group.
    Returns (N_q + G·T, N_q + G·T), True where the row's query must not see the column's.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Give every query the number of its group, 0 for the ordinary ones. Compare the numbers of rows, `group[:, None]`, with those of columns, `group[None]`. Which columns are never hidden?
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("denoising_mask", denoising_mask)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def denoising_mask(queries, groups, per_group):
#     """queries: N_q; groups: G; per_group: T, hints of a group.
#     Returns (N_q + G·T, N_q + G·T), True where the row's query must not see the column's.
#     """
#     hints = torch.arange(1, groups + 1).repeat_interleave(per_group)  # (G·T,)
#     group = torch.cat((torch.zeros(queries, dtype=torch.long), hints))  # (N_q + G·T,)
#     return (group[None] > 0) & (group[None] != group[:, None])
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `contrastive_boxes`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 10 minutes
#
# DINO's two kinds of hints (section 5). Every number of a box's corners moves by `sign` times a part of its reach, and the reach is `amount` times half of the box's width (for $x$) or height (for $y$). The part is `part[0]` for positive boxes and 1 + `part[1]` for negative ones. Corners stay inside the picture, 0..1.


# %% tags=["exercise"]
def contrastive_boxes(boxes, sign, part, amount):
    """boxes: (T, 4), (cx, cy, w, h) in 0..1; sign: (2, T, 4), −1 or 1, and part: (2, T, 4),
    in 0..1, for the corners (x0, y0, x1, y1).
    Returns (2, T, 4), (cx, cy, w, h): positive boxes, then negative ones.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# From centre and size to corners, add, clamp, and back; `ddetr_lite.set_prediction.boxes` has both ways (import them inside the function). The reach is $(w, h, w, h) / 2 \cdot \text{amount}$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("contrastive_boxes", contrastive_boxes)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def contrastive_boxes(boxes, sign, part, amount):
#     """boxes: (T, 4), (cx, cy, w, h) in 0..1; sign: (2, T, 4), −1 or 1, and part: (2, T, 4),
#     in 0..1, for the corners (x0, y0, x1, y1).
#     Returns (2, T, 4), (cx, cy, w, h): positive boxes, then negative ones.
#     """
#     from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
#
#     reach = boxes[:, 2:].repeat(1, 2) / 2 * amount  # (T, 4): x, y, x, y
#     parts = torch.stack((part[0], part[1] + 1))  # (2, T, 4)
#     corners = cxcywh_to_xyxy(boxes) + sign * parts * reach
#     return xyxy_to_cxcywh(corners.clamp(0, 1))
# ```
#
# </details>

# %% [markdown]
# ## Your own denoising, live
#
# Now your parts work together in the decoder of the course's detector. Where an exercise is not solved, the course's own solution runs.


# %%
from ddetr_lite.course.checking import examine
from ddetr_lite.course.registry import find


def solved(function):
    """Yours if it is right, else the course's own."""
    exercise = find(function.__name__)
    return function if examine(exercise, function) else exercise.reference


# %% tags=["nbval-ignore-output"]
for function in (modulated_scores, noised_labels, denoising_mask, contrastive_boxes):
    whose = "yours" if solved(function) is function else "the course's own"
    print(f"{function.__name__:>18}: {whose}")

# %% [markdown]
# Three groups, each with a positive and a negative hint of the four objects; of the labels, a fifth is to be wrong. Their content gets an embedding of the label (a random one: the detector never learned any).

# %%
torch.manual_seed(4)
G, T, N_q = 3, 8, own.shape[1]  # a group: four positive and four negative hints
embedding = nn.Embedding(shipped.model.classes, model.config.dim)


def make_hints():
    """Boxes (B, G·T, 4) and what their labels add to the content (B, G·T, d), with new noise at
    each call.
    """
    boxes = []
    for _ in range(G):
        sign, part = torch.randn(2, 4, 4).sign(), torch.rand(2, 4, 4)
        boxes.append(solved(contrastive_boxes)(targets[0]["boxes"], sign, part, 0.4))
    step, chance = torch.randint(1, model.classes, (G * T,)), torch.rand(G * T)
    noised = solved(noised_labels)(labels.repeat(2 * G), chance, step, 0.2, model.classes)
    return torch.stack(boxes).flatten(0, 2)[None], embedding(noised)[None]


# %%
def with_hints(hints, words, mask):
    """Boxes and logits of the last layer, (N_q + G·T, ...): ordinary queries first."""
    extra = torch.cat((torch.zeros(1, N_q, words.shape[-1]), words), dim=1)
    boxes, logits = decode(torch.cat((own, hints), dim=1), mask, extra)
    return boxes[-1, 0], logits[-1, 0]


# %% [markdown]
# **Does anything leak?** The decoder runs twice, with other noise and other wrong labels. If the mask is right, the ordinary queries cannot notice: not nearly the same, but exactly the same. And no gradient of their answers reaches a hint. Without the mask neither holds:

# %%
first, second = make_hints(), make_hints()
for name, mask in (("with the mask", solved(denoising_mask)(N_q, G, T)), ("without a mask", None)):
    boxes, logits = with_hints(*first, mask)
    others, _ = with_hints(*second, mask)
    (gradient,) = torch.autograd.grad(boxes[:N_q].sum() + logits[:N_q].sum(), first[1])
    same = torch.equal(boxes[:N_q], others[:N_q])
    zero = not gradient.any()
    print(f"{name}: ordinary boxes are the same: {same}; gradient to the hints is zero: {zero}")

# %% [markdown]
# **And what do the hints say?** Positive and negative ones before and after the decoder, without the random embedding. The detector was trained with positive hints alone, of boxes, and nobody taught it to say "nothing" to the negative ones:

# %%
with torch.no_grad():
    hints, words = make_hints()
    after, logits = with_hints(hints, torch.zeros_like(words), solved(denoising_mask)(N_q, G, T))
table = {}
for name, boxes in (("IoU before", hints[0]), ("IoU after", after[N_q:])):
    corners = cxcywh_to_xyxy(boxes).view(G, 2, 4, 4)  # (G, kind, object, 4)
    table[name] = box_iou(corners, cxcywh_to_xyxy(targets[0]["boxes"])).mean(dim=(0, 2))  # (2,)
scores = logits[N_q:].sigmoid().view(G, 2, 4, -1)  # (G, kind, object, C)
table["score of its class"] = scores[:, :, torch.arange(4), labels].mean(dim=(0, 2))
ax = plots.matrix(torch.stack(list(table.values())), list(table), ["positive", "negative"], limit=1)
plots.show(
    ax,
    alt="Means over the positive and over the negative hints: the IoU with the object before and "
    "after the decoder, and the score of its class. Negative ones have less of all three; both "
    "kinds fit better after the decoder.",
)

# %% [markdown]
# The decoder pulls the negative ones to the object as well, and gives them less than half of the score of the positive ones. DINO's training wants no score there: its negative hints teach which of two queries near an object should say "nothing here". (Hints see the ordinary queries here, as in DN-DETR; this detector was trained with the package's mask.)

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("B", "N", "N_q", "d", "K", "M", "L", "P", "C", "T", "σ", "λ", "G")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("13")

# %% [markdown]
# That was the last notebook. Back to [12 · Fast kernels](12_fast_kernels.ipynb), or to the [start](00_start_here.ipynb), to look at the first picture again, knowing what happens in it, and what others made of it.
