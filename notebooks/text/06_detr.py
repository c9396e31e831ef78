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
# # 06 · DETR: a Transformer that finds objects
#
# All parts are there: attention and its heads, positions, layers, and a loss for sets. Put one after another, with a
# convolutional network in front, they are DETR. In this notebook we write it in a few lines, train it here until it finds
# things, look at where it looks, and measure the two problems that the rest of the course is about.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | say what a convolution, a stride and a feature map are; write DETR, and say what each of its parts is for; train it and see that it learns; draw where an object's query looks; show how slowly DETR learns and how its cost grows; recognise seven ways to get nothing useful out of it |
# | **You need first** | [01](01_self_attention.ipynb) to [05 · The Hungarian loss](05_hungarian_loss.ipynb) |
# | **Time** | 135 minutes to read and run, 35 for the exercises |
# | **Device** | any CPU; one cell trains for about two minutes, some others for a few seconds, and nothing is downloaded |

# %%
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ddetr_lite import course, plots
from ddetr_lite.layers import attention, transformer
from ddetr_lite.layers.positional_encoding import sine_encoding_2d
from ddetr_lite.models.backbone import Backbone, BackboneConfig
from ddetr_lite.models.detector import MLP
from ddetr_lite.models.detr import Detr, DetrConfig
from ddetr_lite.plots.detection import boxes as draw_boxes
from ddetr_lite.plots.detection import query_centres
from ddetr_lite.set_prediction import losses, matching
from ddetr_lite.set_prediction.boxes import box_iou, cxcywh_to_xyxy

# %%
torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)
scene = course.picture()

# %% [markdown]
# ## 1. From pixels to tokens
#
# In 01 a token of the picture was the mean colour of a patch. A colour says little. A **convolution** says more: it lays a small table of numbers,
# the *kernel*, over every place of the picture, multiplies and adds up. Large results mean, *here is what I look for*. This one looks for edges, dark on the left and bright on the right:
#
# $$\tfrac{1}{4}\begin{pmatrix} -1 & 0 & 1 \\ -2 & 0 & 2 \\ -1 & 0 & 1 \end{pmatrix}$$

# %%
grey = scene.pixels.float().mean(dim=0) / 255  # (96, 96)
kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4


def convolve(image, kernel):
    """image: (H, W), kernel: (3, 3). Returns (H − 2, W − 2)."""
    height, width = image.shape[0] - 2, image.shape[1] - 2
    result = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            result[y, x] = (image[y : y + 3, x : x + 3] * kernel).sum()
    return result


edges = convolve(grey, kernel)
theirs = nn.functional.conv2d(grey[None, None], kernel[None, None])[0, 0]
print("torch within 1e-6:", (edges - theirs).abs().max().item() < 1e-6)

# %%
drawn, axes = plots.panels(2, height=3.2)
plots.picture(scene.pixels, "the picture", ax=axes[0])
plots.matrix(edges, signed=True, limit=0.3, numbers=False, title="the kernel's answer", ax=axes[1])
plots.show(
    drawn,
    alt="The picture, and the kernel's answer: blue at edges that get brighter to the right, "
    "orange where they get darker.",
)

# %% [markdown]
# Blue: brighter to the right; orange: darker. A **stride** of 2 looks only at every second place in $x$ and $y$: a
# quarter of the answers, a coarser map. And a layer has many kernels, each with a table for every channel of its input:
# their answers are the **channels** of the result. (`padding=1` puts a frame of zeros around the picture, so that the
# kernel can stand on its border too.)

# %%
every_second = nn.functional.conv2d(grey[None, None], kernel[None, None], stride=2)[0, 0]
print("stride 2 = every second answer:", torch.allclose(every_second, theirs[::2, ::2], atol=1e-6))
layer = nn.Conv2d(3, 32, kernel_size=3, stride=2, padding=1)
answer = layer(scene.pixels[None].float() / 255)  # (B, C, H, W)
kernels = tuple(layer.weight.shape)
print("from 3 colours to 32 channels:", tuple(answer.shape), "with kernels", kernels)

# %% [markdown]
# Convolutions one after another, with a ReLU and a norm between them, and *residuals* as in 04, make a **backbone**. Each stride halves the map; the kernels are learned. (DETR takes a ResNet-50 that had learned on ImageNet, over a million photos with a name each, before it saw a box; ours begins from random numbers, which is enough for drawn shapes.) The first convolutions see
# a few pixels, later ones see answers of answers, and so a larger and larger part of the picture. (The norm here is a *group norm*: a layer norm over a group of channels, at all places of a picture together. A ResNet, the backbone of the paper, has a *batch norm*, whose means were
# taken over many pictures. DETR *freezes* it, that is, never changes it.) What comes out at the end is the **feature map**. Here is that of a DETR which ships with this course:

# %%
shipped = course.detector("detr")
x = shipped.model.batch([scene.pixels]).pixels  # (B, 3, H, W), normalised
for name, step in shipped.model.backbone[0].body.named_children():
    x = step(x).detach()
    if name.startswith(("conv", "layer")):
        _, channels, height, width = x.shape
        print(f"{name}: {channels} channels of {height} × {width} cells, stride {96 // height}")

# %%
peaks = {}  # a channel for each of four places, the strongest first
for channel in x[0].amax(dim=(1, 2)).argsort(descending=True).tolist():
    row, column = divmod(int(x[0, channel].argmax()), x.shape[3])
    if len(peaks) < 4 and all(abs(row - r) + abs(column - c) > 3 for r, c in peaks.values()):
        peaks[channel] = (row, column)
drawn, axes = plots.panels(5, height=2.0)
plots.picture(scene.pixels, "the picture", ax=axes[0])
for ax, channel in zip(axes[1:], peaks):
    plots.matrix(x[0, channel], numbers=False, title=f"channel {channel}", ax=ax)
plots.show(
    drawn,
    alt="The picture and four channels of its feature map, 12 × 12 cells each; each is strongest "
    "at another place.",
)

# %% [markdown]
# Dark is a strong answer; each channel is strongest at another place. Now each cell is a token: its channels are the
# vector. A convolution with a 1 × 1 kernel (a matrix product at every cell) brings them to $d$ channels, and the map is
# read row by row.

# %%
feature = shipped.model.input_proj(x)  # (B, d, H, W)
tokens = feature.flatten(2).transpose(1, 2)  # (B, N, d)
print("map (B, d, H, W):", tuple(feature.shape), "→ tokens (B, N, d):", tuple(tokens.shape))
row, column = 5, 7
same = torch.equal(tokens[0, 12 * row + column], feature[0, :, row, column])
print("token 5·12 + 7 is the cell in row 5, column 7:", same)


