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
# # 04 · The Transformer: what a layer needs besides attention
#
# Attention lets words speak with one another. A model that learns also needs a way to think alone, a way not to
# forget, and a way to keep its numbers in bounds. With these three, attention becomes a layer; layers become an
# encoder and a decoder; and they learn, in less than half a minute, to read 4071 as *four thousand seventy one*.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | say what residual, layer norm and feed-forward are for, and show it; build an encoder layer and a decoder layer equal to torch's; explain cross-attention and why the decoder must not peek; train a small Transformer and let it write word by word |
# | **You need first** | [01](01_self_attention.ipynb) to [03 · Positional encoding](03_positional_encoding.ipynb) |
# | **Time** | 75 minutes to read and run, 35 for the exercises |
# | **Device** | any CPU; three cells train, together for about a minute, and nothing is downloaded |

# %%
import math

import torch
from torch import nn

from ddetr_lite import course, plots
from ddetr_lite.layers import attention
from ddetr_lite.layers import transformer as package
from ddetr_lite.layers.positional_encoding import sine_encoding_1d

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Not to forget: the residual
#
# Attention replaces a word by a mean of words. A mean varies less than what it is made of. What happens when we take
# a mean of means, and so on? Sixteen layers of attention, 20 random words; after each layer we measure how
# much the words are alike. The measure is the mean **cosine** of all pairs, the dot product of two vectors that were
# brought to length 1: a mean of 1 says that all point the same way.

# %%
d, N = 64, 20
stack = [attention.MultiHeadAttention(d, 8) for _ in range(16)]


def likeness(x):
    """The mean cosine between different words of x (N, d)."""
    directions = nn.functional.normalize(x, dim=-1)
    cosines = directions @ directions.T  # (N, N)
    return ((cosines.sum() - len(x)) / (len(x) * (len(x) - 1))).item()


@torch.no_grad()
def through(keep):
    """Likeness before the first layer and after each; `keep` adds a word to what it attends to."""
    x, seen = torch.randn(1, N, d, generator=torch.Generator().manual_seed(1)), []
    for layer in [None, *stack]:
        x = x if layer is None else layer(x, x, x) + (x if keep else 0)
        seen.append(likeness(x[0]))
    return seen


alike = {"attention alone": through(keep=False), "x + attention": through(keep=True)}

# %%
ax = plots.curves(range(17), alike, "How much 20 words are alike", "layers", "mean cosine")
plots.show(
    ax,
    alt="Two curves over 16 layers. With attention alone the words are fully alike after the "
    "first layers; with the sum they stay different far longer.",
)

# %%
alone, with_sum = (values[3] for values in alike.values())
print(f"after 3 layers: attention alone {alone:.1f}, with the sum {with_sum:.1f}")

# %% [markdown]
# With attention alone, all words are the same after a few layers, and no later layer can tell them apart. The remedy is as
# simple as can be: **add** what attention says to the word instead of replacing it,
#
# $$x \leftarrow x + \text{Attention}(x)$$
#
# Then a layer that has nothing to say can say zero, and the word passes as it is. This is a **residual connection**.

# %% [markdown]
# The sum helps training too. A gradient comes to the first layer through all the others, multiplied on its way by each. The
# sum adds a second way, on which it passes unchanged. Measured: we make *one* number of the output of 16 layers, its dot product with a
# random vector of length 1, and ask how much it changes when their input changes a little: the length of its gradient.

