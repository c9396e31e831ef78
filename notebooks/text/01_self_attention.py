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
# # 01 · Self-attention: every word looks at every other
#
# A word alone says little. In this notebook a word learns to look at its neighbours, and to take from each as
# much as it needs. That one operation, *self-attention*, carries everything that follows, up to the detector
# that finds objects in pictures.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | compute self-attention with a pencil; write it as three matrix products, with masks; say why scores are divided by √64 = 8; say what it cannot see, and what it costs |
# | **You need first** | Python, matrix products, and arrays as in NumPy (shape, indexing, broadcasting); [00 · Start here](00_start_here.ipynb) shows how exercises work |
# | **Time** | 80 minutes to read and run, 45 for the exercises |
# | **Device** | any CPU; all cells together take seconds, and nothing is downloaded |

# %% [markdown]
# Run the cells from top to bottom. Where a cell prints something, guess first: a wrong guess teaches more
# than a right line read quickly.

# %%
import math

import torch

from ddetr_lite import course, plots
from ddetr_lite.layers import attention as package  # what we build here, as the detector uses it

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Why a word needs its neighbours
#
# Read *the river bank*, then *the money bank*. (Short for: the bank of the river, the bank that keeps the
# money.) In the first you stand on grass, in the second you stand in line. Nothing in the word "bank"
# itself made the difference; the word beside it did.

# %% [markdown]
# A model works with numbers, so every word first becomes a list of numbers, a **vector**. The vectors stand
# in a table with one row for each word of the language: the **embedding** table. In a real model training
# fills this table. For a start we fill it by hand, so that each of its three columns means something:

# %%
table = {  # water, money, place
    "the": [0.0, 0.0, 0.0],
    "river": [2.0, 0.0, 1.0],
    "money": [0.0, 2.0, 0.0],
    "bank": [1.0, 1.0, 1.0],
}


def embed(sentence):
    """The rows of the table for the words of a sentence: (N, d), N words of d = 3 numbers."""
    return torch.tensor([table[word] for word in sentence.split()])


river_bank, money_bank = embed("the river bank"), embed("the money bank")
print(river_bank.shape)

# %% [markdown]
# > **Claim:** looking a word up in a table tells the model what the word means in this sentence.
# >
# > **Measurement:** compare "bank", the third row, in both sentences.

# %%
print("bank beside river:", river_bank[2])
print("bank beside money:", money_bank[2])
print("equal:", torch.equal(river_bank[2], money_bank[2]))

# %% [markdown]
# The same numbers twice. A table sees one word at a time and cannot do better: a bit of water, a bit of
# money, undecided.

# %% [markdown]
# How can the neighbours help? The simplest way is to take the mean of all words of the sentence:

# %%
print("mean of 'the river bank':", river_bank.mean(0))
print("mean of 'the money bank':", money_bank.mean(0))

# %% [markdown]
# Now the two differ: more water in one, more money in the other. But every word of a sentence would get the
# *same* mean, and "the" counts in it as much as "river". We want a **weighted** mean, in which a word that
# matters counts for more.

# %% [markdown]
# Who knows which words matter to "bank"? The vectors do. The **dot product** of two vectors multiplies number
# with number and adds up: it is large where both are large. "bank" and "river" share water and place; "bank"
# and "the" share nothing:
#
# bank · river = 1·2 + 1·0 + 1·1 = 3,  bank · bank = 1 + 1 + 1 = 3,  bank · the = 0.

# %% [markdown]
# These numbers are **scores**. Weights of a mean must be positive and add up to one. The **softmax** makes
# them so: it takes the exponential of each score (positive, whatever the score), then divides by the sum of
# all of them:
#
# $$\text{softmax}(s)_j = \frac{e^{s_j}}{\sum_{k} e^{s_k}}$$

# %%
scores = river_bank @ river_bank[2]  # (N,): the, river, bank
weights = scores.exp() / scores.exp().sum()
print("scores ", scores)
print("weights", weights, "sum:", round(weights.sum().item(), 3))

# %% [markdown]
# Check it with a calculator: e³ ≈ 20.09, twice, and e⁰ = 1, so the weights are 20.09 / 41.17 ≈ 0.488, twice,
# and 1 / 41.17 ≈ 0.024. "the" has all but vanished from the mean.

# %% [markdown]
# Score, softmax, weighted mean: in three lines, for word number $i$ of any sentence.


# %%
def look_around(x, i):
    """Word i of x (N, d), made new: the mean of all words, weighted by how well they fit it."""
    scores = x @ x[i]  # (N,)
    weights = scores.softmax(dim=0)  # (N,)
    return weights @ x  # (d,)


after_river, after_money = look_around(river_bank, 2), look_around(money_bank, 2)
print("bank beside river:", after_river)
print("bank beside money:", after_money)

# %% [markdown]
# The first by pencil: 0.488 · (2, 0, 1) + 0.488 · (1, 1, 1) = (1.464, 0.488, 0.976). And as bars, with the
# vector from the table beside it:

# %%
drawn, axes = plots.panels(3, height=2.4, sharey=True)
titles = ("“bank” from the table", "… beside “river”", "… beside “money”")
for values, title, ax in zip((river_bank[2], after_river, after_money), titles, axes):
    plots.bars(values, ["water", "money", "place"], title, ax=ax)
plots.show(
    drawn,
    alt="Three bar charts of the vector of bank. From the table, water, money and place are equal; "
    "beside river water is the largest, beside money it is money.",
)

# %% [markdown]
# The undecided word has decided. Beside "river" it leans to water, beside "money" to money, and nobody wrote
# a rule for it. That is the whole idea: **each word becomes a weighted mean of all words, and the words
# themselves set the weights**. A sentence that attends to itself: *self-attention*. What is still missing,
# the next section adds.

# %% [markdown]
# ## 2. Three roles: query, key, value
#
# Above, one vector played three roles at once. It **asked** (which words fit me?), it **offered itself** to
# be found, and it was **what was handed over** in the mean. For real language one vector is too stiff for all
# three.