# %% [markdown]
# ## 2. DETR in a few lines
#
# Tokens of the picture with their sines (03) go through an encoder (04). A decoder (04) has **object queries**: $N_q$
# learned vectors. They look at one another and at the memory, and each becomes a class and a box. That is all.

# %%
plots.show(
    course.architecture("detr"),
    alt="DETR as blocks: pixels, backbone, 1 × 1 convolution, encoder; its memory and the object "
    "queries go into the decoder, whose results go to a class head and a box head. The cells' "
    "sines go to encoder and decoder.",
)

# %% [markdown]
# In numbers, ours in this notebook beside that of the paper:
#
# | | here | the paper |
# |:--|:--|:--|
# | pictures | 64 × 64 pixels | up to 800 × 1333 |
# | backbone | a small ResNet with group norms, from random weights, stride 8 | ResNet-50 with ImageNet weights, stride 32 |
# | channels of a token, $d$ | 64 | 256 |
# | layers of encoder and decoder | 2 and 3 | 6 and 6 |
# | heads; inner width of the feed-forward | 4; 128 | 8; 2048 |
# | object queries | 10 | 100 |
# | classes | 3 | 91 ids of COCO |
# | dropout | none | 0.1 |
# | training | 2000 steps with 16 pictures | 500 epochs with 118,000 pictures, AdamW, learning rate 1e-4, backbone 1e-5 |


# %%
class SmallDetr(nn.Module):
    def __init__(self, classes, d=64, heads=4, hidden=128, queries=10):
        super().__init__()
        self.backbone = Backbone(BackboneConfig("small", frozen=False), strides=(8,))
        self.input_proj = nn.Conv2d(64, d, kernel_size=1)
        self.encoder = transformer.Encoder(d, heads, hidden, layers=2, dropout=0.0)
        self.decoder = transformer.Decoder(d, heads, hidden, layers=3, dropout=0.0)
        self.query_embed = nn.Embedding(queries, d)
        self.class_embed = nn.Linear(d, classes + 1)  # with "no object"
        self.bbox_embed = MLP(d, d, 4, layers=3)

    def forward(self, pixels, padding):
        """pixels: (B, 3, H, W); padding: (B, h, w). Returns logits and boxes of each layer."""
        feature = self.input_proj(self.backbone(pixels)[0])  # (B, d, h, w)
        tokens = feature.flatten(2).transpose(1, 2)  # (B, N, d)
        position = sine_encoding_2d(padding, tokens.shape[-1]).flatten(1, 2)  # (B, N, d)
        hidden = self.answers(tokens, position, padding.flatten(1))  # (K, B, N_q, d)
        return self.class_embed(hidden), self.bbox_embed(hidden).sigmoid()


# %%
def answers(self, tokens, position, padding):
    """The Transformer: from tokens (B, N, d) to a vector for each layer, picture and query."""
    memory = self.encoder(tokens, position, padding)  # (B, N, d)
    where = self.query_embed.weight.expand(len(tokens), -1, -1)  # queries as positions, (B, N_q, d)
    content = torch.zeros_like(where)  # they have seen nothing yet
    return self.decoder(content, memory, where, position, padding)  # (K, B, N_q, d)


SmallDetr.answers = answers  # a method of the class, written here only to keep both cells short

# %% [markdown]
# The decoder hands out what *every* of its layers says, each after one more layer norm, which all layers share; so the two heads can read off all of them, as the loss of 05 wants. The box head is a small network of three layers (an **MLP**: matrices with ReLUs between them), and its sigmoid keeps boxes in 0..1. With the loss of 05 this is all of DETR, in about fifty lines.

# %%
small = SmallDetr(classes=3)
pixels, padding = torch.randn(2, 3, 64, 64), torch.zeros(2, 8, 8, dtype=torch.bool)
with torch.no_grad():
    logits, boxes = small(pixels, padding)
print("logits (K, B, N_q, C+1):", tuple(logits.shape))
print("boxes  (K, B, N_q, 4):  ", tuple(boxes.shape))
print(f"{sum(p.numel() for p in small.parameters()):,} parameters")

# %% [markdown]
# ### The package's
#
# `models/detr.py` does the same, and can also take pictures of different sizes, any backbone of torchvision, and learned positions. Its parameters have the official code's names, so we
# need to rename ours. (`no_object=0.4` is explained in section 4.)

# %%
small_backbone = BackboneConfig("small", frozen=False)
sizes = {
    "stride": 8,
    "queries": 10,
    "dim": 64,
    "heads": 4,
    "hidden": 128,
    "encoder_layers": 2,
    "decoder_layers": 3,
}
loss = replace(losses.DETR_LOSS, no_object=0.4)
config = DetrConfig(small_backbone, dropout=0.0, loss=loss, **sizes)
package = Detr(config, classes=3)
# %%
rename = {
    "backbone.": "backbone.0.",
    "encoder.": "transformer.encoder.",
    "decoder.": "transformer.decoder.",
}
state = {}
for name, tensor in small.state_dict().items():
    old = name.split(".")[0] + "."
    state[name.replace(old, rename.get(old, old), 1)] = tensor
_ = package.load_state_dict(state)

# %%
pictures = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
batch = package.batch(pictures)
with torch.no_grad():
    ours, theirs = small(batch.pixels, padding), package.outputs(batch)
print("logits within 1e-6:", (ours[0] - theirs.logits).abs().max().item() < 1e-6)
print("boxes within 1e-6: ", (ours[1] - theirs.boxes).abs().max().item() < 1e-6)

# %% [markdown]
# And a reference from elsewhere: the DETR of Hugging Face, with a ResNet-18 in front and the same random weights.

# %%
from transformers.utils import logging

from ddetr_lite.convert.hugging_face import hugging_face_model

logging.disable_progress_bar()

resnet18 = BackboneConfig("resnet18", frozen=True)
resnet_config = DetrConfig(resnet18, dropout=0.0, **{**sizes, "stride": 32})
with_resnet = Detr(resnet_config, classes=3).eval()
theirs = hugging_face_model(with_resnet)
batch = with_resnet.batch(pictures)
with torch.no_grad():
    ours = with_resnet.outputs(batch)
    found = theirs(pixel_values=batch.pixels, pixel_mask=(~batch.mask).long())
print("logits within 1e-5:", (ours.logits[-1] - found.logits).abs().max().item() < 1e-5)
print("boxes within 1e-6: ", (ours.boxes[-1] - found.pred_boxes).abs().max().item() < 1e-6)

# %% [markdown]
# ## 3. What are object queries?
#
# In 04 we asked the picture for colours: "teal?" An object query is such a question, but nobody wrote it: its numbers are trained. At the start they are random. Why must they differ?
#
# > **Claim:** ten queries are ten chances, so it does not matter what they are.
# >
# > **Measurement:** give all ten the same numbers.