# %%
for keep in (False, True):
    x = torch.randn(1, N, d, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = x
    for layer in stack:
        y = layer(y, y, y) + (y if keep else 0)
    nudge = torch.randn(1, N, d, generator=torch.Generator().manual_seed(2))
    (y * nudge / nudge.norm()).sum().backward()
    size = math.floor(math.log10(x.grad.norm()))
    name = "with the sum:   " if keep else "attention alone:"
    print(name, "gradient of the order of 10 to the", size)

# %% [markdown]
# ## 2. To stay in bounds: layer norm
#
# Sums have a flaw of their own: they grow.


# %%
@torch.no_grad()
def lengths(norm):
    """The spread of the channels after each of the 16 layers."""
    x, seen = torch.randn(1, N, d, generator=torch.Generator().manual_seed(1)), []
    for layer in stack:
        x = 3 * layer(x, x, x) + x  # three times, as if training had made the matrices larger
        x = norm(x)
        seen.append(x.std().item())
    return seen


spreads = {"without norm": lengths(nn.Identity()), "with layer norm": lengths(nn.LayerNorm(d))}
ax = plots.curves(range(1, 17), spreads, "Spread of the channels", "layers", log="y")
plots.show(
    ax,
    alt="Two curves over 16 layers on a logarithmic axis. Without norm the spread grows by "
    "orders of magnitude; with layer norm it stays at one.",
)

# %% [markdown]
# Remember the saturated softmax of 01: scores are products of such numbers, and with numbers in the hundreds nearly
# every softmax is a hard choice. **Layer norm** brings each word back to mean 0 and spread 1 over its own $d$ channels,
# and then lets training choose another spread and another mean for each channel ($\gamma$ and $\beta$; 10⁻⁵ avoids a
# division by zero):
#
# $$\text{LayerNorm}(x) = \gamma\,\frac{x - \text{mean}(x)}{\sqrt{\text{var}(x) + 10^{-5}}} + \beta$$

# %% [markdown]
# By hand, for the word (1, 2, 3, 6): the mean is 3, so (−2, −1, 0, 3); the squares are 4, 1, 0, 9, their mean is 3.5, the
# root of it 1.871. So (−1.069, −0.535, 0, 1.604).

# %%
word = torch.tensor([1.0, 2, 3, 6])
middle = word - word.mean()
by_hand = middle / (middle.square().mean() + 1e-5).sqrt()
print(by_hand)
print("torch's within 1e-6:", (by_hand - nn.LayerNorm(4)(word)).abs().max().item() < 1e-6)

# %% [markdown]
# Note what the mean runs over: over the channels of **one word**. Not over the words, nor over the sentences of a
# batch (as batch norm does, another norm, which [06](06_detr.ipynb) will meet in the backbone). So how a word is scaled does not depend on its neighbours,
# and padding does no harm.

# %% [markdown]
# ## 3. To think alone: feed-forward
#
# Once the weights are given, attention is a mean of values, and a mean is a plain sum of products: nothing is ever
# *decided* about a single word. So every word then goes, alone, through two matrices with a bend between them:
#
# $$\text{FFN}(x) = \max(0,\ x W_1 + b_1)\,W_2 + b_2$$

# %% [markdown]
# $\max(0, \cdot)$, the **ReLU**, is the bend: it keeps what is positive and drops what is negative. Without it, two
# matrices in a row would be one matrix. The row between them is wider than the word (four times, in *Attention Is All
# You Need*, the paper of 2017 that the Transformer comes from): many small questions about the word, each answered with
# "how much", or not at all.
#
# (In training, **dropout** usually sets a tenth of such numbers to zero, a different tenth in every step, and divides the rest by nine tenths: so a network cannot rely on any single one of them. That paper and DETR have it; at our sizes it would only blur what we compare, so in these notebooks it is 0.)

# %%
layer = package.EncoderLayer(d, heads=8, hidden=4 * d, dropout=0.0)
words = torch.randn(5, d)
with torch.no_grad():
    together = layer.feed_forward(words)  # (5, d)
    one_by_one = torch.stack([layer.feed_forward(word) for word in words])
    swapped = layer.feed_forward(words.flip(0)).flip(0)
print("each word by itself gives the same:", torch.allclose(together, one_by_one, atol=1e-6))
print("in another order too:              ", torch.allclose(together, swapped, atol=1e-6))

# %% [markdown]
# The **same** two matrices serve every place. So a Transformer layer alternates: attention mixes words and, with its weights fixed, cannot bend;
# feed-forward bends and cannot mix. Where are most of the parameters?

# %%
counted = {"attention": 0, "feed-forward": 0, "norms": 0}
for name, parameter in package.EncoderLayer(512, 8, 2048).named_parameters():
    part = "attention" if "attn" in name else "feed-forward" if "linear" in name else "norms"
    counted[part] += parameter.numel()
print(counted)

# %% [markdown]
# ## 4. The encoder layer
#
# The parts in their order: attend, add, norm; think, add, norm.


# %%
def encoder_layer(x, layer):
    """x: (B, N, d). The parts of `layer`, one after the other."""
    x = layer.norm1(x + layer.self_attn(x, x, x))
    return layer.norm2(x + layer.feed_forward(x))


x = torch.randn(2, 7, d)  # (B, N, d)
theirs = nn.TransformerEncoderLayer(d, 8, 4 * d, dropout=0.0, batch_first=True)
theirs.load_state_dict(layer.state_dict())
with torch.no_grad():
    ours = encoder_layer(x, layer)
    print("package within 1e-6:", (ours - layer(x)).abs().max().item() < 1e-6)
    print("torch within 2e-6:  ", (ours - theirs(x)).abs().max().item() < 2e-6)

# %% [markdown]
# In and out have the same shape, so such layers are stacked; six of them were the **encoder** of 2017. (Later models often
# put the norm *before* each step, *pre-norm*, which makes very deep stacks easier to train. DETR and Deformable DETR
# keep the form above.)

# %% [markdown]
# ## 5. The decoder layer
#
# The encoder reads. To **write** we need something that looks at what it has read, and at what has been written so
# far. A decoder layer has therefore *two* attentions:
#
# 1. **self-attention** among the words written so far, with the causal mask of 01;
# 2. **cross-attention**: queries from the words written, keys and values from the encoder's output, which is called the
#    **memory**.
#
# Then each thinks alone. Add and norm after each of the three.


# %%
def decoder_layer(x, memory, mask, layer):
    """x: (B, N_q, d), memory: (B, N, d), mask: (N_q, N_q). Returns (B, N_q, d)."""
    x = layer.norm1(x + layer.self_attn(x, x, x, mask=mask))
    x = layer.norm2(x + layer.multihead_attn(x, memory, memory))
    return layer.norm3(x + layer.feed_forward(x))


layer = package.DecoderLayer(d, heads=8, hidden=4 * d, dropout=0.0)
theirs = nn.TransformerDecoderLayer(d, 8, 4 * d, dropout=0.0, batch_first=True)
theirs.load_state_dict(layer.state_dict())
memory, written, mask = torch.randn(2, 7, d), torch.randn(2, 4, d), attention.causal_mask(4)
with torch.no_grad():
    ours = decoder_layer(written, memory, mask, layer)
    from_package = layer(written, memory, mask=mask)
    from_torch = theirs(written, memory, tgt_mask=mask)
print("package within 1e-6:", (ours - from_package).abs().max().item() < 1e-6)
print("torch within 2e-6:  ", (ours - from_torch).abs().max().item() < 2e-6)

# %% [markdown]
# Both layers, and what passes between them:

# %%
plots.show(
    course.architecture("transformer"),
    alt="Two rows of blocks. Above, the encoder layer: self-attention, feed-forward, memory. "
    "Below, the decoder layer: causal self-attention, cross-attention, which takes keys and values "
    "from the memory, feed-forward.",
)

# %% [markdown]
# In cross-attention the two sides differ in number: 4 queries, 7 keys, a 4 × 7 table of weights. Nothing in
# attention ever asked that those who look be those who are looked at. **Remember this**: in DETR ([06](06_detr.ipynb)), 100 *object queries*
# look at the cells of a picture, in just such layers.

# %%
with torch.no_grad():
    print("weights (B, M, N_q, N):", tuple(layer.multihead_attn.weights(written, memory).shape))

# %% [markdown]
# ## 6. A task: read a number
#
# From digits to words: 4071 → *four thousand seventy one*. It is small, but not trivial. The same digit reads *four* or *forty*, by
# its place; 1 may become *eleven* with its neighbour; and a zero is silent.

# %%
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def say(n):
    """A number below 10,000 in words, as a list."""
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if n >= unit:
            return [ONES[n // unit], name, *(say(n % unit) if n % unit else [])]
    if n < 20:
        return [ONES[n]]
    return [TENS[n // 10 - 2], *([ONES[n % 10]] if n % 10 else [])]


for n in (7, 40, 4071, 1916):
    print(f"{n:5} → {' '.join(say(n))}")

# %% [markdown]
# Every word gets a number. The output gets two more words: `begin`, which stands before the first word, and `end`, with which
# the model says that it is done. Digits are padded to four, words to eight.

# %%
PAD, BEGIN, END = 0, 1, 2
VOCABULARY = ["pad", "begin", "end", *ONES, *TENS, "hundred", "thousand"]
NUMBER = {word: i for i, word in enumerate(VOCABULARY)}


def encode(numbers):
    """Returns digits (B, 4), 10 is padding, and words (B, 8) from begin to end."""
    digits = torch.full((len(numbers), 4), 10)
    words = torch.full((len(numbers), 8), PAD)
    for row, n in enumerate(numbers):
        spelled = torch.tensor([BEGIN, *(NUMBER[word] for word in say(n)), END])
        digits[row, : len(str(n))] = torch.tensor([int(digit) for digit in str(n)])
        words[row, : len(spelled)] = spelled
    return digits, words


digits, words = encode([4071])
print(digits[0].tolist(), "→", [VOCABULARY[word] for word in words[0]])

# %% [markdown]
# Of the ten thousand numbers, 500 are kept back; the model will never see them in training.

# %%
order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
unseen, known = order[:500], order[500:]
known_digits, known_words = encode(known)
unseen_digits, unseen_words = encode(unseen)
print(len(known), "numbers to learn from; kept back, for example", unseen[:4])

# %% [markdown]
# The model: embeddings, sines for the places, two encoder layers, two decoder layers, and a score for each word of the
# vocabulary. (The package adds places to queries and keys of *every* layer, as DETR does; the Transformer of 2017 added
# them once, at the start. The package's decoder hands out what each of its layers says, each through one more, shared layer norm; the `[-1]` takes the last: DETR, in [06](06_detr.ipynb), will want all of them.)


# %%
class Reader(nn.Module):
    """Digits in, words out."""

    def __init__(self, d=64):
        super().__init__()
        self.digit, self.word = nn.Embedding(11, d), nn.Embedding(len(VOCABULARY), d)
        self.encoder = package.Encoder(d, heads=4, hidden=2 * d, layers=2, dropout=0.0)
        self.decoder = package.Decoder(d, heads=4, hidden=2 * d, layers=2, dropout=0.0)
        self.score = nn.Linear(d, len(VOCABULARY))
        self.register_buffer("places", sine_encoding_1d(8, d))  # (8, d)

    def forward(self, digits, words, causal=True):
        """digits: (B, 4); words: (B, N_q), written so far. Returns the scores of each next word."""
        padding = digits == 10
        digit_places, word_places = self.places[:4][None], self.places[: words.shape[1]][None]
        memory = self.encoder(self.digit(digits), digit_places, padding)  # (B, 4, d)
        mask = attention.causal_mask(words.shape[1]) if causal else None
        said = self.decoder(self.word(words), memory, word_places, digit_places, padding, mask)[-1]
        return self.score(said)


# %% [markdown]
# **Training** shows the model all words of an answer at once, and asks at each place for the *next* one: after `begin`
# for *four*, after *four* for *thousand*. One pass trains all places. That is why the causal mask is needed:
# without it the next word could simply be looked up. (`ignore_index` leaves padding out of the loss.)


# %%
def train(model, steps=600, causal=True):
    """Returns the loss of the last step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)  # smaller and smaller steps: it settles
        batch = torch.randint(len(known), (64,))
        scores = model(known_digits[batch], known_words[batch, :-1], causal)  # (64, 7, words)
        wanted = known_words[batch, 1:]
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# %% [markdown]
# **Writing** is another matter: there is no answer to show. The model gets `begin`, says which word is likeliest, gets
# both, says the next, and so on. A number is right when all of its words are.


# %%
@torch.no_grad()
def write(model, digits, causal=True):
    """The likeliest word, again and again. Returns (B, 8), beginning with begin."""
    words = torch.full((len(digits), 1), BEGIN)
    for _ in range(7):
        best = model(digits, words, causal)[:, -1:].argmax(dim=-1)  # (B, 1)
        words = torch.cat([words, best], dim=1)
    return words


def share_right(model, causal=True):
    same = (write(model, unseen_digits, causal) == unseen_words) | (unseen_words == PAD)
    return same.all(dim=1).float().mean().item()


# %%
torch.manual_seed(0)
reader = Reader()
loss = train(reader)
share = share_right(reader)
print("at least 95 of 100 unseen numbers are read without a mistake:", share > 0.95)

# %%
for n in unseen[:4]:
    words = write(reader, encode([n])[0])[0].tolist()
    end = words.index(END) if END in words else len(words)
    print(f"{n:5} → {' '.join(VOCABULARY[word] for word in words[1:end])}")


# %% [markdown]
# > **Claim:** the more a model may look at, the better it gets. So drop the causal mask.
# >
# > **Measurement:** the loss in training, and numbers read afterwards.

# %%
torch.manual_seed(0)
peeking = Reader()
peeking_loss = train(peeking, steps=400, causal=False)
print("its loss in training is tiny:                ", peeking_loss < 0.01)
print("unseen numbers read without a mistake:", f"{share_right(peeking, causal=False):.0%}")

# %% [markdown]
# In training the model seems perfect: the next word stands right there, and it has learned to copy it. When it has to
# write there is nothing to copy, and it fails. A loss that falls *too* well is a warning: ask what the model can see.

# %% [markdown]
# ## 7. What the reader looks at
#
# Cross-attention says at which digits each written word looks. `record_attention` keeps the weights of every attention
# layer while the model runs:

# %%
n = 4071
digits, words = encode([n])
asked = words[:, : len(say(n)) + 1]  # begin, four, thousand, seventy, one
with attention.record_attention(reader) as weights, torch.no_grad():
    _ = reader(digits, asked)
print("recorded:", *weights, sep="\n  ")

# %%
names = [*say(n), "end"]  # what is said at each place
# for each layer the mean of its heads, (N_q, 4)
tables = [weights[f"decoder.layers.{k}.multihead_attn"][0].mean(dim=0) for k in (0, 1)]
drawn = plots.matrices(
    tables, ["layer 1", "layer 2"], names, list(str(n)), height=3.0, xlabel="digit", ylabel="says"
)
plots.show(
    drawn,
    alt="Two matrices of weights, the five words said by the four digits 4, 0, 7, 1, for the two "
    "layers of the decoder, each the mean of four heads.",
)

# %% [markdown]
# Read it with the doubt of 02: the encoder's digits have looked at one another before, so the memory at place "4" may hold
# more than a 4. A test by change is surer: exchange one digit, and see which of the spoken words change.

# %%
changes = torch.zeros(4, 5)
for place in range(4):
    other = digits.clone()
    other[0, place] = 5
    with torch.no_grad():
        before, after = reader(digits, asked).softmax(-1), reader(other, asked).softmax(-1)
    changes[place] = (before - after).abs().sum(dim=-1)[0] / 2  # how much probability moves, 0..1
columns = [f"{digit} → 5" for digit in str(n)]
ax = plots.matrix(changes.T, names, columns, "probability moved", "one digit changed", "says")
plots.show(
    ax,
    alt="A matrix of the five words said by the four digits changed to five: how much of the "
    "probability of each word moves.",
)

# %% [markdown]
# The words already written stay as they are; only a digit changes. In this test *four* and *one* depend on just their own digit, *thousand*
# and *end* on none: with four digits, *thousand* follows whatever they are. And *seventy* also moves when the 0 becomes a 5, for then something else is said at
# this place: *five*, of *five hundred*. In the tables above, *thousand* nevertheless looked at several digits. To look at
# a digit is not to need it.

# %% [markdown]
# ## 8. Which parts are needed?
#
# > **Claim:** every part of the Transformer is needed.
# >
# > **Measurement:** train again, each time without one part, with 400 steps each.


# %%
def without(part):
    """A reader that lacks `part`."""
    torch.manual_seed(0)
    model = Reader()
    layers = [*model.encoder.layers, *model.decoder.layers]
    if part == "places":
        model.places.zero_()
    if part == "feed-forward":
        for layer in layers:  # a function in the module's place: thinks nothing
            layer.feed_forward = torch.zeros_like
    if part == "encoder":
        model.encoder.layers = nn.ModuleList()
    return model


shares = {}
for part in ("nothing", "feed-forward", "encoder", "places"):
    model = without(part)
    train(model, steps=400)
    shares[part] = share_right(model)

# %%
title = "Unseen numbers read without a mistake, without …"
ax = plots.bars(list(shares.values()), list(shares), title)
plots.show(
    ax,
    alt="Four bars of the share of unseen numbers read without a mistake. With all parts and "
    "without feed-forward it is near one, without the encoder a little lower, without places near "
    "zero.",
)
print("without places, less than one in five:", shares["places"] < 0.2)
print("without feed-forward, still more than nine in ten:", shares["feed-forward"] > 0.9)

# %% [markdown]
# Without places the digits are a bag, and 4071 is the same as 1740. (The written words lose their places too.) Without an
# encoder some numbers go wrong, probably since the digits then do not know their neighbours. And without feed-forward? **In this one training, nothing is lost.** For so small a task the bends of
# softmax and layer norm suffice. In the encoder layer that we counted, feed-forward
# holds two thirds of the parameters; but here we cannot show that it is needed, so we do not claim it.

# %% [markdown]
# ## 9. From words to pictures
#
# Cross-attention lets us ask a picture something **from outside**. The patches of our picture are the memory; the query is
# no patch, but a colour that we name. (As before, colours are taken as differences from the picture's mean, divided by
# the spread. The queries are made ten times as long, so that the weights gather on the best fits.)

# %%
scene = course.picture()
patches = (scene.pixels / 255).unfold(1, 8, 8).unfold(2, 8, 8)  # (3, 12, 12, 8, 8)
colour = patches.mean(dim=(-2, -1)).flatten(1).T  # (N, 3)
mean, spread = colour.mean(dim=0), colour.std(dim=0)
memory = nn.functional.normalize((colour - mean) / spread, dim=-1)  # (144, 3)
asked = {"teal": (0.1, 0.6, 0.6), "yellow": (0.85, 0.8, 0.3), "orange": (0.95, 0.65, 0.45)}
named = torch.tensor(list(asked.values()))
queries = nn.functional.normalize((named - mean) / spread, dim=-1)  # (N_q, 3)
weights = attention.attention_weights(10 * queries, memory)  # (3, 144)

# %%
drawn, axes = plots.panels(4, height=2.3)
plots.picture(scene.pixels, "the picture", ax=axes[0])
for name, row, ax in zip(asked, weights, axes[1:]):
    plots.attention_over_picture(scene.pixels, row.reshape(12, 12), title=f"“{name}?”", ax=ax)
plots.show(
    drawn,
    alt="The picture, and where three queries of a colour look. Teal lights up the small star, "
    "yellow the ring, orange the triangle and parts of the large star.",
)

# %% [markdown]
# Three queries, 144 keys, three answers: *where is there something teal?* DETR asks in this way. Its object queries are not
# colours but vectors that training finds, and they ask for objects; and unlike the words of section 6 they are
# answered **all at once**, without a causal mask, for a set of objects has no first and no next.

# %%
course.equation_map("04")

# %% [markdown]
# ## Summary
#
# - Residual: $x + \text{step}(x)$. Attention alone makes all words alike; the sum keeps them, and lets gradients pass.
# - Layer norm: each word back to mean 0 and spread 1 over its own channels.
# - Feed-forward: two matrices with a bend, the same for each place; in the encoder layer of 2017, two thirds of the parameters. (Our task did not need it.)
# - Encoder layer: attend, add, norm; think, add, norm. Decoder layer: the same, with cross-attention (add, norm) in between.
# - Cross-attention: queries from one side, keys and values from the other.
# - Training shows all words at once behind a causal mask; writing goes word by word.

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · `layer_norm`
#
# Difficulty ●●○○○ · Importance ●●●●○ · about 10 minutes
#
# Section 2, for any number of words in any number of sentences, without torch's `layer_norm`.


# %% tags=["exercise"]
def layer_norm(x, weight, bias):
    """x: (..., d); weight (γ) and bias (β): (d,). Returns (..., d)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# `mean(dim=-1, keepdim=True)` keeps a last dimension of size 1, along which the mean stretches. The variance is the mean
# of the squares of the differences; 1e-5 comes under the root.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("layer_norm", layer_norm)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def layer_norm(x, weight, bias):
#     """x: (..., d); weight (γ) and bias (β): (d,). Returns (..., d)."""
#     middle = x - x.mean(dim=-1, keepdim=True)
#     variance = middle.square().mean(dim=-1, keepdim=True)
#     return middle / (variance + 1e-5).sqrt() * weight + bias
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `encoder_layer`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 5 minutes
#
# The order of section 4, whatever the steps are: `attend`, `think`, `norm1` and `norm2` are functions of $x$.


# %% tags=["exercise"]
def encoder_layer(x, attend, think, norm1, norm2):
    """x: (N, d); four functions (N, d) → (N, d). Returns (N, d)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Two lines of the same form, the second working on the result of the first.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("encoder_layer", encoder_layer)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def encoder_layer(x, attend, think, norm1, norm2):
#     """x: (N, d); four functions (N, d) → (N, d). Returns (N, d)."""
#     x = norm1(x + attend(x))
#     return norm2(x + think(x))
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `with_position`
#
# Difficulty ●○○○○ · Importance ●●●○○ · about 3 minutes
#
# The smallest part of the package, called in every layer of every detector: $x$ with its position, where there is one.


# %% tags=["exercise"]
def with_position(x, position):
    """x: (..., N, d); position: of a shape that stretches to it, or None. Returns (..., N, d)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# One question, then a sum; and do not change $x$ itself.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("with_position", with_position)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def with_position(x, position):
#     """x: (..., N, d); position: of a shape that stretches to it, or None. Returns (..., N, d)."""
#     return x if position is None else x + position
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `greedy`
#
# Difficulty ●●●○○ · Importance ●●●○○ · about 15 minutes
#
# Writing, as in section 6, for one sentence and any model: take the best next word until it is `end`, or until there are
# `longest` words after `begin`. Return them as a tensor of whole numbers.


# %% tags=["exercise"]
def greedy(scores_of, begin, end, longest):
    """scores_of: words so far (n,) → scores of the next (vocabulary,).
    Returns the words between begin and end.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Keep the words in a list and make a tensor of it for the model: `torch.tensor(words)`. `int(scores.argmax())` is the best
# next word. A tensor of an empty list needs to be told that it holds whole numbers: `dtype=torch.long`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("greedy", greedy)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def greedy(scores_of, begin, end, longest):
#     """scores_of: words so far (n,) → scores of the next (vocabulary,).
#     Returns the words between begin and end.
#     """
#     words = [begin]
#     for _ in range(longest):
#         best = int(scores_of(torch.tensor(words)).argmax())
#         if best == end:
#             break
#         words.append(best)
#     return torch.tensor(words[1:], dtype=torch.long)  # also where there is no word
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package

# %% tags=["nbval-ignore-output"]
course.restore()
course.use("with_position", with_position)

# %% [markdown]
# The reader now runs on what you have written, here and in the notebooks before. It must read as it did:

# %%
print("still right:", share_right(reader) == share)
course.reset()

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("x", "d", "N", "B", "N_q", "M", "Q", "K", "V")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("04")

# %% [markdown]
# **Next:** a Transformer can write a sequence. A picture's objects are no sequence but a set. [05 · Hungarian
# loss](05_hungarian_loss.ipynb) teaches it to answer with one. Back to
# [03 · Positional encoding](03_positional_encoding.ipynb).