# %% [markdown]
# An adjective looks for its noun. What it looks for (a noun) is not what it is (an adjective), and what the
# noun should hand over is something else again. The dot product of two embeddings cannot say this: it is the
# same in both directions, bank · river = river · bank.

# %% [markdown]
# So every word gets three vectors instead of one:
#
# - the **query** $q$: what this word looks for,
# - the **key** $k$: what this word can be found by,
# - the **value** $v$: what this word hands over when it is found.

# %% [markdown]
# All three are made from the word's embedding $x$, each by a matrix of its own:
#
# $$q = x\,W^Q \qquad k = x\,W^K \qquad v = x\,W^V$$

# %% [markdown]
# A row times a matrix, as everywhere in this course: `x @ W_Q`.

# %% [markdown]
# In the Transformer of 2017, the model that is made of such layers ([04](04_transformer.ipynb)), an
# embedding has $d = 512$ numbers, and queries, keys and values have $D = 64$. A matrix that turns 512 numbers
# into 64 has 512 rows and 64 columns. (Its random numbers are divided by √512: a number of $q$, a sum of 512
# products, then varies about as much as a number of $x$.)

# %%
d, D = 512, 64
x = torch.randn(2, d)  # (N, d): two words, and their embeddings, random for now
W_Q, W_K, W_V = (torch.randn(d, D) / math.sqrt(d) for _ in range(3))  # (d, D) each
q, k, v = x @ W_Q, x @ W_K, x @ W_V  # (N, D) each
print("x", tuple(x.shape), " W_Q", tuple(W_Q.shape), " q", tuple(q.shape))

# %%
drawn, axes = plots.panels(4, height=1.6, width_ratios=[8, 1, 1, 1])
names = (f"x: {d} numbers", f"q: {D}", f"k: {D}", f"v: {D}")
for values, name, ax in zip((x, q, k, v), names, axes):
    plots.vectors(values, ["Thinking", "Machines"] if ax is axes[0] else None, name, ax=ax)
plots.show(
    drawn,
    alt="Two words as two rows of colour: a long one of 512 numbers for the embedding, and three "
    "short ones of 64 numbers for query, key and value.",
)

# %% [markdown]
# Each thin stripe is one number, blue above zero and orange below. The 64 numbers are not a piece cut out of
# the 512: each of them is a sum over all 512, with weights that stand in one column of the matrix.

# %% [markdown]
# Where do the numbers in the three matrices come from? From training. They start at random, and are then
# changed little by little, so that the whole model answers better. Nobody writes them by hand, except us,
# now, so that we can check every step with a pencil.

# %% [markdown]
# ## 3. Six steps by hand: "Thinking Machines"
#
# Two words, embeddings of 3 numbers, and matrices of zeros, ones and a single two.

# %%
words = ["Thinking", "Machines"]
x = torch.tensor([[1.0, 0, 1], [0, 2, 1]])  # (N, d) = (2, 3)
W_Q = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # (d, D) = (3, 3)
W_K = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 0, 1]])
W_V = torch.tensor([[0.0, 2, 0], [1, 0, 1], [1, 0, 0]])

# %% [markdown]
# We follow the first word, "Thinking". At the end it will have a new vector, made of what both words hand
# over.

# %% [markdown]
# **Step 1: queries, keys, values.** The embedding of "Thinking" is (1, 0, 1): times a matrix, it takes one of
# the first row, none of the second, one of the third. So its query is (1, 0, 1) + (1, 0, 0) = (2, 0, 1).
# "Machines" is (0, 2, 1): twice the second row and once the third. Try its key before you look.

# %%
q, k, v = x @ W_Q, x @ W_K, x @ W_V
for i, word in enumerate(words):
    print(f"{word}: query {q[i].tolist()}  key {k[i].tolist()}  value {v[i].tolist()}")

# %% [markdown]
# **Step 2: scores.** How well does each key answer the query of "Thinking"? The dot product says it:
#
# (2, 0, 1) · (1, 1, 2) = 2 + 0 + 2 = 4 with its own key, and (2, 0, 1) · (3, 0, 1) = 6 + 0 + 1 = 7 with the
# key of "Machines".

# %%
score_thinking = torch.stack([q[0] @ k[0], q[0] @ k[1]])
print(score_thinking)

# %% [markdown]
# **Step 3: divide by $\sqrt{D}$.** Here $D = 3$ and √3 ≈ 1.732, so 4 becomes 2.309 and 7 becomes 4.041. In the real
# model it is √64 = 8. Why this division, and why a square root? Section 4 measures it.

# %%
scaled = score_thinking / math.sqrt(3)
print(scaled)

# %% [markdown]
# **Step 4: softmax.** e to the 2.309 is 10.07, e to the 4.041 is 56.91, together 66.98. Divide each by the
# sum:

# %%
weights = scaled.softmax(dim=0)
print(weights)

# %% [markdown]
# "Thinking" wants 15 % of its own value, and 85 % of that of "Machines".

# %% [markdown]
# **Step 5: weigh the values.** Each value is multiplied by its weight: what matters little becomes small.

# %%
weighted = weights[:, None] * v  # (N, 1) times (N, D): every number of a value by the same weight
print(weighted)

# %% [markdown]
# **Step 6: sum.** Add what the two words hand over, and "Thinking" has its new vector (with one more digit
# of the weights):
#
# 0.1503 · (1, 2, 0) + 0.8497 · (3, 0, 2) = (2.699, 0.301, 1.699)

# %%
z_thinking = weighted.sum(dim=0)
print(z_thinking)

# %% [markdown]
# That is all there is to it. The remaining words are treated alike, so we write the six steps as a function
# with a loop over the words, on purpose as plainly as possible.


# %%
def self_attention_loop(x, W_Q, W_K, W_V):
    """Self-attention of x (N, d), one word after the other. Returns the new vectors (N, D)."""
    q, k, v = x @ W_Q, x @ W_K, x @ W_V  # step 1, (N, D) each
    new = []
    for i in range(len(x)):
        scores = torch.stack([q[i] @ k[j] for j in range(len(x))])  # step 2, (N,)
        scores = scores / math.sqrt(q.shape[1])  # step 3
        weights = scores.softmax(dim=0)  # step 4
        new.append((weights[:, None] * v).sum(dim=0))  # steps 5 and 6, (D,)
    return torch.stack(new)