# %%
@torch.no_grad()
def difference_between_queries(model):
    """How much the boxes of different queries differ: their mean spread over the queries."""
    _, boxes = model(batch_pixels, padding)  # (K, B, N_q, 4)
    return boxes.std(dim=2).mean().item()


batch_pixels = torch.randn(2, 3, 64, 64)
print("with their own numbers, boxes differ:", difference_between_queries(small) > 1e-5)
own = small.query_embed.weight.data.clone()
small.query_embed.weight.data[:] = own[0]
print("with the same numbers, boxes differ: ", difference_between_queries(small) > 1e-5)
small.query_embed.weight.data[:] = own

# %% [markdown]
# Same question, same answer: in the decoder nothing else tells one query from another (01: attention does not know places). Ten equal queries say one thing ten times.
#
# The queries are used as *positions*. In self-attention they are added to queries and keys; in cross-attention to the queries, while the keys carry the sines of 03; never to the values. So they say *who asks*, while the content, which begins at zero, collects
# *what was found*. In the first decoder layer nothing has been found, so their self-attention has nothing to hand over yet: its values are made from zeros, the same for all. From the second layer on queries can tell one another what they have. (Section 5 shows what for.)

# %% [markdown]
# ## 4. Train it
#
# The task has to be small enough for two minutes on a CPU: pictures of 64 × 64 pixels, one to three objects, of three kinds. We write 2000 such pictures for training and 200 to judge by, in COCO's format, the way in which all
# data of this package come.

# %%
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder, collate
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.datasets.transforms import AugmentConfig, train_transform

KINDS = ("circle", "square", "star")
task = ShapesConfig(
    size=64, train_images=2000, val_images=200, max_objects=3, min_size=0.3, classes=KINDS
)
folder = write_shapes(Path(tempfile.mkdtemp()) / "shapes", task, progress=False)
turns = AugmentConfig(
    short_sides=(), eval_short_side=0, crop=False, flip_vertical=True, quarter_turn=True
)
training = CocoDetection(CocoFolder.find(folder, "train"), train_transform(turns), cache=True)
validation = CocoDetection(CocoFolder.find(folder, "val"), cache=True)
print(len(training), "pictures to learn from,", len(validation), "to judge by")

# %%
drawn, axes = plots.panels(4, height=2.2)
for i, ax in enumerate(axes):
    image, target = validation[i]
    draw_boxes(image, target["boxes"], [KINDS[k] for k in target["labels"]], ax=ax)
plots.show(
    drawn,
    alt="Four pictures of the task with boxes around circles, squares and stars on textured "
    "grounds.",
)

# %% [markdown]
# Pictures and targets in, a dict of losses out, all of them added up; we train the package's class, with fresh weights. Pictures are flipped and turned at random, so that 2000 are worth more. Four things are new:
#
# - *AdamW*, an Adam that in every step also makes the weights a little smaller ([paper](https://arxiv.org/abs/1711.05101)), is DETR's optimizer. To fit into two minutes we give it only biases, norms and embeddings, and matrices to
#   *Muon* ([its author's page](https://kellerjordan.github.io/posts/muon/)): a gradient pushes a matrix strongly in a few directions and hardly in the others, and Muon makes its step equally long in all. Think of it as a faster Adam. Each group of parameters has a `factor` by which the learning rate is multiplied; `backbone_lr` is that of the backbone.
# - The learning rate begins small (*warm-up*) and then falls to zero.
# - A gradient longer than 0.1 is shortened (*clipping*). That does not bound a step, whose length AdamW and Muon choose themselves; it keeps one very long gradient from outweighing all others in the running mean that they follow.
# - "No object" weighs 0.4 instead of 0.1, since there are 10 queries and not 100.
#
# While it trains, we keep what it says about a few pictures of the validation set.

# %%
from ddetr_lite.engine.optimization import learning_rate, make_optimizers
from ddetr_lite.engine.recipes import TrainConfig

SETTINGS = TrainConfig(
    epochs=1, lr=3e-3, optimizer="muon", backbone_lr=1.0, warmup_steps=50, schedule="linear"
)


def descend(model, total, optimizers, rate):
    """One step downhill from `total`, the sum of the losses, at this learning rate."""
    for group in [group for optimizer in optimizers for group in optimizer.param_groups]:
        group["lr"] = rate * group["factor"]  # Muon and AdamW have different ones
    model.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    for optimizer in optimizers:
        optimizer.step()


# %%
def train(model, steps, look):
    """Batches of 16; calls `look(model, step)` every 100 steps. Returns the loss of every step."""
    optimizers, seen = make_optimizers(model, SETTINGS), []
    for step in range(steps):
        chosen = torch.randint(len(training), (16,)).tolist()
        images, targets = collate([training[step, i] for i in chosen])  # turned anew in every step
        total = sum(model.train()(images, targets).values())
        descend(model, total, optimizers, learning_rate(step, SETTINGS, steps))
        seen.append(total.item())
        if (step + 1) % 100 == 0:
            look(model, step + 1)
    return seen


# %% [markdown]
# What we keep: the ten boxes on one picture, and for 40 pictures, which query each object is matched with.

# %%
watched, watched_targets = collate([validation[i] for i in range(40)])
history = {"boxes": {}, "match": []}


@torch.no_grad()
def look(model, step):
    """What the model says now about the pictures that we watch."""
    model.eval()
    batch = model.batch(watched)
    outputs = model.outputs(batch)
    wanted = model.normalise_targets(watched_targets, batch.sizes)
    last = outputs.logits[-1:], outputs.boxes[-1:]
    match = matching.match(*last, wanted, config.loss.matching, "softmax")
    history["boxes"][step] = (outputs.logits[-1, 1].softmax(-1), outputs.boxes[-1, 1])
    pairs = zip(match.picture.tolist(), match.target.tolist(), match.query.tolist())
    history["match"].append({(p, t): q for p, t, q in pairs})


# %% [markdown]
# **This cell trains**: 2000 steps, one to two minutes on two cores.

# %%
torch.manual_seed(0)
detr = Detr(config, classes=3)
look(detr, 0)
seen = train(detr, 2000, look)
first, last = sum(seen[:50]), sum(seen[-50:])
print("the loss at the end is less than half of that at the start:", last < 0.5 * first)

# %%
means = [sum(seen[i : i + 50]) / 50 for i in range(0, 2000, 50)]
steps, lines = list(range(50, 2001, 50)), {"all terms": means}
ax = plots.curves(steps, lines, "The loss while it trains", "steps", "mean of 50 steps")
plots.show(ax, alt="The loss falls from above ten, quickly at first, then slowly and steadily.")

# %% [markdown]
# And what it said about one picture on the way. A model that has hardly begun is sure of nothing, so we draw the three surest of its ten boxes, whatever their scores; the less sure, the paler:

# %%
drawn, axes = plots.panels(4, height=2.2)
surest = {}
for ax, step in zip(axes, (0, 500, 1000, 2000)):
    probabilities, boxes = history["boxes"][step]
    scores, labels = probabilities[:, :-1].max(dim=-1)
    surest[step], best = scores.topk(3)
    corners, names = cxcywh_to_xyxy(boxes[best]) * 64, [KINDS[k] for k in labels[best]]
    draw_boxes(watched[1], corners, names, surest[step].tolist(), title=f"step {step}", ax=ax)
    for box, score in zip(ax.patches, surest[step].tolist()):
        box.set_alpha(0.3 + 0.7 * score)
plots.show(
    drawn,
    alt="The three surest boxes on one picture after 0, 500, 1000 and 2000 steps: at first in a "
    "heap in the middle, then apart and pale, at the end around the objects, most of them strong.",
)

# %%
start = history["boxes"][0][1] * 64  # (N_q, 4), in pixels
print("at step 0 the ten boxes differ by more than a pixel:", bool((start.std(dim=0) > 1).any()))
surer = surest[2000].mean() > 2 * surest[500].mean()
print("at the end twice as sure as at step 500:", bool(surer))

# %% [markdown]
# At first all queries say nearly the same. Then their boxes part and move to where something is, while names and scores still waver. In the end most of the scores grow; where one stays pale, the name is often wrong, too. Over all 200 pictures of the validation set (AP50 is AP at an IoU of 0.5 alone):

# %%
from ddetr_lite.engine.evaluate import evaluate

metrics = evaluate(detr, validation)
print("AP of at least 0.4:  ", metrics["AP"] > 0.4)
print("AP50 of at least 0.6:", metrics["AP50"] > 0.6)

# %%
drawn, axes = plots.panels(4, height=2.2)
detr.eval()
for i, ax in enumerate(axes, start=10):
    image, _ = validation[i]
    with torch.no_grad():
        found = detr([image])[0]
    sure = found["scores"] > 0.5
    boxes, scores = found["boxes"][sure], found["scores"][sure].tolist()
    draw_boxes(image, boxes, [KINDS[k] for k in found["labels"][sure]], scores, ax=ax)
plots.show(
    drawn,
    alt="Four pictures of the validation set with the boxes that the trained DETR is surer of than "
    "0.5.",
)

# %% [markdown]
# It finds objects in pictures that it never saw: no anchors, no rule, no NMS. Two minutes are short, though: it still misses some, and may name one twice, even by two names. The queries have not yet divided the work cleanly.
#
# ### Queries have preferences
#
# Over all 200 pictures: where are each query's boxes with a score above 0.5? One dot for each, at its centre; orange if the box is larger than a fifth of the picture.

# %%
with torch.no_grad():
    images, _ = collate([validation[i] for i in range(200)])
    outputs = detr.outputs(detr.batch(images))
sure = outputs.logits[-1].softmax(-1)[..., :-1].amax(dim=-1) > 0.5  # (B, N_q)
plots.show(
    query_centres(outputs.boxes[-1], sure),
    alt="Ten small maps, one for each query, with a dot for the centre of each of its sure boxes: "
    "most prefer a region, and some share one.",
)

# %% [markdown]
# Most have a region that they prefer; some share one, and a few hardly ever or never speak. Nobody told them to: the match has divided the work in this way. In the paper's figure 7, which shows 20 of its 100 queries on COCO, it is the same: each prefers regions and sizes of boxes, and nearly all also have boxes as wide as the picture.

# %% [markdown]
# ### The match moves
#
# 05 left a question open: how often is an object given to another query than before? Counted for 40 pictures, every 100 steps:

# %%
moved = [
    sum(old[key] != new[key] for key in new) / len(new)
    for old, new in zip(history["match"], history["match"][1:])
]
steps, lines = list(range(100, 2001, 100)), {"moved": moved}
ax = plots.curves(steps, lines, "Objects whose query changed", "steps", "share")
plots.show(
    ax,
    alt="The share of objects whose matched query changed within 100 steps: high at first, falling "
    "as training goes on.",
)
print("less at the end than at the start:", sum(moved[-4:]) < sum(moved[:4]))

# %% [markdown]
# (At the end the learning rate is near zero, and everything comes to rest.) As long as the match moves, a query is told one thing now and another later. It has been argued that this is a main reason for DETR's slowness: DN-DETR (Li et al. 2022) gives some queries a noisy copy of
# a true box while they train, so that nothing has to be matched for them, and learns faster.

# %% [markdown]
# ## 5. Where does it look?
#
# For this we take the DETR that ships with the course. It was trained with the same code, for longer, on pictures of 96 pixels with eight kinds of objects (`data/results/shapes-detr` has command and log). On our picture:

# %%
model = shipped.model
with attention.record_attention(model) as weights, torch.no_grad():
    found = model([scene.pixels])[0]
sure = found["scores"] > 0.5
names = [shipped.classes[k] for k in found["labels"][sure]]
boxes, scores = found["boxes"][sure], found["scores"][sure].tolist()
ax = draw_boxes(scene.pixels, boxes, names, scores, title="DETR on our picture")
plots.show(ax, alt="The picture of the course with the boxes that the shipped DETR finds.")

# %%
LAST = f"transformer.decoder.layers.{model.config.decoder_layers - 1}.multihead_attn"
cells = 96 // model.config.stride
with torch.no_grad():
    batch = model.batch([scene.pixels])
    outputs = model.outputs(batch)
labels = torch.tensor([shipped.classes.index(name) for name in scene.names])
wanted = model.normalise_targets([{"boxes": scene.boxes, "labels": labels}], batch.sizes)
last = outputs.logits[-1:], outputs.boxes[-1:]
match = matching.match(*last, wanted, model.loss.matching, "softmax")
query_of = dict(zip(match.target.tolist(), match.query.tolist()))  # object → query

# %%
drawn, axes = plots.panels(4, height=2.2)
for (t, query), ax in zip(sorted(query_of.items()), axes):
    table = weights[LAST][0, :, query].mean(dim=0).reshape(cells, cells)  # the mean of all heads
    title = f"query {query}: {scene.names[t]}"
    plots.attention_over_picture(scene.pixels, table, title=title, ax=ax)
plots.show(
    drawn,
    alt="Where the four queries look that are matched with the four objects, drawn over the "
    "picture: each lights up on and around its object.",
)

# %% [markdown]
# > **Claim:** each query looks at its object.
# >
# > **Measurement:** the weight that falls into the query's own box, against what would fall there if it looked everywhere equally. 60 pictures, all detections surer than 0.5.

# %%
from ddetr_lite.datasets.shapes import render_picture

centre = (torch.arange(cells) + 0.5) / cells


