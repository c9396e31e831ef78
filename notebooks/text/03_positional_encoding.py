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
# # 03 · Positional encoding: telling attention where things stand
#
# Attention sees a bag of words. In this notebook every word gets a mark of its place: a pattern of sines and cosines
# that says much more than a number would. We build it by hand, train with and without it, find out what happens to
# sentences longer than any in training, and carry it over to pictures.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | say why a bare position number is a poor mark of a place; compute a sine encoding by hand; tell its two layouts apart; turn a step of $k$ positions into a rotation; choose between sines and learned tables knowing what each does beyond the lengths it was trained on; encode the cells of a picture, with padding |
# | **You need first** | [02 · Multi-head attention](02_multi_head_attention.ipynb); sine and cosine as a point that runs around a circle |
# | **Time** | 75 minutes to read and run, 50 for the exercises |
# | **Device** | any CPU; two cells train, together for about 20 seconds, and nothing is downloaded |

# %%
import math

import torch

from ddetr_lite import course, plots
from ddetr_lite.layers import attention
from ddetr_lite.layers import positional_encoding as package

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. A bag of words
#
# In 01 each word got the same vector in "dog bites man" as in "man bites dog". This also holds for eight heads and many
# layers: each layer gets the same vectors in another order, and returns the same vectors in that order.

# %%
d = 64
layers = [attention.MultiHeadAttention(d, 8) for _ in range(3)]


def read(x):
    """Three layers of attention over the words x (N, d)."""
    x = x[None]  # (1, N, d)
    for layer in layers:
        x = x + layer(x, x, x)
    return x[0]


dog, bites, man = torch.randn(3, d)
with torch.no_grad():
    news_1 = read(torch.stack([dog, bites, man]))
    news_2 = read(torch.stack([man, bites, dog]))
same = torch.allclose(news_1[0], news_2[2], atol=1e-4)
print("'dog' after three layers, the same in both:", same)

# %% [markdown]
# So we change the words before attention sees them: to each word's vector we **add** a vector that depends on
# its place alone. Any three different vectors will break the tie:

# %%
places = torch.randn(3, d)  # for the first, second and third word
with torch.no_grad():
    news_1 = read(torch.stack([dog, bites, man]) + places)
    news_2 = read(torch.stack([man, bites, dog]) + places)
print("with places, the same in both:", torch.allclose(news_1[0], news_2[2], atol=1e-4))

# %% [markdown]
# Random vectors tell places apart, and nothing more: the vector of place 2 is no nearer to that of place 3 than
# to that of place 90. Which vectors would say *more*?

# %% [markdown]
# ## 2. From a number to a pattern
#
# **The number itself.** Add $p$ to every channel of a word at place $p$. But the numbers of an embedding are about 1 in
# size, and at place 500 we would add 500: the word drowns in its place.

# %%
word = torch.randn(d)
for p in (1, 10, 500):
    # of the squared length; about right for a random word
    share = word.norm() ** 2 / (word.norm() ** 2 + d * p**2)
    print(f"place {p:3}: the word's part of the sum is {share:.1%}")

# %% [markdown]
# **A share of the length.** Divide $p$ by the length of the sentence, and it stays in 0..1. But then the step from a
# word to the next is 1/10 in a short sentence and 1/100 in a long one: "the next word" has no fixed meaning.

# %% [markdown]
# **Binary digits.** Write $p$ with zeros and ones, a digit for each channel. All numbers stay small, a step has a
# fixed meaning, and four channels already tell sixteen places apart:

# %%
for p in range(6):
    print(p, [p >> i & 1 for i in range(4)])  # the digit that changes fastest comes first

# %% [markdown]
# Look down the columns: the first digit changes at every step, the next at every second, the next at every fourth.
# Slow digits say roughly where we are, fast ones exactly. A pattern of **frequencies**. Its flaw is that digits
# jump: between 7 and 8 all four change at once, as if the two were far apart.


# %%
def digits(p):
    return torch.tensor([float(p >> i & 1) for i in range(4)])


print("digits that change from 6 to 7:", int((digits(7) != digits(6)).sum()))
print("digits that change from 7 to 8:", int((digits(8) != digits(7)).sum()))