print(self_attention_loop(x, W_Q, W_K, W_V))

# %% [markdown]
# The second row is a good one for the pencil. "Machines" has the query (1, 2, 0); both of its scores are 3,
# so both weights are one half, and its new vector is the plain mean of the two values: (2, 1, 1).

# %% [markdown]
# Note also that scores now depend on the direction: from "Thinking" to "Machines" it is 7, and back it is (1, 2, 0)
# · (1, 1, 2) = 3. Query and key being two different vectors made that possible.

# %% [markdown]
# **Now for real.** The same function, with 512 numbers for a word and three matrices of 512 × 64. Nothing in
# it has to change:

# %%
x_real = torch.randn(2, d)
real = [torch.randn(d, D) / math.sqrt(d) for _ in range(3)]  # W^Q, W^K, W^V
z_real = self_attention_loop(x_real, *real)
print(tuple(z_real.shape))

# %% [markdown]
# Two words, 64 numbers each. They mean nothing yet, for the matrices are random: what training makes of them,
# we shall see from [02](02_multi_head_attention.ipynb) on.

# %% [markdown]
# ## 4. Why divide by √64 = 8?
#
# Step 3 looked like an odd detail. Let us see what happens without it.

# %% [markdown]
# A score adds up $D$ products. Take queries and keys whose numbers are random with mean 0 and spread 1 (by
# *spread* we mean the standard deviation). Each product has mean 0 and spread 1 as well, and $D$ independent
# ones add up to a spread of $\sqrt{D}$: sums of random numbers grow with the square root of how many there are.
# Measured:

# %%
sizes = [4, 16, 64, 256, 1024]
for size in sizes:
    scores = torch.stack([torch.randn(size) @ torch.randn(size) for _ in range(4000)])
    root, spread = math.sqrt(size), scores.std()
    print(f"D = {size:4}   √D = {root:4.0f}   spread of the scores: about {spread:.0f}")

# %% [markdown]
# With $D = 64$ the scores spread about 8 wide. Divided by $\sqrt{D}$ they have spread 1, whatever $D$ is. That explains
# the square root: divided by $D$ itself they would shrink as $D$ grows, until all weights were equal.

# %% [markdown]
# And why is a wide spread bad? Look at what the softmax makes of scores that grow. The same three, times 1, 4
# and 16:

# %%
three = torch.tensor([0.5, 1.0, 0.2])
for factor in (1, 4, 16):
    print(f"times {factor:2}:", (factor * three).softmax(dim=0))

# %% [markdown]
# The mean has become a choice: one weight is one, the others are zero. The softmax is **saturated**. Then
# something worse follows. Training follows the **gradient**: how much the result changes when a score
# changes a little. The pencil says how much: if a score grows a little, its own weight $p$ grows $p \cdot (1 - p)$
# times as much, and that is next to nothing for a $p$ near one or near zero. There a change of a score
# changes nothing, and there is nothing to follow.

# %% [markdown]
# We measure both, for queries with ten keys: the largest of the ten weights, and the gradient of that
# weight with respect to the scores (its length, to have one number). `backward()` lets torch work out the gradient
# for what `requires_grad_()` has marked, and leaves it in `.grad`. (`einsum` with `"rd,rkd->rk"` is the dot product,
# over `d`, of each query `r` with each of its keys `k`.)


# %%
def measure(scores):
    """Mean over rows of scores (rows, keys): the largest weight, the length of its gradient."""
    scores = scores.clone().requires_grad_()
    largest = scores.softmax(dim=-1).amax(dim=-1)  # (rows,)
    largest.sum().backward()
    return largest.mean().item(), scores.grad.norm(dim=-1).mean().item()


def scores_of(D, rows=1000, keys=10):
    """Random queries, ten keys for each, and their raw dot products: (rows, keys)."""
    return torch.einsum("rd,rkd->rk", torch.randn(rows, D), torch.randn(rows, keys, D))


raw_scores = {size: scores_of(size) for size in sizes}
without = [measure(raw_scores[size]) for size in sizes]
with_root = [measure(raw_scores[size] / math.sqrt(size)) for size in sizes]

# %%
drawn, axes = plots.panels(2, height=2.9)
titles = ("Largest of ten weights", "Length of its gradient at the scores")
for which, (title, ax) in enumerate(zip(titles, axes)):
    lines = {"divided": [m[which] for m in with_root], "not divided": [m[which] for m in without]}
    plots.curves(sizes, lines, title, "D, channels of a query", log="x", ax=ax)
    ax.set_ylim(0, 1.05 if which == 0 else 0.32)
plots.show(
    drawn,
    alt="Two charts over D from 4 to 1024. Divided by the root of D, the largest weight and its "
    "gradient stay the same; not divided, the largest weight climbs towards one and the gradient "
    "falls towards zero.",
)

# %% [markdown]
# Read from left to right. Divided (blue), nothing depends on $D$. Not divided (orange), the mean over ten
# words turns into a choice of one, and the gradient fades. (At $D = 4$ the orange gradient is longer: $p \cdot (1 - p)$ is
# largest at $p = 1/2$, and at $D = 4$ the orange weight is the nearer to it.) In numbers:

# %%
i64, i1024 = sizes.index(64), sizes.index(1024)
divided, undivided = with_root[i64][0], without[i64][0]
print(f"largest weight at D = 64: {divided:.1f} divided, {undivided:.1f} not divided")
for i in (i64, i1024):
    ratio = with_root[i][1] / without[i][1]
    print(f"gradient at D = {sizes[i]}: divided, it is {ratio:.0f} times as long")

# %% [markdown]
# But $W^Q$ does not learn from the scores' gradient as it is. On its way back that gradient goes through step 2,
# where it is multiplied by the keys, which are longer when $D$ is larger; and through the division, where there
# is one. How long is the gradient that arrives at a query? The mean over a thousand queries, the median (half of them are
# below it), and the longest:


# %%
def at_queries(D, divisor, rows=1000, keys=10):
    """Length of the gradient of the largest weight at each of `rows` random queries: (rows,)."""
    q, k = torch.randn(rows, D).requires_grad_(), torch.randn(rows, keys, D)
    scores = torch.einsum("rd,rkd->rk", q, k) / divisor
    scores.softmax(dim=-1).amax(dim=-1).sum().backward()
    return q.grad.norm(dim=-1)


for size in (64, 1024):
    for name, divisor in (("divided", math.sqrt(size)), ("not divided", 1)):
        lengths = at_queries(size, divisor)
        print(f"D = {size:4}, {name:11}: mean {lengths.mean():.1f}", end=", ")
        print(f"median {lengths.median():.1f}, longest {lengths.max():.1f}")

# %% [markdown]
# Divided, all queries get about as much, whatever $D$ is. Not divided, it is a lottery: on average they get *more*, but
# at $D = 1024$ half of them get next to nothing, and a few a gradient that would push $W^Q$ anywhere. What one step of
# training does then depends on those few.

# %% [markdown]
# > **Claim:** without the division there are attention weights that a Transformer cannot have.
# >
# > **Measurement:** leave out the division, and make $W^Q$ eight times smaller instead. What changes?

# %%
x5 = torch.randn(5, d)
W_Q64, W_K64, _ = real
divided = (x5 @ W_Q64) @ (x5 @ W_K64).T / 8
smaller = (x5 @ (W_Q64 / 8)) @ (x5 @ W_K64).T
print("same scores:", torch.allclose(divided, smaller, atol=1e-6))

# %% [markdown]
# The scores stay the same. The division adds no power that the matrix lacks: a model could find the factor 1/8 by
# itself. What it changes is where training **starts**: with weights that are soft and gradients of much the same
# length for every query. For $D = 4$ you would hardly notice; the larger $D$ is, the more it matters.

# %% [markdown]
# ## 5. All words at once
#
# The loop computes the dot product of every query with every key. A product of matrices is exactly that: put
# the queries into the rows of a matrix $Q$ and the keys into the rows of $K$, and $Q K^\top$ holds all scores. Row $i$
# belongs to the word that looks, column $j$ to the word looked at.

# %% [markdown]
# The softmax runs along each row, and the weighted sum of values is a matrix product again. So steps 2 to 6
# are one line, equation 1 of *Attention Is All You Need* (which writes $d_k$ for our $D$):
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt{D}}\right) V$$

# %% [markdown]
# Follow the shapes, with $N$ words: $Q$ is $(N, D)$ and $K^\top$ is $(D, N)$, so the scores are $(N, N)$. The weights are
# $(N, N)$ and $V$ is $(N, D)$, so the result is $(N, D)$: one new vector for each word.


# %%
def self_attention(x, W_Q, W_K, W_V):
    """Self-attention of all words x (N, d) at once. Returns vectors (N, D) and weights (N, N)."""
    Q, K, V = x @ W_Q, x @ W_K, x @ W_V  # (N, D) each
    scores = Q @ K.T / math.sqrt(Q.shape[1])  # (N, N)
    weights = scores.softmax(dim=-1)  # (N, N), every row sums to one
    return weights @ V, weights  # (N, D), (N, N)


z, weights = self_attention(x, W_Q, W_K, W_V)
print(z)

# %% [markdown]
# The same numbers as by hand. And for the real sizes, with 20 words?

# %%
x20 = torch.randn(20, d)
z20, weights20 = self_attention(x20, *real)
print("result", tuple(z20.shape), " weights", tuple(weights20.shape))
print("rows sum to one:", torch.allclose(weights20.sum(dim=-1), torch.ones(20)))
print("equal to the loop:", torch.allclose(z20, self_attention_loop(x20, *real), atol=1e-5))

# %% [markdown]
# The matrix form is not only shorter. How much faster depends on your machine, so this number is yours alone:

# %% tags=["nbval-ignore-output"]
from timeit import timeit

x100 = torch.randn(100, d)
loop = min(timeit(lambda: self_attention_loop(x100, *real), number=1) for _ in range(3))
matrix = min(timeit(lambda: self_attention(x100, *real), number=1) for _ in range(50))
print(f"100 words: the matrix form is {loop / matrix:.0f} times as fast as the loop")

# %% [markdown]
# **How to read an attention matrix.** Take the words of section 1 again, in one longer sentence, with $x$
# itself as query, key and value: $W^Q$, $W^K$ and $W^V$ are the matrix that changes nothing, the identity.

# %%
sentence = "the money bank the river bank".split()
one = torch.eye(3)
_, weights = self_attention(embed(" ".join(sentence)), one, one, one)
labels = ("… at this one (key)", "this word looks … (query)")
ax = plots.matrix(weights, sentence, sentence, "", *labels)
plots.show(
    ax,
    alt="A matrix of weights, six words by six words. Rows of the word the are even; river looks "
    "mostly at river, money at money, and both banks at river and bank.",
)

# %% [markdown]
# Every row sums to one. "the", whose vector is zero, has nothing to ask: all its scores are equal, and so
# are its weights. "money" looks mostly at itself. Both words "bank" look equally at "river" and at either
# "bank", for all three dot products are 3, and less at "money", whose dot product with them is 2.

# %% [markdown]
# Look at the rows of the two words "bank": they are equal. The first stands beside "money", the second beside
# "river", and attention does not see it. Section 7 comes back to this.

# %% [markdown]
# ## 6. Masks: who may look at whom
#
# Sometimes a word must not see another one. There are two reasons, and one remedy.

# %% [markdown]
# **Padding.** Computers like rectangles: several sentences are worked on together, as one array of $B$
# sentences × $N$ words. A short sentence is filled up with words that mean nothing, the **padding**. (Pictures
# of different sizes are padded in the same way: this is how the detector will meet it.)

# %%
torch.manual_seed(6)
long, short = torch.randn(5, d), torch.randn(2, d)
batch = torch.zeros(2, 5, d)  # (B, N, d)
batch[0], batch[1, :2] = long, short  # three rows of padding below the short one
Q, K, V = (batch @ W for W in real)  # (B, N, D) each