@torch.no_grad()
def weight_around(pixels, margin):
    """For each detection: the weight on the cells of its box, `margin` wider, and their share."""
    with attention.record_attention(model) as weights:
        outputs = model.outputs(model.batch([pixels]))
    scores = outputs.logits[-1, 0].softmax(-1)[:, :-1].max(dim=-1).values
    for query in (scores > 0.5).nonzero()[:, 0].tolist():
        box = cxcywh_to_xyxy(outputs.boxes[-1, 0, query])
        x0, y0, x1, y1 = box + torch.tensor([-1, -1, 1, 1]) * margin
        row, column = (centre > y0) & (centre < y1), (centre > x0) & (centre < x1)
        within = (row[:, None] & column).flatten()  # (N,)
        yield weights[LAST][0].mean(dim=0)[query][within].sum().item(), within.float().mean().item()


# %%
for margin, name in ((0, "in the box"), (1 / cells, "or within a cell of it")):
    pairs = []
    for index in range(100, 160):
        pixels, _ = render_picture(ShapesConfig(), "val", index)
        pairs += weight_around(torch.from_numpy(pixels.copy()).permute(2, 0, 1), margin)
    inside, chance = (sum(values) / len(pairs) for values in zip(*pairs))
    print(f"{name}: more than twice what an even look would put there: {inside > 2 * chance}")
print("for every single detection more than an even look:", all(a > b for a, b in pairs))
print("together more than half of the weight:", inside > 0.5)

# %% [markdown]
# So a good half of the weight lies on the object or right beside it; the rest is spread over the picture. (Perhaps a border is known by what lies on both sides of it; that we have not tested.)
#
# ### And in the encoder?
#
# > **Claim:** the encoder tells objects apart: a cell on an object looks at its own object. (Figure 3 of the paper shows this, for a DETR on COCO.)
# >
# > **Measurement:** how strongly the cells in an object's box look at cells in that box, in boxes of the other objects, and at the ground, in the last encoder layer. 1 is an even look.

# %%
ENCODER = f"transformer.encoder.layers.{model.config.encoder_layers - 1}.self_attn"


def cells_in(annotation):
    """(N,), boolean: the cells whose centre lies in the box, (x, y, width, height) in pixels."""
    x, y, width, height = (side / 96 for side in annotation["bbox"])
    row, column = (centre > y) & (centre < y + height), (centre > x) & (centre < x + width)
    return (row[:, None] & column).flatten()


# %%
@torch.no_grad()
def looks(pixels, annotations):
    """For each object: how strongly its cells look at its own box, at others, and at the ground."""
    with attention.record_attention(model) as weights:
        model.outputs(model.batch([pixels]))
    table = weights[ENCODER][0].mean(dim=0) * cells**2  # (N, N), 1 is an even look
    inside = torch.stack([cells_in(one) for one in annotations])  # (T, N)
    ground = ~inside.any(dim=0)
    for own in inside:
        others = ~ground & ~own
        if own.any() and others.any():
            yield [table[own][:, where].mean().item() for where in (own, others, ground)]


# %%
rows = []
for index in range(100, 160):
    pixels, annotations = render_picture(ShapesConfig(), "val", index)
    rows += looks(torch.from_numpy(pixels.copy()).permute(2, 0, 1), annotations)
own, others, ground = torch.tensor(rows).mean(dim=0).tolist()
print(f"at its own object {own:.1f}, at other objects {others:.1f}, at the ground {ground:.1f}")

# %% [markdown]
# Hardly: a cell looks at other objects almost as much as at its own, and at both only a little more than at the ground. Two layers, trained on drawn shapes, leave it to the decoder to tell which cells belong together. A figure of attention in a paper shows one model on one picture. Measure your own model.
#
# ### What do the queries say to one another?
#
# > **Claim:** a decoder needs cross-attention alone; self-attention among the queries could be left out.
# >
# > **Measurement:** switch it off (its result becomes zero, layer by layer), and count the detections surer than 0.5 that say again what a surer one says: same class, IoU above 0.5. The same 60 pictures.


# %%
@torch.no_grad()
def said_again(silent=()):
    """How many sure detections 60 pictures have; how many repeat one. silent: decoder layers."""
    zeros = lambda module, given, out: torch.zeros_like(out)
    layers = [model.transformer.decoder.layers[k].self_attn for k in silent]
    hooks = [layer.register_forward_hook(zeros) for layer in layers]
    count = again = 0
    for index in range(100, 160):
        pixels, _ = render_picture(ShapesConfig(), "val", index)
        found = model([torch.from_numpy(pixels.copy()).permute(2, 0, 1)])[0]  # the surest first
        boxes, labels = (found[name][found["scores"] > 0.5] for name in ("boxes", "labels"))
        same = (box_iou(boxes[:, None], boxes) > 0.5) & (labels[:, None] == labels)
        again += same.tril(-1).any(dim=1).sum().item()  # below the diagonal: with one that is surer
        count += len(boxes)
    for hook in hooks:
        hook.remove()
    return count, again


# %%
talking, talking_again = said_again()
silent, silent_again = said_again(range(model.config.decoder_layers))
print(f"as trained, said again: {talking_again / talking:.1f} of all sure detections")
more, again = silent / talking, silent_again / silent
print(f"silent: {more:.1f} times as many of them, and said again: {again:.1f}")

# %% [markdown]
# The claim is wrong. If they cannot talk, four times as many queries speak up, and two of five of those say what a surer one has said. So this is where "one object, one query" is agreed on: the loss of 05 asks for it, and here is the part that does it, in place of NMS. No other part can do it: elsewhere in the decoder each query is worked on by itself, so in a model trained without self-attention, too, none could know what the others say. (Some still say a thing again, in a model with as little training as ours.)

# %% [markdown]
# ## 6. Two problems
#
# ### It learns slowly
#
# Four trainings, from the logs that come with the course: on the same 4000 pictures of 96 pixels, with the same backbone, kind of optimizer and *augmentation* (pictures changed at random, as by the flips above). An *epoch* is one pass over all training pictures. The four are DETR with a schedule of 8 epochs, DETR with 36 (the one that we just looked at), and two Deformable DETRs: the plain one with 8 epochs, and one like that of 00 with 6 ([09](09_deformable_detr.ipynb) says what it has besides; that of 00 itself learned for 36, too).

# %%
from ddetr_lite.plots.training import training_curves

runs = {
    "DETR, 8 epochs": "shapes-detr-eight-epochs",
    "DETR, 36 epochs": "shapes-detr",
    "Deformable DETR": "shapes-deformable-eight-epochs",
    "Deformable DETR as in 00": "shapes",
}
logs = {name: course.run_log(folder) for name, folder in runs.items()}
plots.show(
    training_curves(logs),
    alt="Loss, AP and learning rate against epochs. Both Deformable DETRs are far up after few "
    "epochs; DETR needs many more to come as far.",
)