# %% [markdown]
# **Sines.** Keep the frequencies and take away the jumps: a wave instead of a digit. One sine alone is ambiguous
# (it passes each height twice, going up and coming down), but a sine and a cosine together are a point on a
# circle, like the hand of a clock. And as a clock has a fast hand and a slow one, we take several: *every pair of
# channels is a hand, and each hand turns more slowly than the one before*.

# %% [markdown]
# ## 3. Four channels by hand
#
# *Attention Is All You Need*, section 3.5: with $d$ channels there are $d/2$ hands. Hand $i$ stands in channels $2i$ and
# $2i + 1$, and turns by $1 / 10000^{2i/d}$ with each place (so that it comes around after $2\pi \cdot 10000^{2i/d}$
# places, its **wavelength**). At place $p$ it points to the angle $p / 10000^{2i/d}$ ($PE$ stands for positional
# encoding):
#
# $$PE_{p,\,2i} = \sin\frac{p}{10000^{2i/d}} \qquad PE_{p,\,2i+1} = \cos\frac{p}{10000^{2i/d}}$$

# %% [markdown]
# With $d = 4$ there are two hands. The first has $10000^0 = 1$: its angle at place $p$ is $p$. The second has
# $10000^{2/4} = 100$: its angle is $p / 100$. (Angles in radians; once around is $2\pi \approx 6.28$.) For place 1:
# sin 1 = 0.841, cos 1 = 0.540, sin 0.01 = 0.010, cos 0.01 = 1.000. At place 0 all sines are 0 and all cosines 1.