# %% [markdown]
# Nothing has told attention that three of the words are not there. What share of the weight goes to them?
# (`package.attention_weights` is the softmax of the scaled scores, as above, for each sentence of the batch.)

# %%
weights = package.attention_weights(Q, K)  # (B, N, N)
print("weight that the two real words give to padding:", weights[1, :2, 2:].sum(dim=-1))

# %% [markdown]
# A good part of what these two words now are comes from words that do not exist. The remedy: **before** the
# softmax, set the scores of hidden words to −∞. The exponential of −∞ is 0, so they get no weight, and the
# others share all of it.

# %% [markdown]
# A **mask** says which ones. Ours hold True where a key must *not* be seen, as in the detector's code. (Other
# libraries mean the opposite by True. A mask the wrong way round raises no error; it only gives wrong
# numbers.)

# %%
lengths = torch.tensor([5, 2])
padding = torch.arange(5) >= lengths[:, None]  # (B, N): True where there is no word
print(padding)

# %%
mask = padding[:, None, :]  # (B, 1, N): the same for every query
scores = Q @ K.transpose(-2, -1) / math.sqrt(D)  # (B, N, N)
weights = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
print("weight for padding:", weights[1, :2, 2:].sum(dim=-1))
print("rows still sum to one:", torch.allclose(weights.sum(dim=-1), torch.ones(2, 5)))

# %% [markdown]
# The test that counts: the short sentence must come out of the batch as if it had been alone.

# %%
alone, _ = self_attention(short, *real)
together = (weights @ V)[1, :2]
print("same as alone:", torch.allclose(alone, together, atol=1e-5))

# %% [markdown]
# > **Claim:** one may as well take the softmax first, and set the hidden weights to zero afterwards.
# >
# > **Measurement:** the sum of each row, when it is done in that order.

# %%
afterwards = scores.softmax(dim=-1).masked_fill(mask, 0.0)
print("rows sum to", afterwards[1, :2].sum(dim=-1))

# %% [markdown]
# The hidden words are gone, but they have taken their share with them: what is left is no longer a mean, and
# the new vectors come out too small. The mask belongs before the softmax.

# %% [markdown]
# One case remains: a word that may see nobody at all. Then the softmax has only −∞ to work with, and 0/0 is
# not a number. The package gives such a word zeros:

# %%
nobody = torch.ones(1, 3, dtype=torch.bool)
print("softmax:", torch.full((3,), -torch.inf).softmax(dim=-1))
print("package:", package.attention_weights(torch.randn(1, D), torch.randn(3, D), nobody))

# %% [markdown]
# **Causal masks.** A model that writes a sentence word by word must not peek at words that are not written
# yet. So word $i$ may see words 0 to $i$, and everything later is hidden: True above the diagonal. (The vectors
# of the four words are random here; only who may look at whom matters.)

# %%
torch.manual_seed(7)
story = ["once", "upon", "a", "time"]
x4 = torch.randn(4, d)
Q, K, V = (x4 @ W for W in real)
causal = package.causal_mask(4)  # (N, N)
tables = [causal, package.attention_weights(Q, K), package.attention_weights(Q, K, causal)]
titles = ["the mask", "weights without it", "weights with it"]
drawn = plots.matrices(tables, titles, story, story, height=2.7)
plots.show(
    drawn,
    alt="Three matrices of four words. The causal mask is one above the diagonal; without it every "
    "word has some weight everywhere; with it the weights above the diagonal are zero.",
)

# %% [markdown]
# Compare the second row in the middle and on the right. The two hidden words have lost their weights, and the
# two that stay have grown in proportion, to one again.

# %% [markdown]
# The first word can only look at itself, so its weight is 1. Does the mask keep its promise? Change the last
# word; no word before it may notice.

# %%
changed = x4.clone()
changed[3] = torch.randn(d)
before = package.scaled_dot_product_attention(*(x4 @ W for W in real), causal)
after = package.scaled_dot_product_attention(*(changed @ W for W in real), causal)
for word, difference in zip(story, (before - after).abs().amax(dim=-1)):
    print(f"{word:5} changed: {bool(difference > 1e-5)}")

# %% [markdown]
# ## 7. Attention sees no order
#
# "Dog bites man" is no news; "man bites dog" is. Let us give both to self-attention.

# %%
dog, bites, man = torch.randn(3, d)
news_1, _ = self_attention(torch.stack([dog, bites, man]), *real)
news_2, _ = self_attention(torch.stack([man, bites, dog]), *real)
print("dog the same in both:", torch.allclose(news_1[0], news_2[2], atol=1e-5))
print("man the same in both:", torch.allclose(news_1[2], news_2[0], atol=1e-5))

# %% [markdown]
# To attention it is the same event. No step of the six asks *where* a word stands; a sum does not care in
# which order its terms come. Words in another order give the same vectors in that other order. This is
# called **permutation equivariance**. (A causal mask breaks it, for it counts positions.) The two words
# "bank" of section 5 had no chance: only what stands beside them differs, and beside means nothing here.

# %% [markdown]
# Seen in the matrix: the order of words moves rows and columns about, and changes no number.

# %%
order = torch.tensor([2, 0, 3, 1])
moved = [story[i] for i in order]
_, weights = self_attention(x4, *real)
_, weights_moved = self_attention(x4[order], *real)
drawn, axes = plots.panels(2, height=2.9)
plots.matrix(weights, story, story, "in order", ax=axes[0])
plots.matrix(weights_moved, moved, moved, "shuffled", ax=axes[1])
plots.show(
    drawn,
    alt="Two matrices of weights for the same four words in two orders. Every pair of words has "
    "the same weight in both; only the places of rows and columns differ.",
)

# %% [markdown]
# Find the largest weight, "a" looking at "upon", on the left and on the right: the same weight, only in
# another place.

# %% [markdown]
# Is that good or bad? Both. A set of objects in a picture has no order, and in [05](05_hungarian_loss.ipynb) this will be welcome. A
# sentence has one, and so do the pixels of a picture. [03](03_positional_encoding.ipynb) gives it back, by
# adding to each vector a sign of where it stands.