# %%
for name, lines in logs.items():
    end = [line for line in lines if line["kind"] == "evaluate"][-1]
    print(
        f"{name:>24}: {end['epoch']:>2} epochs, AP {end['AP']:.2f}, "
        f"of small objects {end['AP_small']:.2f}"
    )

# %% [markdown]
# Look at AP; the losses are sums of different terms. (Of the learning rates the chart shows AdamW's, whose peak is the
# same for all; the two runs of 8 epochs have one line.) This is not yet the fair comparison (sizes, Muon's learning
# rates and losses differ, and each is one run): that one, with three random starts (*seeds*) and the same search for
# settings for both, is the subject of [10](10_convergence_and_ablations.ipynb). (*Small* here is an object whose
# $\sqrt{\text{area}}$ is below a fifth of the picture's side; in COCO's own scores it is below 32 pixels.) The
# Deformable DETR paper, in its table 1, has 500 epochs on COCO for DETR, and 50 for its own model. Why is DETR slow?
# The moving match may be one reason. Another is the one that the Deformable DETR paper gives, and it can be seen at the
# start: a new attention layer looks everywhere equally (half of the weight on half of the cells), and has to learn to
# look at a few.

# %%
torch.manual_seed(1)
needed = {}
for name, one in (("new", Detr(model.config, classes=8).eval()), ("trained", model)):
    with attention.record_attention(one) as weights, torch.no_grad():
        one.outputs(one.batch([scene.pixels]))
    w = weights["transformer.decoder.layers.1.multihead_attn"][0].mean(dim=0)  # (N_q, N)
    strongest = w.sort(dim=-1, descending=True).values
    cells_for_half = (strongest.cumsum(-1) < 0.5).sum(dim=-1).float() + 1
    needed[name] = cells_for_half.mean().item() / w.shape[-1]
print(f"new: half of a query's weight lies on {needed['new']:.1f} of all cells")
print("trained, on less than half as many:", needed["trained"] < needed["new"] / 2)

# %% [markdown]
# ### Its cost grows with the square of the pixels
#
# Every cell looks at every cell: $N^2$ weights (01). What that means for a photo of 800 × 1333 pixels, with eight heads:

# %%
for stride in (32, 16, 8):
    n = math.ceil(800 / stride) * math.ceil(1333 / stride)
    print(
        f"stride {stride:>2}: N = {n:>6,} tokens, {8 * n**2:>13,} weights a layer, "
        f"{8 * n**2 * 4 / 2**20:>5,.0f} MiB in float32"
    )

# %% [markdown]
# So DETR takes stride 32. A cell is then 32 × 32 pixels, and a small object is less than one cell; on COCO, the DETR paper says, it is weaker than Faster R-CNN, the best-known detector with anchors, on small objects (AP 0.205 against 0.266). In ours this cannot be seen, for on 96 pixels it could afford a stride of 8. Measured, one encoder layer on maps of growing size:

# %%
layer = transformer.EncoderLayer(64, heads=4, hidden=128, dropout=0.0)
sides, seconds = [16, 23, 32, 45, 64], []
for cells_a_side in sides:
    tokens = torch.randn(1, cells_a_side**2, 64)
    took = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.no_grad():
            layer(tokens)
        took.append(time.perf_counter() - start)
    seconds.append(min(took))

# %%
relative = [s / seconds[0] for s in seconds]
tokens = [n * n for n in sides]
straight = {"∝ N": [n / 256 for n in tokens], "∝ N²": [(n / 256) ** 2 for n in tokens]}
lines = {"measured": relative, **straight}
title, ylabel = "Time of an encoder layer", "time, relative to 256 tokens"
ax = plots.curves(tokens, lines, title, "tokens N", ylabel, log="xy", dashed=list(straight))
plots.show(
    ax,
    alt="Time against tokens on logarithmic axes: the measured line is steeper than proportional "
    "to N, and bends towards N².",
)
print("16 times the tokens cost more than 30 times the time:", relative[-1] > 30)

# %% [markdown]
# At first what grows with $N$ costs most, the projections and the feed-forward; the part with $N^2$ takes over on large
# maps. (So it is not 256 times the time for 16 times the tokens, but towards the end each doubling of $N$ costs nearly
# four times as much.)
#
# Slow to learn, and fine maps are too dear. **Both have to do with looking everywhere.** What if a query looked at just a few places, and learned where? That is [07](07_deformable_attention.ipynb).

# %% [markdown]
# ## 7. A gallery of failures
#
# "DETR learns nothing on my data" is what its authors were told again and again. Here are seven ways to get nothing useful out of it, most of them from real threads, each caused on purpose. The first instrument is the one that an author of DETR advises
# ([detr#311](https://github.com/facebookresearch/detr/issues/311)): **overfit a few pictures.** A healthy model learns four pictures by heart within seconds. The second: **look at what it then says**, for a spoilt run can have a low loss.


# %%
def overfit(steps=150, classes=3, change=lambda targets: targets, **options):
    """A new DETR learns four pictures by heart. `change` may spoil their targets.
    Returns the model and the last loss.
    """
    torch.manual_seed(0)
    model = Detr(replace(config, **options), classes)
    optimizers, batch = make_optimizers(model, SETTINGS), model.batch(four)
    wanted = change(model.normalise_targets(four_targets, batch.sizes))
    for step in range(steps):
        total = sum(losses.set_losses(model.outputs(batch), wanted, model.loss).values())
        descend(model, total, optimizers, learning_rate(step, SETTINGS, steps))
    return model.eval(), total.item()


# %%
four, four_targets = collate([validation[i] for i in range(4)])
batch_of_four = detr.batch(four)


@torch.no_grad()
def names_for(model, which, names):
    """For each true object, what the model calls the box that fits it best; "-" if not sure."""
    found, target = model([four[which]])[0], four_targets[which]
    sure = found["scores"] > 0.5
    overlap = box_iou(target["boxes"][:, None], found["boxes"][sure])  # (T, n)
    best = overlap.max(dim=1)
    return [names[found["labels"][sure][i]] if iou > 0.5 else "-" for iou, i in zip(*best)]


healthy, healthy_loss = overfit()
print("true: ", [[KINDS[k] for k in target["labels"]] for target in four_targets])
print("found:", [names_for(healthy, i, KINDS) for i in range(4)])
print("its loss is small:", healthy_loss < 0.5)

# %% [markdown]
# ### 7.1 Class ids that begin at 1
#
# ([detr#9](https://github.com/facebookresearch/detr/issues/9), [#108](https://github.com/facebookresearch/detr/issues/108) and many more.) COCO's files count categories from 1, with
# gaps. One may train on these ids as they are, with a head for the largest id + 1, here 4 classes; the official models do. But then names have to be looked up by id too. Whoever counts names from 0 gets this, with a loss as low as before:

# %%
shifted, loss_1 = overfit(
    classes=4, change=lambda targets: [{**t, "labels": t["labels"] + 1} for t in targets]
)
print("true: ", [[KINDS[k] for k in target["labels"]] for target in four_targets])
print("found:", [names_for(shifted, i, [*KINDS, "?"]) for i in range(4)])
print("its loss is small:", loss_1 < 0.5)

# %% [markdown]
# *Mend:* map ids to $0, \ldots, C - 1$ (`CocoDetection` does), and keep the names with the weights. With a head of only
# 3 classes, id 3 would fall onto "no object" unnoticed; a model should refuse it:

# %%
spoilt = [{**target, "labels": target["labels"] + 1} for target in four_targets]
try:
    healthy.train()(four, spoilt)
except ValueError as error:
    print(error)
_ = healthy.eval()

# %% [markdown]
# ### 7.2 Boxes in another form
#
# ([detr#28](https://github.com/facebookresearch/detr/issues/28),
# [#101](https://github.com/facebookresearch/detr/issues/101),
# [#459](https://github.com/facebookresearch/detr/issues/459).) COCO writes $(x, y, \text{width}, \text{height})$ in
# pixels. This package, like torchvision, takes corners in pixels; the official DETR and Hugging Face's take
# $(c_x, c_y, w, h)$ in 0..1, and that is what the loss compares everywhere. Give the loss corners, and it learns to say
# corners:

# %%
corners, loss_2 = overfit(
    change=lambda targets: [{**t, "boxes": cxcywh_to_xyxy(t["boxes"])} for t in targets]
)
drawn, axes = plots.panels(2, height=2.6)
for ax, (title, one) in zip(axes, (("healthy", healthy), ("taught corners", corners))):
    with torch.no_grad():
        found = one([four[0]])[0]
    draw_boxes(four[0], found["boxes"][found["scores"] > 0.5], title=title, ax=ax)
plots.show(
    drawn,
    alt="The same picture twice: boxes that fit the objects, and boxes of a model that was taught "
    "corners, far off.",
)

# %% [markdown]
# Its loss is as small as that of a healthy one; only a picture shows what is wrong. *Mend:* draw a few targets before you train, as in section 4. And where a wrong form can be seen, the model should say so:

# %%
as_coco = []
for target in four_targets:
    first, last = target["boxes"][:, :2], target["boxes"][:, 2:]  # the two corners
    as_coco.append({**target, "boxes": torch.cat((first, last - first), dim=1)})
try:
    healthy.train()(four, as_coco)
except ValueError as error:
    print(error)
_ = healthy.eval()

# %% [markdown]
# ### 7.3 Too high a learning rate
#
# ([detr#48](https://github.com/facebookresearch/detr/issues/48), [#505](https://github.com/facebookresearch/detr/issues/505).) AdamW with a learning rate of 0.01, a hundred times the paper's, without warm-up and without clipping:


# %%
def with_adamw(lr):
    """The same four pictures, with AdamW alone at a constant rate."""
    torch.manual_seed(0)
    model = Detr(config, classes=3)
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr), model.batch(four)
    wanted = model.normalise_targets(four_targets, batch.sizes)
    for _ in range(150):
        value = sum(losses.set_losses(model.outputs(batch), wanted, model.loss).values())
        model.zero_grad()
        value.backward()
        optimizer.step()
    return model.eval()


# %%
for lr in (1e-3, 1e-2):
    boxes = with_adamw(lr).outputs(batch_of_four).boxes[-1].detach()  # (B, N_q, 4)
    by_query, by_picture = (bool(boxes.std(dim=axis).max() > 1e-3) for axis in (1, 0))
    print(f"lr {lr}: queries differ {by_query}, pictures differ {by_picture}")

# %% [markdown]
# The symptom to remember: **every query gives the same box, on every picture.** The model no longer looks. *Mend:* a smaller rate, as in the first line; the authors also clip gradients at 0.1. Then start anew.

# %% [markdown]
# ### 7.4 "No object" weighs as much as an object
#
# With 100 queries and three objects, a quick way to a lower loss is to say nothing. DETR weighs "no object" with 0.1 for this reason. How sure are the matched queries of the right class, after a short training with each weight?


# %%
@torch.no_grad()
def probability_of_the_truth(model):
    """The mean probability that the matched queries give to the true class."""
    outputs = model.outputs(batch_of_four)
    wanted = model.normalise_targets(four_targets, batch_of_four.sizes)
    last = outputs.logits[-1:], outputs.boxes[-1:]
    match = matching.match(*last, wanted, model.loss.matching, "softmax")
    labels = torch.stack([wanted[p]["labels"][t] for p, t in zip(match.picture, match.target)])
    return outputs.logits[-1].softmax(-1)[match.picture, match.query, labels].mean().item()


sure = {}
for weight in (0.1, 1.0):
    one, _ = overfit(steps=60, queries=100, loss=replace(loss, no_object=weight))
    sure[weight] = probability_of_the_truth(one)
print("with weight 1 it is less than half as sure as with 0.1:", sure[1.0] < sure[0.1] / 2)

# %% [markdown]
# In the end both would learn four pictures; on a real data set the slower start can last for epochs.

# %% [markdown]
# ### 7.5 A broken annotation
#
# ([transformers#42202](https://github.com/huggingface/transformers/issues/42202), [detrex#248](https://github.com/IDEA-Research/detrex/issues/248).) One number that is not finite, from a broken file or from 16-bit numbers, and the match cannot be made. Training stops, perhaps after hours, with
# scipy's message, which names no picture:

# %%
from scipy.optimize import linear_sum_assignment

broken = [{**target, "boxes": target["boxes"].clone()} for target in four_targets]
broken[2]["boxes"][0, 2] = math.nan
try:
    linear_sum_assignment([[math.nan, 1.0], [0.5, 1.0]])
except ValueError as error:
    print("scipy:", error)
try:
    healthy.train()(four, broken)
except ValueError as error:
    print("ours: ", error)
_ = healthy.eval()

# %% [markdown]
# *Mend:* a message that names the picture, and data that are checked when they are read.

# %% [markdown]
# ### 7.6 The mask, upside down
#
# In the official code True means padding; Hugging Face's `pixel_mask` is 1 where the picture is. Invert it, and the tokens of a padded picture look at nothing but padding. (A picture without padding then has nothing to look at: a softmax written out gives NaN for it, torch's fused attention, and so ours, zeros.) The test: **a picture alone and the same picture in a padded batch must give nearly the same boxes.**