# %%
def sine_encoding(length, d):
    """The encodings of places 0 .. length − 1, number by number: (N, d)."""
    table = torch.zeros(length, d)
    for p in range(length):
        for i in range(d // 2):
            angle = p / 10000 ** (2 * i / d)
            table[p, 2 * i] = math.sin(angle)
            table[p, 2 * i + 1] = math.cos(angle)
    return table


print(sine_encoding(4, 4))

# %% [markdown]
# The two hands at places 0 to 6. The first has gone almost once around; the second has hardly begun.

# %%
table = sine_encoding(7, 4)
circle = torch.linspace(0, 2 * math.pi, 100)
drawn, axes = plots.panels(2, height=3.0)
for i, ax in enumerate(axes):
    ax.plot(circle.cos(), circle.sin(), color="lightgrey", linewidth=1, zorder=0)
    for p in range(7):
        x, y = table[p, 2 * i + 1], table[p, 2 * i]
        ax.plot([0, x], [0, y], "o-", color=plots.COLOURS[i], linewidth=1, markersize=4)
        if i == 0:
            ax.annotate(str(p), (1.2 * x, 1.2 * y), ha="center", va="center")
    ax.set(title=f"hand {i}", xlabel="cosine", ylabel="sine", aspect="equal")
    ax.margins(0.25)
_ = axes[1].annotate("0 … 6", (1.08, 0.0), va="center")
plots.show(
    drawn,
    alt="Two circles with hands like a clock's. On the first the places 0 to 6 are spread nearly "
    "once around; on the second all seven hands lie on one another on the right, near angle zero.",
)

# %% [markdown]
# The package's function, without a loop, and for real sizes:

# %%
ours, theirs = sine_encoding(20, 512), package.sine_encoding_1d(20, 512)
print(tuple(theirs.shape), " within 1e-6 of the loop:", (ours - theirs).abs().max().item() < 1e-6)

# %% [markdown]
# ## 4. The picture, and its two layouts
#
# Twenty words, 512 channels; blue is above zero, orange below. You may have seen this picture elsewhere with another
# look: all sines in the left half, all cosines in the right. That is how Tensor2Tensor, the code that came with the
# paper, computed it (`get_timing_signal_1d`). Here are both:

# %%
interleaved = package.sine_encoding_1d(20, 512)
halves = package.sine_encoding_1d(20, 512, layout="halves")
drawn, axes = plots.panels(2, height=3.4)
plots.encoding(interleaved, "interleaved, as in the paper", ax=axes[0])
plots.encoding(halves, "halves, as in Tensor2Tensor", ax=axes[1])
axes[1].set_ylabel("")
plots.show(
    drawn,
    alt="Two heatmaps of 20 positions by 512 channels. Interleaved, thin stripes of sine and "
    "cosine alternate; in halves, waves slow down from left to the middle for the sines, and again "
    "to the right for the cosines.",
)

# %% [markdown]
# Read a row: it is the mark of one place. On the left (in the right picture: on the left of each half) are the fast
# hands, which differ from row to row. Further right they turn so slowly that twenty words do not move them:
# sines stay near 0, cosines near 1. (In the left picture sine and cosine alternate more finely than the screen can show.)

# %% [markdown]
# > **Claim:** the two pictures differ in the order of columns only.
# >
# > **Measurement:** bring the columns of the first into the order of the second, and compare.

# %%
for length in (20, 200, 1000):
    first = package.sine_encoding_1d(length, 512, "interleaved")
    second = package.sine_encoding_1d(length, 512, "halves")
    ordered = torch.cat([first[:, 0::2], first[:, 1::2]], dim=1)  # (N, d)
    before, after = (first - second).abs().max(), (ordered - second).abs().max()
    print(f"{length:4} places: largest difference {before:.2f}, in the same order {after:.2f}")

# %% [markdown]
# Not quite: the exponents differ too. The paper's are $2i/d$, that is $0, 1/n, 2/n, \ldots, (n - 1)/n$ for $n = d/2$
# hands; the code divides by $n - 1$, so that the last is 1 and the slowest hand has the divisor 10000 exactly. A model can
# be trained with either. But load weights that were trained with the other, and places go wrong: at once if the order of
# channels differs, little by little if only the exponents do.

# %%
n = 512 // 2
for name, last in (("paper", (n - 1) / n), ("Tensor2Tensor", 1.0)):
    print(f"{name:13}: the slowest hand needs {2 * math.pi * 10000**last:,.0f} places to go around")

# %% [markdown]
# ## 5. What makes it a good mark: steps are rotations
#
# Attention compares by dot products. So what does the dot product of two encodings say? Take places 30 and 50, and all
# places around them:

# %%
table = package.sine_encoding_1d(100, 128)  # (N, d)
around = {f"place {p}": (table @ table[p]).tolist() for p in (30, 50)}
ax = plots.curves(range(100), around, "Dot product with the encoding of a place", "place")
for line in ax.get_lines():
    line.set_marker("")
plots.show(
    ax,
    alt="Two curves over places 0 to 99, with their peaks at 30 and 50. Both fall off to either "
    "side in the same way, with small ripples.",
)

# %% [markdown]
# It is largest at the place itself and falls off on both sides, with small ripples (though not to zero here, for the
# slow hands hardly move in 100 places); and the two curves have the same shape, one moved by 20. The dot product depends
# on the **distance** of two places and on nothing else. By hand: two hands at angles $a$ and $b$ give
# $\sin a \sin b + \cos a \cos b = \cos(a - b)$. For places $p$ and $q$ the angles are $p/s$ and $q/s$, with
# $s = 10000^{2i/d}$, so this is $\cos((p - q)/s)$: only $p - q$ is left. The dot product is the sum of it over all hands.

# %%
gaps = {k: [float(table[p] @ table[p + k]) for p in (0, 20, 60)] for k in (0, 1, 5, 30)}
for k, products in gaps.items():
    print(f"distance {k:2}:", " ".join(f"{value:6.2f}" for value in products))

# %% [markdown]
# There is more. To go $k$ places on, every hand turns by a fixed angle, wherever it stands: $k / 10000^{2i/d}$. A turn is
# a product with a matrix:
#
# $$(\sin(a+b),\ \cos(a+b)) = (\sin a,\ \cos a)\begin{pmatrix}\cos b & -\sin b\\ \sin b & \cos b\end{pmatrix}$$
#
# So there is **one** matrix for "$k$ places further", and it is the same for all places.


# %%
def turn(k, d):
    """The matrix (d, d) that takes the encoding of any place p to that of place p + k."""
    matrix = torch.zeros(d, d)
    for i in range(d // 2):
        b = k / 10000 ** (2 * i / d)
        block = torch.tensor([[math.cos(b), -math.sin(b)], [math.sin(b), math.cos(b)]])
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    return matrix


seven_on = table[:-7] @ turn(7, 128)  # (93, d): all places, moved by 7 at once
print("equal to the encodings seven places on:", torch.allclose(seven_on, table[7:], atol=1e-5))

# %% [markdown]
# Why does that matter? $W^Q$ and $W^K$ are matrices. If $W^Q$ turns by −1 and $W^K$ does nothing, then the query of place
# $p$ fits the key of place $p - 1$ best: *look at the word before you*, for all places, with one matrix. A head can learn it.

# %%
Q, K = table[:12] @ turn(-1, 128), table[:12]
weights = attention.attention_weights(Q, K)  # (12, 12)
print("each place looks most at place:", weights.argmax(dim=-1).tolist())

# %% [markdown]
# Each looks at the one before; place 0, which has none, has to take what there is.

# %% [markdown]
# ## 6. With it and without it: a task
#
# A sentence of 16 random words from a language of 20; the answer at each place is **the word before**. No
# meaning can help, only place. One layer of attention, four ways to say where a word stands: not at all, the two
# layouts of sines, and a table with one vector for each place that is **learned**, like all other parameters (two well-known
# models do that, BERT for language and the Vision Transformer for pictures). In torch a `Parameter` is changed by training; a *buffer* belongs to the model and stays.


# %%
class WordBefore(torch.nn.Module):
    """Embeddings plus encoding, one attention layer, and scores of the 20 words at every place."""

    def __init__(self, encoding, d=64, longest=64):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, d)
        self.layer = attention.MultiHeadAttention(d, 4)
        self.score = torch.nn.Linear(d, 20)
        if encoding == "learned":
            self.places = torch.nn.Parameter(torch.randn(longest, d))
        elif encoding == "none":
            self.register_buffer("places", torch.zeros(longest, d))
        else:
            self.register_buffer("places", package.sine_encoding_1d(longest, d, encoding))

    def forward(self, words, start=0):
        """words: (B, N). Returns (B, N, 20)."""
        x = self.embedding(words) + self.places[start : start + words.shape[1]]
        return self.score(self.layer(x, x, x))


# %%
def train(model, steps=600, moving=False):
    """Sentences of 16 words. moving: begin at any place from 0 to 47; otherwise all begin at 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        words = torch.randint(20, (64, 16))
        start = int(torch.randint(48, ())) if moving else 0
        scores = model(words, start)[:, 1:]  # (64, 15, 20): the first word has none before it
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), words[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def right_at_each_place(model, length):
    """The share of right answers at places 1 .. length − 1, over 500 new sentences."""
    words = torch.randint(20, (500, length))
    return (model(words)[:, 1:].argmax(dim=-1) == words[:, :-1]).float().mean(dim=0)


# %%
models = {}
for encoding in ("none", "interleaved", "halves", "learned"):
    torch.manual_seed(0)
    models[encoding] = WordBefore(encoding)
    train(models[encoding])
    print(f"{encoding:12} {right_at_each_place(models[encoding], 16).mean():.1f} right")

# %% [markdown]
# Without places it can do no better than name a word that is frequent in the sentence. With any of the three it makes hardly
# a mistake. What do its four heads look at? The mean of their weights, for one sentence:

# %%
words = torch.randint(20, (1, 16))
tables = []
for encoding in ("none", "interleaved", "learned"):
    model = models[encoding]
    with torch.no_grad():
        x = model.embedding(words) + model.places[:16]
        tables.append(model.layer.weights(x, x)[0].mean(dim=0))  # (16, 16)
names = [str(place) if place % 5 == 0 else "" for place in range(16)]
titles = ["no encoding", "sines", "learned table"]
labels = {"xlabel": "looked at (key)", "ylabel": "looks (query)"}
drawn = plots.matrices(tables, titles, names, names, height=3.1, **labels)
plots.show(
    drawn,
    alt="Three matrices of weights, 16 words by 16. Without encoding the weights are nearly even; "
    "with sines and with a learned table they lie on a line one place left of the diagonal.",
)

# %% [markdown]
# The line lies one place to the left of the diagonal: each place looks at the one before it. It is sharp with the table, and
# softer with sines, where some rows spread over two or three neighbours. Nobody told them to look there; it is what the
# task needs.

# %% [markdown]
# > **Claim:** positional encodings are patterns that the model has learned.
# >
# > **Measurement:** count what training could change.

# %%
for encoding in ("interleaved", "learned"):
    parameters = dict(models[encoding].named_parameters())
    count = parameters["places"].numel() if "places" in parameters else 0
    print(f"{encoding:12} parameters in the encoding: {count}")

# %% [markdown]
# In the sines nothing is learned: they are a formula. What is learned is how to *use* them. A table is learned, number by
# number. Both worked equally well here, and the paper reports the same for translation.

# %% [markdown]
# ## 7. Sentences longer than any before
#
# > **Claim:** sines are better than a table because they go on beyond the lengths of training.
# >
# > **Measurement:** train on 16 words, as above, and ask for 48.

# %% [markdown]
# The formula certainly goes on: there is a value for place 1000, and all that section 5 said still holds there. The
# table ends where it ends (ours has 64 rows, of which the last 48 were never trained). But what does a *trained model*
# do with the new values?

# %%
# places in groups of four, each named by its last: 4 to 7, 8 to 11, ...
ends = list(range(7, 48, 4))


def by_groups(model):
    right = right_at_each_place(model, 48)  # places 1 .. 47
    return [right[end - 4 : end].mean().item() for end in ends]


lines = {"sines": by_groups(models["interleaved"]), "learned": by_groups(models["learned"])}
title = "Trained on 16 words: right answers by place"
ax = plots.curves(ends, lines, title, "place", "share right")
ax.axvline(15.5, color=plots.INK, linewidth=1, linestyle=":")
ax.set_ylim(0, 1.05)
plots.show(
    ax,
    alt="Two curves over the place in a sentence. Up to place 15, marked by a dotted line, both "
    "are near 1; beyond it the table falls below 0.1 and the sines to between 0.08 and 0.3.",
)

# %%
beyond = {}
for name in ("interleaved", "learned"):
    beyond[name] = right_at_each_place(models[name], 48)[15:].mean().item()
    print(f"{name:12} less than a third right beyond place 15: {beyond[name] < 1 / 3}")

# %% [markdown]
# Both fail, and at once. That the formula *has* values out there is one thing; that $W^Q$ and $W^K$, trained on the first
# 16 places only, treat new ones as they should is another. Nothing in training asked them to turn *every* hand back by
# one place: whatever tells 16 places apart was good enough. (The sines even slip a little before the line, since words at
# unknown places now take some of the weight.)

# %% [markdown]
# What helps? Let training see more places. Not longer sentences: the same 16 words, but beginning at a random place from 0
# to 47. For a fair comparison, with sines and with a table.

# %%
moved = {}
for encoding in ("interleaved", "learned"):
    torch.manual_seed(0)
    moved[encoding] = WordBefore(encoding)
    train(moved[encoding], moving=True)

# %%
lines = {
    "sines, from 0": by_groups(models["interleaved"]),
    "sines, anywhere": by_groups(moved["interleaved"]),
    "table, anywhere": by_groups(moved["learned"]),
}
title = "Right answers by place, trained from place 0 or anywhere"
ax = plots.curves(ends, lines, title, "place", "share right")
ax.set_ylim(0, 1.05)
plots.show(
    ax,
    alt="Three curves over the place. The sines whose sentences all began at place 0 fall off "
    "beyond 15; sines and table whose sentences began anywhere stay near one up to place 47.",
)

# %%
for name, model in moved.items():
    right = right_at_each_place(model, 48).mean().item()
    print(f"{name:12} at least 85 % right up to place 47: {right > 0.85}")

# %% [markdown]
# Now sentences of 48 words are mostly answered rightly, though none in training had more than 16; and on the whole the table
# does at least as well as the sines. What counted was **which places were seen**, not how they were written. In this task the claim does
# not hold. (What remains of it: sines have a value for place 1000, and a table with 64 rows has none.)

# %% [markdown]
# For pictures that is no side issue: a detector is trained on pictures of many sizes, and asked about others.

# %% [markdown]
# ## 8. Two dimensions
#
# The cells of a picture have a row and a column. So half of the channels encode the row $y$, the other half the column
# $x$, each as above. DETR adds two things. Places are **scaled**: every picture spans $0 \ldots 2\pi$, whatever its size,
# so that "in the middle" means the same everywhere. And they are counted over **real cells** only, since pictures of a
# batch are padded.

# %% [markdown]
# Two more things were made for sentences and simply kept. The fastest hand now turns only a little from cell to cell:
# once around per *picture*. And 10000 was chosen for texts. How many hands turn by more than a tenth of a circle from one
# border to the other, for DETR's $d = 256$?

# %%
turns = [1 / 10000 ** (2 * i / 128) for i in range(64)]  # of each hand for y, over 2π
print(sum(turn > 0.1 for turn in turns), "of", len(turns))

# %% [markdown]
# The other three quarters hardly move. DETR learns with it all the same; later models took a smaller base (DAB-DETR 20).
#
# Scaling is the "share of the length" that section 2 rejected. For a sentence it was a fault that "the next word" loses
# its meaning. A picture that is enlarged shows the same things at the same shares, so here it is what we want; and no
# picture has places that training never saw, only finer steps between them.


# %%
def encode(y, x, d):
    """One cell: y and x, each in 0..2π. Returns (d,): d/2 channels for y, then d/2 for x."""
    channels = []
    for place in (y, x):
        for i in range(d // 4):
            angle = place / 10000 ** (2 * i / (d // 2))
            channels += [math.sin(angle), math.cos(angle)]
    return torch.tensor(channels)


H, W, d = 6, 8, 16
ys = [(i + 1) / H * 2 * math.pi for i in range(H)]
xs = [(j + 1) / W * 2 * math.pi for j in range(W)]
by_hand = torch.stack([torch.stack([encode(y, x, d) for x in xs]) for y in ys])  # (H, W, d)
nothing_padded = torch.zeros(1, H, W, dtype=torch.bool)
same = (by_hand - package.sine_encoding_2d(nothing_padded, d)[0]).abs().max().item() < 1e-5
print(tuple(by_hand.shape), " equal to the package's:", same)

# %% [markdown]
# The same test for padding as in 01: a picture in a corner of a larger batch must be encoded as if it were alone.

# %%
padded = torch.ones(1, 10, 12, dtype=torch.bool)  # (B, H, W), True is padding
padded[:, :H, :W] = False
inside = package.sine_encoding_2d(padded, d)[0, :H, :W]
alone = package.sine_encoding_2d(nothing_padded, d)[0]
print("same as alone:", torch.allclose(inside, alone, atol=1e-5))

# %% [markdown]
# **Two conventions.** DETR puts the first of $H$ rows at $1/H$ and the last at 1: at the lower edges of its cells. Deformable
# DETR subtracts a half first, so that places are the *centres* of cells. Why the second matters: feature maps of several
# sizes lie over one picture, and a point of it should get the same code in each.

# %%
for convention, shift in (("detr", 0.0), ("deformable", 0.5)):
    coarse = (1 - shift) / 2  # the first row of 2
    # the middle of the first two rows of 4, which cover the same stripe:
    fine = ((1 - shift) / 4 + (2 - shift) / 4) / 2
    print(f"{convention:10} first of two rows: {coarse:.3f}", end="  ")
    print(f"middle of the first two of four: {fine:.3f}")

# %% [markdown]
# The first of two rows covers the same stripe as the first two of four. Deformable DETR gives its middle the same number,
# 1/4, in both maps; DETR gives 1/2 in one and 3/8 in the other.

# %% [markdown]
# Learned encodings exist in two dimensions too: a table for rows and one for columns (`LearnedEncoding2d`, an option of
# DETR), or, as in the Vision Transformer, one table with a vector for each patch. They share the trouble of section 7: rows that no
# picture of training had were never trained.

# %% [markdown]
# ## 9. From words to pictures
#
# The patches of our picture have had colour in 01 and texture in 02. Now they are told where they are. The dot product of
# one cell's encoding with all others, for three cells:

# %%
scene = course.picture()
no_padding = torch.zeros(1, 12, 12, dtype=torch.bool)
grid = package.sine_encoding_2d(no_padding, 64, "deformable")[0]  # (12, 12, d)
cells = [(2, 3), (6, 6), (10, 8)]
drawn, axes = plots.panels(3, height=2.7)
for cell, ax in zip(cells, axes):
    nearness = (grid @ grid[cell]).flatten().softmax(dim=0).reshape(12, 12)
    title = f"row {cell[0]}, column {cell[1]}"
    plots.attention_over_picture(scene.pixels, nearness, cell, title, ax=ax)
plots.show(
    drawn,
    alt="The picture three times, with a glow around the framed cell that fades with distance.",
)

# %% [markdown]
# Place alone makes a patch look around itself. Now put colour and place together: queries and keys are the colour of 01,
# and beside it the encoding. The dot product of two such vectors is the sum of both: alike *and* near.

# %%
patches = (scene.pixels / 255).unfold(1, 8, 8).unfold(2, 8, 8)  # (3, 12, 12, 8, 8)
colour = patches.mean(dim=(-2, -1)).flatten(1).T  # (N, 3)
centred = (colour - colour.mean(dim=0)) / colour.std(dim=0)
directions = 3 * torch.nn.functional.normalize(centred, dim=-1)  # (N, 3), as in 01
place = grid.flatten(0, 1) / 2  # (N, 64), halved so that colour counts for more


def look(*parts):
    tokens = torch.cat(parts, dim=-1)
    return (tokens @ tokens.T).softmax(dim=-1)  # (N, N)


ways = {"colour": look(directions), "place": look(place), "both": look(directions, place)}

# %%
cell = (1, 10)  # ground, in the upper right
drawn, axes = plots.panels(3, height=2.7)
for (name, weights), ax in zip(ways.items(), axes):
    seen = weights.reshape(12, 12, 12, 12)[cell]  # (12, 12)
    plots.attention_over_picture(scene.pixels, seen, cell, name, ax=ax)
plots.show(
    drawn,
    alt="Attention of a ground patch in the upper right. By colour it looks at ground far away, "
    "most of all on the left, by place at its surroundings, by both at the ground around it.",
)

# %% [markdown]
# By colour the patch looks at ground all over the picture, most of all on the left, where the ground has just
# its shade, and hardly at some that lies right beside it. By place it looks at everything around it, star or ground. By both: at ground of its
# own shade, and the nearer it is, the more.
#
# And order now counts: patches that change places, while the places stay, no longer give the same weights.

# %%
order = torch.randperm(144, generator=torch.Generator().manual_seed(3))
for name, parts in {"colour": (directions,), "both": (directions, place)}.items():
    shuffled = [parts[0][order], *parts[1:]]  # the patches change places; the places do not
    same = torch.allclose(look(*shuffled), look(*parts)[order][:, order], atol=1e-5)
    print(f"{name:6}: shuffled patches give the same weights, shuffled: {same}")

# %% [markdown]
# Attention is no longer blind to order. DETR *adds* the encoding where we put it beside the colour, so that colour and place
# also meet in mixed products. And our words of section 6 got it once, so that it was in queries, keys and values; DETR ([06](06_detr.ipynb)) adds it in every
# layer, to queries and keys but never to values: what is handed over is content alone.

# %%
course.equation_map("03")

# %% [markdown]
# ## Summary
#
# - Attention is blind to order; a vector for each place, added to the word, opens its eyes.
# - Sine encoding: $d/2$ hands of a clock, each slower than the one before, a sine and a cosine for each.
# - Two layouts: interleaved (the paper) and halves (Tensor2Tensor); the exponents differ as well.
# - Dot products depend on distance alone; a step of $k$ places is one rotation, the same everywhere.
# - The formula goes on for ever; a model trained on short sentences does not. Train on the places that you will need.
# - Pictures: half of the channels for $y$, half for $x$, scaled to $0 \ldots 2\pi$ over real cells.

# %% [markdown]
# ## Exercises
#
# The first and the last can take the package's place: the detector's sense of place then runs on your code.

# %% [markdown]
# ### Exercise 1 · `sine_encoding_of`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# The formula of section 3, for numbers of any shape (they need not be whole), without a loop over places.


# %% tags=["exercise"]
def sine_encoding_of(values, dim):
    """values: (...). Returns (..., d), d = dim: sine, cosine, sine ... of value / 10000^(2i/d)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `values[..., None]` gives each number a dimension of its own, along which the $d/2$ divisors can stretch. To make
# two tensors alternate, stack them along a new last dimension and flatten the last two.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("sine_encoding_of", sine_encoding_of)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def sine_encoding_of(values, dim):
#     """values: (...). Returns (..., d), d = dim: sine, cosine, sine ... of value / 10000^(2i/d)."""
#     i = torch.arange(dim // 2)
#     angles = values[..., None] / 10000 ** (2 * i / dim)  # (..., d/2)
#     return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (..., d/2, 2) → (..., d)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `timing_signal`
#
# Difficulty ●●○○○ · Importance ●●○○○ · about 10 minutes
#
# Tensor2Tensor's form: sines left, cosines right, and exponents $i / (n - 1)$ for the $n = d/2$ hands.


# %% tags=["exercise"]
def timing_signal(length, dim):
    """Returns (N, d), N = length, d = dim: the encodings of places 0 .. N − 1."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# As exercise 1, with two changes: the exponents, and `torch.cat` in place of `stack` and `flatten`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("timing_signal", timing_signal)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def timing_signal(length, dim):
#     """Returns (N, d), N = length, d = dim: the encodings of places 0 .. N − 1."""
#     n = dim // 2
#     exponents = torch.arange(n) / (n - 1)
#     angles = torch.arange(length)[:, None] / 10000**exponents  # (N, d/2)
#     return torch.cat((angles.sin(), angles.cos()), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `shift_matrix`
#
# Difficulty ●●●○○ · Importance ●●●○○ · about 15 minutes
#
# Section 5 gives it as `turn`. Write it without looking, from the formulas of $\sin(a + b)$ and $\cos(a + b)$, for the
# interleaved layout. `step` may be negative.


# %% tags=["exercise"]
def shift_matrix(step, dim):
    """Returns R, (d, d), with encoding(p) @ R = encoding(p + step) for every place p."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# $R$ is zero but for $d/2$ blocks of 2 × 2 on the diagonal. Which two numbers make the new sine out of the old sine and
# the old cosine? They stand in the block's first column.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("shift_matrix", shift_matrix)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def shift_matrix(step, dim):
#     """Returns R, (d, d), with encoding(p) @ R = encoding(p + step) for every place p."""
#     R = torch.zeros(dim, dim)
#     for i in range(dim // 2):
#         b = step / 10000 ** (2 * i / dim)
#         R[2 * i, 2 * i] = R[2 * i + 1, 2 * i + 1] = math.cos(b)
#         R[2 * i + 1, 2 * i] = math.sin(b)  # the old cosine's part in the new sine
#         R[2 * i, 2 * i + 1] = -math.sin(b)  # the old sine's part in the new cosine
#     return R
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `sine_encoding_2d`
#
# Difficulty ●●●●○ · Importance ●●●●● · about 15 minutes
#
# The encoding of every cell of a padded batch. Count real cells down and across (`cumsum` adds up along a dimension),
# subtract `shift`, divide by the number of real cells in that column or row, and multiply by $2\pi$. Add
# 1e-6 to the divisor, as the official code does, so that nothing is divided by zero. What then stands on padding means
# nothing, and is not compared. Use `package.sine_encoding_of`.


# %% tags=["exercise"]
def sine_encoding_2d(padding, dim, shift):
    """padding: (B, H, W), True on padding. Returns (B, H, W, d), d = dim.

    shift: 0 for DETR, 0.5 for Deformable DETR.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `(~padding).float().cumsum(1)` is the $y$ of every cell, counted 1, 2, 3 …, and its last row is the number of real
# cells in each column.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("sine_encoding_2d", sine_encoding_2d)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def sine_encoding_2d(padding, dim, shift):
#     """padding: (B, H, W), True on padding. Returns (B, H, W, d), d = dim.
#
#     shift: 0 for DETR, 0.5 for Deformable DETR.
#     """
#     real = (~padding).float()
#     y, x = real.cumsum(1), real.cumsum(2)  # (B, H, W)
#     y = (y - shift) / (y[:, -1:] + 1e-6) * 2 * math.pi
#     x = (x - shift) / (x[:, :, -1:] + 1e-6) * 2 * math.pi
#     from ddetr_lite.layers.positional_encoding import sine_encoding_of  # or yours
#
#     y, x = sine_encoding_of(y, dim // 2), sine_encoding_of(x, dim // 2)  # (B, H, W, d/2) each
#     return torch.cat((y, x), dim=-1)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.restore()
course.use("sine_encoding_of", sine_encoding_of)
course.use("sine_encoding_2d", sine_encoding_2d)

# %% [markdown]
# The shipped detector of 00 needs to know where its cells are. On whichever functions are plugged in, it must find the
# same:

# %%
from ddetr_lite.engine.predict import predict

found = predict(course.detector(), scene.pixels, threshold=0.5)
print([f.label for f in found])
course.reset()

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("x", "d", "N", "B", "D", "H", "W", "Q", "K", "W^Q", "p")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("03")

# %% [markdown]
# **Next:** attention, heads and places are there. [04 · Transformer](04_transformer.ipynb) stacks them, with what else a
# layer needs. Back to [02 · Multi-head attention](02_multi_head_attention.ipynb).