# %% [markdown]
# ## 8. The price: N²
#
# Every word looks at every other: $N$ words make $N \times N$ scores. Twice the words, four times the work. The two
# large products take $N \cdot N \cdot D$ multiplications each, and as many additions. torch's counter adds up the
# operations of every matrix product (it leaves out the softmax, which is small beside them):

# %%
from torch.utils.flop_counter import FlopCounterMode

for N in (128, 256, 512, 1024):
    Q = torch.randn(N, D)
    with FlopCounterMode(display=False) as counter:
        _ = (Q @ Q.T).softmax(dim=-1) @ Q
    counted, computed = counter.get_total_flops(), 4 * N * N * D
    print(f"N = {N:4}   operations {counted:>11,}   4·N²·D = {computed:>11,}")

# %% [markdown]
# Counted and computed agree: there is no product that we forgot. And each line is four times the one above.
# Time follows, roughly: small sizes are distorted by what a call costs in itself, and where the table of
# scores outgrows the processor's cache the factor is larger.


# %% tags=["nbval-ignore-output"]
def seconds(N):
    Q = torch.randn(N, D)
    return min(timeit(lambda: (Q @ Q.T).softmax(dim=-1) @ Q, number=1) for _ in range(9))


for N in (512, 1024):
    print(f"from {N} to {2 * N} words: {seconds(2 * N) / seconds(N):.1f} times as long")

# %% [markdown]
# For a sentence this is no trouble. For a picture the **tokens**, as the vectors that attention works on
# are called, are not words but the cells of a grid laid over it. A photograph of 800 × 1066 pixels with
# cells of 32 × 32 pixels has 25 × 34 of them; to find small objects one wants cells of 8 × 8.

# %%
for cell in (32, 16, 8):
    N = math.ceil(800 / cell) * math.ceil(1066 / cell)
    megabytes = N * N * 4 / 1e6  # four bytes for a number
    print(f"cells of {cell:2} px: N = {N:6,}   N² = {N * N:11,}", end="   ")
    print(f"the weights take {megabytes:4.0f} MB")

# %% [markdown]
# As a curve, with the number of tokens beside it. Both axes are logarithmic: a step to the right doubles $N$,
# a step up is a factor of ten.

# %%
N = [2**i for i in range(6, 15)]
lines = {"weights, N²": [n * n for n in N], "tokens, N": N}
title = "How many weights there are"
ax = plots.curves(N, lines, title, "N, tokens", log="xy", dashed=["tokens, N"])
plots.show(
    ax,
    alt="Two straight lines on logarithmic axes from 64 to 16384 tokens: the number of weights, N "
    "squared, climbs twice as steeply as the number of tokens itself.",
)

# %% [markdown]
# Half the cell size means four times the tokens and sixteen times the weights, and DETR, the detector of
# [06](06_detr.ipynb), has eight such matrices (one for each head: [02](02_multi_head_attention.ipynb)) in every layer of its encoder ([04](04_transformer.ipynb)). **Remember this curve.** It is the reason why
# Deformable DETR exists, and [07](07_deformable_attention.ipynb) bends it down.

# %% [markdown]
# > **Claim:** a clever implementation makes this cheap. torch has a *fused* one, which never keeps the $N \times N$
# > weights in memory.
# >
# > **Measurement:** how much longer does it take for twice the words?


# %% tags=["nbval-ignore-output"]
def seconds_fused(N):
    Q = torch.randn(1, 1, N, D)  # it wants two dimensions in front
    fused = torch.nn.functional.scaled_dot_product_attention
    return min(timeit(lambda: fused(Q, Q, Q), number=1) for _ in range(9))


for N in (1024, 2048):
    print(f"from {N} to {2 * N} words: {seconds_fused(2 * N) / seconds_fused(N):.1f} times as long")

# %% [markdown]
# The memory is saved, the work is not: every query still meets every key, and twice the words take about
# four times as long. To be cheap, a query must look at fewer keys.

# %% [markdown]
# ## 9. The same, from the package and from torch
#
# The package has a function for the weights, written out as you did, to look at; and one for the whole,
# which hands the work to torch's fused function. Three ways, one result:

# %%
Q, K, V = torch.randn(3, 6, D)
mask = package.causal_mask(6)

by_hand = (Q @ K.T / math.sqrt(D)).masked_fill(mask, -torch.inf).softmax(dim=-1) @ V
fused = torch.nn.functional.scaled_dot_product_attention
ways = {
    "package, weights written out": package.attention_weights(Q, K, mask) @ V,
    "package, fused": package.scaled_dot_product_attention(Q, K, V, mask),
    "torch": fused(Q, K, V, attn_mask=~mask),  # True is visible
}
for name, result in ways.items():
    print(f"{name:29} within 1e-6: {(by_hand - result).abs().max().item() < 1e-6}")

# %% [markdown]
# Mind the `~`: in torch's function and in this package True has opposite meanings. Where each equation of the
# paper stands in the package, and which test checks it:

# %%
course.equation_map("01")

# %% [markdown]
# ## 10. From words to pictures
#
# Nothing above asked what a "word" is. Any set of vectors will do. Here is the picture that we shall follow
# through the whole course; cut it into squares of 8 × 8 pixels, and each square is a token.

# %%
scene = course.picture()
print(scene.names)
ax = plots.patch_grid(scene.pixels, 8, "The course's picture, in 12 × 12 patches")
plots.show(
    ax,
    alt="A generated picture with a striped star, a small teal star, and an orange triangle on a "
    "yellow ring, under a grid of twelve by twelve squares.",
)

# %% [markdown]
# Four objects: two stars, and a triangle that hides part of a ring. A patch has 8 × 8 pixels of three
# colours, which are 192 numbers, and there are 144 of them.

# %% [markdown]
# A token needs a vector. A trained network would make a good one; we take the simplest that tells patches
# apart, their **mean colour**. (`unfold` cuts a tensor into pieces: here every 8 rows, then every 8 columns.)