# %%
large = torch.rand(3, 96, 96)
alone = healthy.batch([four[0]])
together = healthy.batch([four[0], large])  # the first picture is padded
with torch.no_grad():
    expected = healthy.outputs(alone).boxes[-1, 0]
    right = healthy.outputs(together).boxes[-1, 0]
    wrong = healthy.outputs(together._replace(mask=~together.mask)).boxes[-1, 0]
changes = [(boxes - expected).abs().mean().item() for boxes in (right, wrong)]
print("with the right mask boxes stay within 2 %:        ", changes[0] < 0.02)
print("with the inverted one they move five times as far:", changes[1] > 5 * changes[0])

# %% [markdown]
# (Not to the last digit: a convolution at the border of the picture sees padding, and the group norm of this small backbone counts it. With a ResNet and frozen batch norm only the first remains.)

# %% [markdown]
# ### 7.7 Evaluation without a single detection
#
# ([cocoapi#450](https://github.com/cocodataset/cocoapi/issues/450).) Whoever drops unsure detections before the evaluation may have none left early in training, and pycocotools stops on an empty list, after the first epoch:

# %%
import contextlib
import io

from pycocotools.coco import COCO

from ddetr_lite.engine.evaluate import ap_of

with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(str(folder / "annotations" / "instances_val.json"))
    try:
        truth.loadRes([])
        said = "nothing"
    except Exception as error:
        said = type(error).__name__
print("pycocotools raises", said)
print("ours says AP", ap_of({}, validation)["AP"])

# %%
course.equation_map("06")

# %% [markdown]
# ## Summary
#
# - A convolution asks the same small question everywhere; strides make the map coarser, channels make it richer. Each cell of the last map is a token.
# - DETR: backbone, sines, encoder, object queries, decoder, and two heads; the loss is that of 05. No anchors, no NMS.
# - Object queries are learned and must differ; each comes to prefer a region. They are added as positions; the content begins at zero.
# - DETR learns slowly. The match moves while it trains, and cross-attention begins by looking everywhere and has to find its object.
# - Attention among cells costs $N^2$; so on photos DETR takes a coarse map, too coarse for small objects.
# - Before a long run: draw the targets, overfit four pictures, look at what is found, check one picture alone against the same in a batch.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `flatten_map`
#
# Difficulty ●○○○○ · Importance ●●●●○ · about 5 minutes
#
# The way from a map to tokens, section 1.


# %% tags=["exercise"]
def flatten_map(feature):
    """feature: (B, d, H, W). Returns tokens (B, H·W, d), row by row."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `flatten(2)` joins the last two dimensions. Then the channels have to go last; cutting the numbers anew with `reshape` does not move them.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("flatten_map", flatten_map)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def flatten_map(feature):
#     """feature: (B, d, H, W). Returns tokens (B, H·W, d), row by row."""
#     return feature.flatten(2).transpose(1, 2)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `mask_for`
#
# Difficulty ●●○○○ · Importance ●●●○○ · about 10 minutes
#
# Pictures of different sizes share a frame, and the mask says where the padding is. The tokens need a mask of the map's
# size: each cell takes the value at its first pixel, in row $\lfloor i \cdot H / h \rfloor$ and column
# $\lfloor j \cdot W / w \rfloor$.


# %% tags=["exercise"]
def mask_for(mask, shape):
    """mask: (B, H, W), True on padding; shape: (h, w) of the map. Returns (B, h, w), boolean."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `torch.arange(h) * H // h` are the rows. A tensor can be indexed with a tensor of rows: `mask[:, rows]`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("mask_for", mask_for)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def mask_for(mask, shape):
#     """mask: (B, H, W), True on padding; shape: (h, w) of the map. Returns (B, h, w), boolean."""
#     rows = torch.arange(shape[0], device=mask.device) * mask.shape[1] // shape[0]
#     columns = torch.arange(shape[1], device=mask.device) * mask.shape[2] // shape[1]
#     return mask[:, rows][:, :, columns]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `detr_head`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# DETR behind the backbone, whatever its parts are: `encode(tokens, position)` gives the memory, `decode(content, memory, query_position, position)` one vector for each query; `class_head` and `box_head` make
# logits and four numbers of it.


# %% tags=["exercise"]
def detr_head(tokens, position, queries, encode, decode, class_head, box_head):
    """tokens, position: (N, d); queries: (N_q, d).
    Returns (N_q, C+1+4): logits, then the box in 0..1.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Section 2, without the batch. What is the content before anything has been seen?
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("detr_head", detr_head)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def detr_head(tokens, position, queries, encode, decode, class_head, box_head):
#     """tokens, position: (N, d); queries: (N_q, d).
#     Returns (N_q, C+1+4): logits, then the box in 0..1.
#     """
#     memory = encode(tokens, position)
#     hidden = decode(torch.zeros_like(queries), memory, queries, position)
#     return torch.cat((class_head(hidden), box_head(hidden).sigmoid()), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `detections`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# From what one picture's queries say to what a user wants: corners in pixels, a score, a class.


# %% tags=["exercise"]
def detections(logits, boxes, height, width):
    """logits: (N_q, C+1), boxes: (N_q, 4).
    Returns (N_q, 6): x0, y0, x1, y1 in pixels, score, class.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Softmax first, then leave out the last column, "no object". $x$ goes with the width.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("detections", detections)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def detections(logits, boxes, height, width):
#     """logits: (N_q, C+1), boxes: (N_q, 4).
#     Returns (N_q, 6): x0, y0, x1, y1 in pixels, score, class.
#     """
#     scores, labels = logits.softmax(-1)[:, :-1].max(-1)
#     centre, size = boxes[:, :2], boxes[:, 2:]
#     corners = torch.cat((centre - size / 2, centre + size / 2), dim=1)
#     corners = corners * corners.new_tensor([width, height, width, height])
#     return torch.cat((corners, scores[:, None], labels[:, None]), dim=1)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package
#
# From here on a trained detector can run on what you have solved: attention and its heads, sines, positions, boxes, masks, tokens, detections. Which parts are yours?

# %% tags=["nbval-ignore-output"]
course.restore()
for function in (flatten_map, mask_for, detr_head, detections):
    course.use(function)
course.parts()

# %%
with torch.no_grad():
    mine = shipped.model([scene.pixels])[0]
course.reset()
with torch.no_grad():
    theirs = shipped.model([scene.pixels])[0]
apart = (mine["boxes"] - theirs["boxes"]).abs().max().item()
print("the same boxes within a hundredth of a pixel:", apart < 0.01)
print("the same classes:", torch.equal(mine["labels"], theirs["labels"]))

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("B", "N", "N_q", "d", "C", "K", "H", "W")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("06")

# %% [markdown]
# **Next:** look at a few places only, and learn where. [07 · Deformable attention](07_deformable_attention.ipynb). Back to
# [05 · The Hungarian loss](05_hungarian_loss.ipynb).