# %%
pixels = scene.pixels / 255  # (3, H, W) = (3, 96, 96), in 0..1
patches = pixels.unfold(1, 8, 8).unfold(2, 8, 8)  # (3, 12, 12, 8, 8)
colour = patches.mean(dim=(-2, -1)).flatten(1).T  # (N, d) = (144, 3)
print("tokens", tuple(colour.shape))

# %% [markdown]
# Queries and keys should fit where colours are alike. So we take the colour as a difference from the
# picture's mean colour, divided by its spread, and give every such vector the same length, 3: the dot
# product of two is then 9 when they point the same way, and −9 when they are opposite. The values are the
# colours themselves.

# %%
centred = (colour - colour.mean(dim=0)) / colour.std(dim=0)  # (144, 3)
Q = K = 3 * torch.nn.functional.normalize(centred, dim=-1)
weights = package.attention_weights(Q, K)  # (144, 144)
print("weights", tuple(weights.shape))

# %% [markdown]
# 144 × 144 weights. Each row belongs to one patch, and folded back into 12 × 12 it says where in the picture
# that patch looks. Four rows, each from the patch in the blue frame:

# %%
over = {"large star": (2, 3), "small star": (4, 7), "ring": (7, 10), "ground": (1, 10)}
maps = weights.reshape(12, 12, 12, 12)  # row and column that look, row and column looked at
drawn, axes = plots.panels(4, height=2.3)
for (name, (row, column)), ax in zip(over.items(), axes):
    plots.attention_over_picture(scene.pixels, maps[row, column], (row, column), name, ax=ax)
plots.show(
    drawn,
    alt="Attention of four patches over the picture. The patch in the large star lights up that "
    "star and part of the triangle, the small star mostly itself, the ring itself and a little of "
    "the triangle, and the ground lights up the ground.",
)

# %% [markdown]
# Red squares are looked at most, orange and yellow ones less, grey ones hardly at all (each picture has its
# own scale). The ring finds the rest of itself around its hole, and the ground finds ground far
# away, most of all on the left; some ground close by, of a slightly other shade, it hardly sees.

# %% [markdown]
# > **Claim:** attention finds objects.
# >
# > **Measurement:** how much of a patch's weight falls into the box of its own object, compared with the
# > share of the picture that this box covers?

# %%
centres = torch.arange(12) * 8 + 4.0  # of the patches, in pixels
for name, index in (("large star", 0), ("small star", 1), ("ring", 2)):
    x0, y0, x1, y1 = scene.boxes[index]
    rows, columns = (centres > y0) & (centres < y1), (centres > x0) & (centres < x1)  # (12,) each
    inside = rows[:, None] & columns  # (12, 12)
    weight, share = maps[over[name]][inside].sum(), inside.float().mean()
    print(f"{name:10}  weight inside its box: {weight:.0%}   patches inside: {share:.0%}")

# %% [markdown]
# It finds what is *alike*, and here alike means "of the same colour". That is often the object, since objects
# tend to be of a colour; but the patch of the large star also looks at the triangle, because both have orange
# in them. With queries and keys from trained matrices "alike" can mean anything that helps the task; it still
# remains likeness of vectors.

# %% [markdown]
# Finally the output: every patch becomes the weighted mean of the colours of the patches it looks at.

# %%
out = weights @ colour  # (144, 3)
images = [scene.pixels, colour.T.reshape(3, 12, 12), out.T.reshape(3, 12, 12)]
drawn, axes = plots.panels(3, height=2.8)
for image, title, ax in zip(images, ("the picture", "its patches", "after self-attention"), axes):
    plots.picture(image, title, ax=ax)
plots.show(
    drawn,
    alt="The picture, its twelve by twelve mean colours, and the same after attention: the ground "
    "has become one even colour, and each object nearly one colour of its own.",
)

# %% [markdown]
# The ground has become calm, and each object has drifted towards one colour; star and triangle towards the
# same, as the row of the large star foretold. Patches that are alike have spoken with one another, in a
# single step, even from opposite corners of the picture.

# %% [markdown]
# ## Summary
#
# - A table of embeddings gives a word the same vector everywhere; attention makes the vector depend on the sentence.
# - Query, key, value: what a word looks for, what it is found by, what it hands over. Three matrices make them.
# - Six steps: make $q$, $k$, $v$; score; divide by $\sqrt{D}$; softmax; weigh the values; sum. In one line:
#   $\text{softmax}(Q K^\top / \sqrt{D})\,V$.
# - $\sqrt{D}$ keeps the spread of the scores at one, so that training starts with soft weights, and every query gets a
#   gradient.
# - A mask sets scores to −∞ before the softmax: for padding, and for words that are not written yet.
# - Attention sees no order, and it costs $N^2$. Both will be dealt with: [03](03_positional_encoding.ipynb) and
#   [07](07_deformable_attention.ipynb).

# %% [markdown]
# ## Exercises
#
# Each exercise has a function to complete, a hint, a check and a solution. `course.check` never stops the
# notebook: as long as you have written nothing it tells you what to do, and if something is wrong it tries to
# tell you *which* mistake it is. `course.hint("name")` prints further hints.

# %% [markdown]
# ### Exercise 1 · `scaled_scores`
#
# Difficulty ●○○○○ · Importance ●●●●○ · about 5 minutes
#
# Steps 2 and 3 for every query and every key, with plain loops: entry $(i, j)$ is the dot product of query $i$
# with key $j$, divided by $\sqrt{D}$. The numbers of queries and of keys may differ.


# %% tags=["exercise"]
def scaled_scores(query, key):
    """query: (N_q, D), key: (N_k, D). Returns (N_q, N_k), the dot products divided by √D."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Fill a table made with `torch.zeros`, one row for each query and one column for each key. The dot product
# of two vectors is `a @ b`. $D$ is the length of one query, `query.shape[1]`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("scaled_scores", scaled_scores)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def scaled_scores(query, key):
#     """query: (N_q, D), key: (N_k, D). Returns (N_q, N_k), the dot products divided by √D."""
#     scores = torch.zeros(len(query), len(key))
#     for i in range(len(query)):
#         for j in range(len(key)):
#             scores[i, j] = query[i] @ key[j] / query.shape[1] ** 0.5
#     return scores
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `softmax_with_temperature`
#
# Difficulty ●●○○○ · Importance ●●●○○ · about 10 minutes
#
# $\sqrt{D}$ is one choice of a **temperature** $T$: $\text{softmax}(\text{scores} / T)$. High temperatures make weights
# even, low ones make them a choice. Write it with `exp`, `sum` and `amax`, without torch's `softmax`. One trap: e to
# the 1000 is infinite for a computer, and scores of 1000 must still give the right weights.


# %% tags=["exercise"]
def softmax_with_temperature(scores, temperature):
    """scores: (..., N_k). Returns positive weights of that shape; the last dimension sums to 1."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Subtract the same number from all scores of a row, and top and bottom of the fraction are both multiplied by
# the same factor: the weights stay. Choose the number so that the largest exponential is e⁰ = 1.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("softmax_with_temperature", softmax_with_temperature)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def softmax_with_temperature(scores, temperature):
#     """scores: (..., N_k). Returns positive weights of that shape; the last dimension sums to 1."""
#     scores = scores / temperature
#     exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
#     return exponentials / exponentials.sum(dim=-1, keepdim=True)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `causal_mask`
#
# Difficulty ●○○○○ · Importance ●●●○○ · about 5 minutes
#
# The mask of section 6: True where a word may not look. The package has one too, and yours can take its
# place.


# %% tags=["exercise"]
def causal_mask(length):
    """Returns (N, N), N = length: True at [i, j] if word i must not see word j, which is later."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Compare a column of positions with a row of positions: `torch.arange(length)[:, None]` has shape $(N, 1)$,
# `torch.arange(length)` has shape $(N,)$, and comparing the two gives $(N, N)$.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("causal_mask", causal_mask)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def causal_mask(length):
#     """Returns (N, N), N = length: True at [i, j] if word i must not see word j, which is later."""
#     position = torch.arange(length)
#     return position > position[:, None]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `scaled_dot_product_attention`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 15 minutes
#
# The whole of it, with an optional mask. Two things are new. Inputs may have further dimensions in front
# (pictures, heads), so count dimensions from the end: `transpose(-2, -1)`, `softmax(dim=-1)`. And the mask
# may have size 1 where it is the same for all; torch stretches it by itself. (A query that may see nobody
# need not be handled.)
#
# **The detector will run on this function**: see below.


# %% tags=["exercise"]
def scaled_dot_product_attention(query, key, value, mask=None):
    """query: (..., N_q, D), key: (..., N_k, D), value: (..., N_k, D_v). Returns (..., N_q, D_v).

    mask: broadcastable to (..., N_q, N_k), True where a key is hidden; or None.
    """
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Four lines: the scaled scores; if there is a mask, `masked_fill` with −∞ (`-torch.inf`); the softmax; the
# product with the values. Begin without the mask and let the check tell you the rest.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("scaled_dot_product_attention", scaled_dot_product_attention)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def scaled_dot_product_attention(query, key, value, mask=None):
#     """query: (..., N_q, D), key: (..., N_k, D), value: (..., N_k, D_v). Returns (..., N_q, D_v).
#
#     mask: broadcastable to (..., N_q, N_k), True where a key is hidden; or None.
#     """
#     scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., N_q, N_k)
#     if mask is not None:
#         scores = scores.masked_fill(mask, -torch.inf)
#     weights = scores.softmax(dim=-1)  # (..., N_q, N_k)
#     return weights @ value  # (..., N_q, D_v)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 5 · `permutation_gap`
#
# Difficulty ●●○○○ · Importance ●●●●○ · about 10 minutes
#
# Turn section 7 into a test that works for any function from words to words: the largest absolute difference
# between `attend` of the shuffled words and the shuffled `attend` of the words. Zero means that the function
# sees no order.


# %% tags=["exercise"]
def permutation_gap(attend, x, order):
    """attend: (N, d) → (N, D); x: (N, d); order: (N,), a permutation. Returns one number, ≥ 0."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# There are two ways to a shuffled result: shuffle first, then attend; or attend first, then shuffle.
# `x[order]` shuffles.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("permutation_gap", permutation_gap)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def permutation_gap(attend, x, order):
#     """attend: (N, d) → (N, D); x: (N, d); order: (N,), a permutation. Returns one number, ≥ 0."""
#     return (attend(x[order]) - attend(x)[order]).abs().max()
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package
#
# What you have solved can take the place of the package's own function. `course.use` checks it once more and
# then swaps it in, for every layer and every model of this session; it also keeps the source in the folder
# `my_parts` beside this notebook, from where later notebooks fetch it. What fails its check is never plugged
# in.

# %% tags=["nbval-ignore-output"]
course.use("causal_mask", causal_mask)
course.use("scaled_dot_product_attention", scaled_dot_product_attention)

# %% tags=["nbval-ignore-output"]
course.parts()

# %% [markdown]
# A layer of the package, with eight heads, now runs on whichever function is plugged in. Its output must not
# depend on whose it is:

# %%
layer = package.MultiHeadAttention(dim=64, heads=8)
tokens = torch.randn(1, 10, 64)  # (B, N, d)
with torch.no_grad():
    plugged_in = layer(tokens, tokens, tokens)
    course.reset()  # the package's own functions again
    own = layer(tokens, tokens, tokens)
print("same output:", torch.allclose(plugged_in, own, atol=1e-5))

# %% [markdown]
# In [09](09_deformable_detr.ipynb) a trained detector will find the objects of this picture through functions
# that you wrote.

# %% [markdown]
# ## Symbols and terms
#
# These letters mean the same in all notebooks, and in the docstrings of the package; where a letter has two meanings, its line says so.

# %%
course.symbols("x", "d", "N", "B", "N_q", "N_k", "D", "D_v", "Q", "K", "V", "W^Q", "T")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("01")

# %% [markdown]
# **Next:** one attention can weigh for one reason at a time. [02 · Multi-head
# attention](02_multi_head_attention.ipynb) runs eight side by side, and finds out what "it" refers to. Back
# to [00 · Start here](00_start_here.ipynb).
