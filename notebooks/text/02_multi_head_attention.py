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
# # 02 · Multi-head attention: several reasons to look
#
# One attention looks for one reason. Here eight of them run side by side, at the price of one; and a model that
# you train in seconds finds out what "it" refers to in a sentence. Then we ask whether its weights *explain*
# its answers, and the answer is less simple than the pictures.

# %% [markdown]
# | | |
# |:--|:--|
# | **You will be able to** | build multi-head attention from eight single ones, then as four matrix products; split and merge heads without mixing words; say what eight heads cost; train two layers that resolve "it", say why one cannot, and read pictures of heads with due doubt |
# | **You need first** | [01 · Self-attention](01_self_attention.ipynb) |
# | **Time** | 75 minutes to read and run, 45 for the exercises |
# | **Device** | any CPU; two cells train for about 10 seconds each, and nothing is downloaded |

# %%
import math

import torch

from ddetr_lite import course, plots
from ddetr_lite.layers import attention as package

torch.manual_seed(0)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. What one head cannot do
#
# *The animal didn't cross the street because it was too tired.* To understand "it" one must look at two words
# at least: at "animal", which it stands for, and at "tired", which is the reason to think so.

# %% [markdown]
# One attention gives one row of weights for each word, and what it returns is one weighted mean. A mean of two
# things is a third thing. Let a word look half at "river" and half at "money", in the table of notebook 01 with its
# columns for water, money and place:

# %%
table = {"river": [2.0, 0.0, 1.0], "money": [0.0, 2.0, 0.0], "bank": [1.0, 1.0, 1.0]}
river, money, bank = (torch.tensor(row) for row in table.values())
print("half river, half money:", (river + money) / 2)
print("bank:                  ", bank)

# %% [markdown]
# What it gets is almost the vector of "bank", at which it has not looked at all. Whoever is handed the mean cannot
# tell any more what went into it. Two means, kept apart, would tell more.

# %% [markdown]
# There is a second trouble: a word cannot keep itself and look around at once. If queries and keys are made by matrices that are much
# alike, a word's own key fits its query best. If they are not, the word looks elsewhere. Measured with one and the same random matrix for
# both, the extreme case, and with two:

# %%
d, D = 512, 64
sentence = "the animal didn't cross the street because it was too tired".split()
vectors = {word: torch.randn(d) for word in sentence}  # a word that comes twice has one vector
x = torch.stack([vectors[word] for word in sentence])  # (N, d)


def random_matrix(rows, columns):
    return torch.randn(rows, columns) / math.sqrt(rows)


W_same, W_other = random_matrix(d, D), random_matrix(d, D)
selfish = package.attention_weights(x @ W_same, x @ W_same)  # (N, N)
open_minded = package.attention_weights(x @ W_same, x @ W_other)
it = sentence.index("it")
print(f"weight of 'it' for itself: {selfish[it, it]:.2f} with one matrix", end=", ")
print(f"{open_minded[it, it]:.2f} with two")

# %%
titles = ["$W^Q = W^K$", "two matrices"]
drawn = plots.matrices([selfish, open_minded], titles, sentence, sentence, height=3.6)
plots.show(
    drawn,
    alt="Two matrices of weights, eleven words by eleven. With one matrix for queries and keys "
    "nearly all weight lies on the diagonal, and on the other word the; with two matrices it is "
    "scattered.",
)

# %% [markdown]
# On the left every word looks at itself (and "the" at both words "the"); "it", with 0.89, is the least extreme. On the
# right, with two different matrices, words look around (at random here: that "didn't" looks at "too" is chance), but then "it"
# keeps only 0.07 of itself. One row of weights cannot do both, stay at home and look around. Two heads can.

# %% [markdown]
# ## 2. Eight heads
#
# So we take not one set of matrices $W^Q$, $W^K$, $W^V$ but **eight**, each with its own random start, each free to
# learn something else. Each set gives an attention of its own, called a **head**. $M$ is the number of heads:
#
# $$z_h = \text{Attention}(x\,W^Q_h,\; x\,W^K_h,\; x\,W^V_h), \qquad h = 0 \dots M - 1$$

# %%
M = 8
heads = [[random_matrix(d, D) for _ in range(3)] for _ in range(M)]  # W^Q, W^K, W^V of each head
z = []
for W_Q, W_K, W_V in heads:
    z.append(package.scaled_dot_product_attention(x @ W_Q, x @ W_K, x @ W_V))  # (N, D)
print(len(z), "heads, each", tuple(z[0].shape))

# %% [markdown]
# What follows (in a Transformer another layer) expects one vector of 512 numbers for a word, not eight of 64. But 8
# · 64 = 512: we put the eight side by side. `cat` is short for *concatenate*.

# %%
together = torch.cat(z, dim=-1)  # (N, M·D)
print(tuple(together.shape))

# %% [markdown]
# One thing is missing. Number 5 of this vector comes from head 0 alone, and number 500 from head 7 alone. A last
# matrix, **$W^O$**, lets the heads' findings meet: each of the 512 numbers of the output is a sum over all of
# them.
#
# $$\text{MultiHead}(x) = \text{Concat}(z_0, \dots, z_{M-1})\,W^O$$

# %%
W_O = random_matrix(M * D, d)  # (512, 512)
output = together @ W_O  # (N, d)
print("in:", tuple(x.shape), " out:", tuple(output.shape))

# %% [markdown]
# Words come in as 512 numbers and go out as 512 numbers, so such layers can be stacked. The whole way, in one
# picture:

# %%
drawn, axes = plots.panels(4, height=2.7, width_ratios=[8, 1, 8, 8])
titles = ("x: 512", "64", "eight heads: 8 · 64", "after $W^O$: 512")
for values, title, ax in zip((x, z[0], together, output), titles, axes):
    plots.vectors(values, sentence if ax is axes[0] else None, title, ax=ax)
for h in range(1, M):
    axes[2].axvline(h * D - 0.5, color=plots.INK, linewidth=1)
plots.show(
    drawn,
    alt="Eleven words as rows of colour, four times: the embeddings, the narrow result of one "
    "head, the results of eight heads side by side with lines between them, and the output after "
    "W^O.",
)

# %% [markdown]
# **$W^O$ by hand.** Two words, two heads of two numbers. Head 0 says (1, 0) about the first word, head 1 says (0, 3).
# Side by side that is (1, 0, 0, 3). Let $W^O$ be the identity, except for its last row, which is all ones. Then the 1
# picks the first row, (1, 0, 0, 0), and the 3 picks the last, 3 · (1, 1, 1, 1): together (4, 3, 3, 3). What head 1
# said has reached every number. Try the second word before you look.

# %%
# (N, M·D) = (2, 4): head 0 | head 1
said = torch.tensor([[1.0, 0.0, 0.0, 3.0], [0.0, 2.0, 1.0, 0.0]])
join = torch.eye(4)
join[3] = 1.0
print(said @ join)

# %% [markdown]
# There is another way to see $W^O$. Its first 64 rows belong to head 0, the next 64 to head 1. So the product
# is a **sum**: each head adds its own contribution to the word.

# %%
contributions = [z[h] @ W_O[h * D : (h + 1) * D] for h in range(M)]  # (N, d) each
same = torch.allclose(sum(contributions), output, atol=1e-4)
print("sum of contributions equals Concat · W^O:", same)

# %% [markdown]
# ## 3. All heads at once
#
# A loop over the heads makes eight small products where one large one would do. Put the eight matrices $W^Q$ side by side,
# and they become one of 512 × 512; a single product then gives the queries of all heads, side by side.

# %%
# (d, M·D) each:
W_Q_all, W_K_all, W_V_all = (torch.cat([head[i] for head in heads], dim=1) for i in range(3))
Q_all = x @ W_Q_all  # (N, M·D)
print(tuple(Q_all.shape))
print("head 3 found in it:", torch.allclose(Q_all[:, 3 * D : 4 * D], x @ heads[3][0], atol=1e-4))

# %% [markdown]
# (One of the numbers of a vector is called a **channel**: a word has 512 here, a head's query 64.) Now cut each row
# into eight pieces, $(N, M, D)$, and bring the heads to the front, $(M, N, D)$. Attention
# treats whatever stands in front of the last two dimensions as many separate cases: eight heads at once.


# %%
def split(y):
    """(N, M·D) → (M, N, D)."""
    return y.reshape(len(y), M, D).transpose(0, 1)


weights = package.attention_weights(split(Q_all), split(x @ W_K_all))  # (M, N, N)
z_all = weights @ split(x @ W_V_all)  # (M, N, D)
print("weights", tuple(weights.shape), " results", tuple(z_all.shape))

# %% [markdown]
# And back: the words to the front, $(N, M, D)$, then the pieces side by side again, $(N, M \cdot D)$.

# %%
merged = z_all.transpose(0, 1).reshape(len(x), M * D)  # (N, M·D)
print("equal to the loop:", torch.allclose(merged @ W_O, output, atol=1e-4))

# %% [markdown]
# > **Claim:** `reshape` puts numbers into another shape; to get $(M, N, D)$ one may as well ask for it at once.
# >
# > **Measurement:** two words, two heads of two channels, numbered.

# %%
numbered = torch.arange(8).reshape(2, 4)  # (N, M·D): word 0 has 0..3, word 1 has 4..7
print("head 0, cut then transposed:", numbered.reshape(2, 2, 2).transpose(0, 1)[0].tolist())
print("head 0, asked for at once:  ", numbered.reshape(2, 2, 2)[0].tolist())

# %% [markdown]
# Head 0 should hold channels 0 and 1 of both words: 0, 1 and 4, 5. Asked for at once, it holds all channels of
# word 0: two halves of one word are taken for two words. A frequent mistake in code of this kind, and a quiet
# one: the shape is right, and no error is raised. Exercise 1 knows it.

# %% [markdown]
# ## 4. What do eight heads cost?
#
# > **Claim:** eight heads cost eight times as much as one.
# >
# > **Measurement:** count the parameters, and the operations, for one head of 512 channels and eight of 64.

# %%
from torch.utils.flop_counter import FlopCounterMode

tokens = torch.randn(1, 100, d)  # (B, N, d)
for M_tried in (1, 8):
    layer = package.MultiHeadAttention(d, M_tried)
    parameters = sum(p.numel() for p in layer.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _ = layer(tokens, tokens, tokens)
    print(f"M = {M_tried}: {parameters:,} parameters, {counter.get_total_flops():,} operations")

# %% [markdown]
# The same, to the last digit, since $d$ is *shared out* among the heads: $D = d / M$. (A **parameter** is a number that
# training changes: 512² for each of four matrices, and 512 for each of four **biases**, numbers that are added to the
# channels after a product, and that we left out. Operations: two for each of the 512² in each of the four products
# for each of 100 words, and 2 · 2 · 100² · 512 for scores and weighted sums.)

# %% [markdown]
# What grows is only the number of attention weights, $M \cdot N^2$ instead of $N^2$. The price: each head compares words
# by 64 numbers instead of 512.

# %% [markdown]
# ## 5. What does "it" refer to?
#
# Random heads look at random words. What do they do after training? We make a small language of sentences of
# one kind:
#
# *the ANIMAL did not VERB the PLACE because it was too ADJECTIVE*

# %%
animals = "animal dog cat cow horse sheep fox duck".split()
places = "street road river bridge field path track canal".split()
verbs = "cross enter leave reach".split()
of_animals = "tired hungry old sick weak lazy".split()
of_places = "wide deep long narrow steep muddy".split()

# %% [markdown]
# An animal can be tired, and a street can be wide. So the last word decides what "it" is. For every sentence we
# know the answer: the position (counted from 0), 1 or 6, of the word that is meant.

# %%
from itertools import product

sentences, answers = [], []
for animal, verb, place in product(animals, verbs, places):
    for adjective in of_animals + of_places:
        text = f"the {animal} did not {verb} the {place} because it was too {adjective}"
        sentences.append(text.split())
        answers.append(1 if adjective in of_animals else 6)
print(len(sentences), "sentences; the first:", " ".join(sentences[0]))
print("'it' is word 8, and means word", answers[0], "which is", sentences[0][answers[0]])

# %% [markdown]
# A model reads numbers, so every word gets one. And we keep a quarter back: 16 of the 64 pairs of an animal with a
# place never occur in training, among them "animal" with "street". A model that has only memorised will fail there.

# %%
vocabulary = sorted({word for s in sentences for word in s})
number = {word: i for i, word in enumerate(vocabulary)}
X = torch.tensor([[number[word] for word in s] for s in sentences])  # (sentences, 12)
answer = torch.tensor(answers)  # (sentences,)
unseen = torch.tensor([(animals.index(s[1]) + places.index(s[6])) % 4 == 0 for s in sentences])
IT = sentences[0].index("it")
to_learn, kept_back = int((~unseen).sum()), int(unseen.sum())
print(f"{len(vocabulary)} words; {to_learn} sentences to learn from, {kept_back} kept back")

# %% [markdown]
# The model: embeddings, then attention layers one on top of the other. `x + layer(x, x, x)` means that a word *keeps*
# what it was, and adds what it has seen ([04](04_transformer.ipynb) says why that is good). The three `x` are what queries,
# keys and values are made from; `layer.weights(x, x)` gives the weights alone. The last layer does not
# answer with words. Its answer is **where it looks** from "it": the mean of its eight heads' weights.

# %% [markdown]
# In torch such a model is a `Module`: it collects the parameters, so that training can find them, and `forward` says
# what happens when we call it. `Embedding` is the table of 01, with a row for each word, filled at random.
# `ModuleList` is a list whose parameters are found as well.


# %%
class Pointer(torch.nn.Module):
    """Attention layers, one on top of the other; where the last one looks is the answer."""

    def __init__(self, layers, d=64, heads=8):
        super().__init__()
        self.embedding = torch.nn.Embedding(len(vocabulary), d)
        attention = (package.MultiHeadAttention(d, heads) for _ in range(layers))
        self.layers = torch.nn.ModuleList(attention)

    def forward(self, numbers):
        """numbers: (B, N). Returns the last layer's weights, seen from "it": (B, M, N)."""
        x = self.embedding(numbers)  # (B, N, d)
        for layer in self.layers[:-1]:
            x = x + layer(x, x, x)
        return self.layers[-1].weights(x, x)[:, :, IT]


# %% [markdown]
# Training needs a number that says how wrong an answer is, the **loss**: here $-\log$ of the weight on the right
# word. It is 0 where all weight lies on it, and grows without limit as the weight goes to 0. `backward()` works
# out how each parameter changes the loss, and an **optimizer** moves each a little in the direction in which the loss
# falls. Adam is a common one, `lr` says how large its steps are, and `zero_grad` makes it forget the gradients of the
# step before.


# %%
def train(model, loss_of, steps):
    """Show the model random sentences, 64 at a time, without those kept back."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    known = (~unseen).nonzero().flatten()
    for _ in range(steps):
        batch = known[torch.randint(len(known), (64,))]
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def pointing_loss(model, batch):
    mean = model(X[batch]).mean(dim=1)  # (64, N), mean over the heads
    return -mean[torch.arange(len(batch)), answer[batch]].log().mean()


# %% [markdown]
# First with one layer, then with two. An answer counts as right when the noun that is meant gets **more than half** of
# the weight. What share of the sentences kept back do they answer rightly?


# %%
def share_right(model):
    with torch.no_grad():
        mean = model(X[unseen]).mean(dim=1)  # (unseen, N)
    return (mean[torch.arange(len(mean)), answer[unseen]] > 0.5).float().mean().item()


pointers = {}
for layers in (1, 2):
    torch.manual_seed(0)
    pointers[layers] = Pointer(layers)
    train(pointers[layers], pointing_loss, steps=200)
    print(f"layers: {layers}   right: {share_right(pointers[layers]):.0%}")

# %% [markdown]
# One layer gets at most half of them right, two get all. Why can one not do it, with all its eight heads? Look at
# the two sentences that differ in the last word only, and at how much heavier "animal" weighs than "street":

# %%
tired = "the animal did not cross the street because it was too tired".split()
wide = "the animal did not cross the street because it was too wide".split()
pair = torch.tensor([[number[word] for word in s] for s in (tired, wide)])  # (2, N)
with torch.no_grad():
    looks = {layers: model(pair) for layers, model in pointers.items()}  # (2, M, N) each
ratio = looks[1][:, :, 1] / looks[1][:, :, 6]  # (2, M)
same = torch.allclose(ratio[0], ratio[1], rtol=1e-4)
print("one layer, animal : street, the same in both sentences:", same)

# %% [markdown]
# The weight from "it" to "animal" is made of the query of "it" and the key of "animal", and "tired" is in neither. It
# comes in only through the sum that all weights are divided by: it can draw weight away from *both* nouns, and leave
# them in the same **ratio**.

# %% [markdown]
# So a head that gives more than half to "animal" after "tired" prefers "animal", and prefers it after "wide" too. In
# numbers: if the ratio is $r$, "animal" gets at most $r / (1 + r)$ in the first sentence, and "street" at most
# $1 / (1 + r)$ in the second; together at most 1. The same holds for the mean of eight heads, as it holds for each. **One
# layer can never give more than half to the right noun in both.**

# %% [markdown]
# With two layers the vectors that meet in the second are no longer words. Each has looked around in the first,
# and carries something of the others. Where do the eight heads of the second layer look from "it"?

# %%
drawn, axes = plots.panels(2, height=3.2)
for which, (s, ax) in enumerate(zip((tired, wide), axes)):
    names = [f"head {h}" for h in range(8)] if which == 0 else None
    plots.matrix(looks[2][which], names, s, f"“… too {s[-1]}”", limit=1.0, numbers=False, ax=ax)
plots.show(
    drawn,
    alt="Where the eight heads of the second layer look from the word it. With tired all of them "
    "look at animal, with wide all look at street.",
)

# %%
mean = looks[2].mean(dim=1)  # (2, N)
for s, weights in zip((tired, wide), mean):
    print(f"too {s[-1]:5}  it → {s[int(weights.argmax())]}")

# %% [markdown]
# Eight heads, one opinion: we asked only for their mean, and nothing made them differ. The last word has changed, and
# "it" looks elsewhere. No rule was written, and this pair of nouns never occurred in training.

# %% [markdown]
# How does the second layer know? Something must have been told about the last word in the first.
#
# > **Claim:** in the first layer "it" looks at the last word; in the second it knows whom to look for.
# >
# > **Measurement:** cut that path. In the first layer a mask hides the last word from "it" alone, or from one noun, or
# > from both, or from all other words; then count right answers.


# %%
def share_right_without(hidden_from):
    """The share of right answers when words `hidden_from` cannot see the last one in layer 1."""
    first, second = pointers[2].layers
    mask = torch.zeros(12, 12, dtype=torch.bool)  # (N_q, N_k)
    mask[hidden_from, 11] = True
    with torch.no_grad():
        x = pointers[2].embedding(X[unseen])
        x = x + first(x, x, x, mask=mask)
        mean = second.weights(x, x)[:, :, IT].mean(dim=1)  # (unseen, N)
    return (mean[torch.arange(len(mean)), answer[unseen]] > 0.5).float().mean().item()


cuts = {"no word": [], "“it”": [IT], "all others": [0, 2, 3, 4, 5, 7, 9, 10]}
cuts |= {"animal": [1], "place": [6], "both nouns": [1, 6]}
shares = {name: share_right_without(words_cut) for name, words_cut in cuts.items()}
for name in ("“it”", "both nouns"):
    print(f"hidden from {name}: {shares[name]:.1f} right")

# %%
title = "Right answers when layer 1 hides the last word from …"
ax = plots.bars(list(shares.values()), list(shares), title)
plots.show(
    ax,
    alt="Six bars of the share of right answers. Hidden from no word, from it, or from all words "
    "but it and the nouns, the last word is still put to use; hidden from one noun some answers "
    "are lost, from both nouns one half.",
)

# %% [markdown]
# Did you expect that? "it" need not look at "tired" at all. Hidden from "it", nothing is lost; hidden from both nouns,
# the model is back to one half. So **the nouns** look: in the first layer "animal" sees "tired" and becomes, so to say,
# *animal-that-would-fit*; in the second, "it" looks for whatever fits. Training found a way that we had not thought
# of, and that the picture of the heads did not show.

# %% [markdown]
# ## 6. Do the weights explain the answer?
#
# Pictures like the one above are often shown as an explanation: *the model answers "animal" because it looks at
# the animal*. Above, that was true by construction, since we had made the looking the answer. But a model usually
# answers with something else.
#
# > **Claim:** a model that knows what "it" means looks at the right word.
# >
# > **Measurement:** forbid a model to look. If all words have the same key, all scores are equal, and every word gets one
# > twelfth, in every head and in every sentence. Train one such layer to answer with a word.


# %%
class Blindfolded(torch.nn.Module):
    """One attention layer that cannot choose where to look; from "it", a score for every word."""

    def __init__(self, d=64, heads=8):
        super().__init__()
        self.embedding = torch.nn.Embedding(len(vocabulary), d)
        self.layer = package.MultiHeadAttention(d, heads)
        self.score = torch.nn.Linear(d, len(vocabulary))  # x Wᵀ + b: (..., d) → (..., words)

    def forward(self, numbers):
        """numbers: (B, N). Returns a score for each word of the vocabulary: (B, words)."""
        x = self.embedding(numbers)
        return self.score((x + self.layer(x, 0 * x, x))[:, IT])


# %% [markdown]
# (The layer is given zeros to make keys from: query $x$, key 0, value $x$. The loss is torch's `cross_entropy`: the softmax
# of the scores, then $-\log$ of the weight of the right word, as before.)

# %%
meant = X[torch.arange(len(X)), answer]  # (sentences,), the number of the word that is meant
other = X[torch.arange(len(X)), 7 - answer]  # and of the other noun: 6 for 1, 1 for 6


def word_loss(model, batch):
    return torch.nn.functional.cross_entropy(model(X[batch]), meant[batch])


torch.manual_seed(0)
blindfolded = Blindfolded()
train(blindfolded, word_loss, steps=400)
with torch.no_grad():
    x = blindfolded.embedding(pair)
    weights = blindfolded.layer.weights(x, 0 * x)  # (2, M, N, N)
    scores = blindfolded(X[unseen])  # (unseen, words)
rows = torch.arange(len(scores))
preferred = (scores[rows, meant[unseen]] > scores[rows, other[unseen]]).float().mean().item()
print("every weight is one twelfth:", torch.allclose(weights, torch.tensor(1 / 12)))
print(f"the noun that is meant scores higher than the other: {preferred:.0%}")

# %% [markdown]
# It cannot look, and it knows. So no picture of its weights could explain its answers: the weights are the same in
# every sentence. How does it do it? Replace the last word "wide" by "tired", and see how far the score of each noun moves:

# %%
nouns = [number[noun] for noun in animals + places]
with torch.no_grad():
    change = (blindfolded(pair)[0] - blindfolded(pair)[1])[nouns]  # (16,)
print("all animals rise more than any place:", bool(change[:8].min() > change[8:].max()))

# %%
title = "Scores of the answers after “tired”, minus those after “wide”"
ax = plots.bars(change, animals + places, title, form="{:.0f}")
ax.tick_params(axis="x", rotation=40)
plots.show(
    ax,
    alt="Sixteen bars. The scores of the eight animals rise when tired stands in the place of "
    "wide, those of the eight places fall.",
)

# %% [markdown]
# "tired" raises *all* animals and lowers *all* places. The noun that is in the sentence adds to its own score; the noun
# that is there *and* raised wins. This is addition, not pointing. Real models may do both at once. Weights say where
# something was taken from, not what was taken, nor what was done with it.

# %% [markdown]
# So read pictures of attention as what they are: **where a head took its mean from**. To learn whether it
# matters, change something and see whether the answer changes, as we did with the mask of section 5 and with the last
# word here.

# %% [markdown]
# ## 7. The same, from the package and from torch
#
# Three other ways to the result of section 2: the package's `MultiHeadAttention`, torch's layer of that name, and torch's
# fused attention between our own products. Both layers keep $W^Q$, $W^K$ and $W^V$ in one tensor, one below the other. They
# compute `x @ W.T` where we wrote `x @ W`, so ours are transposed before they are copied.

# %%
ours = package.MultiHeadAttention(d, M)
theirs = torch.nn.MultiheadAttention(d, M, batch_first=True)
with torch.no_grad():
    ours.in_proj_weight.copy_(torch.cat([W_Q_all.T, W_K_all.T, W_V_all.T]))  # (3·d, d)
    ours.out_proj.weight.copy_(W_O.T)
theirs.load_state_dict(ours.state_dict())  # all parameters, by their names, which are the same
for name, parameter in ours.named_parameters():
    print(f"{name:15} {tuple(parameter.shape)}")

# %%
fused = torch.nn.functional.scaled_dot_product_attention
tokens = torch.stack([vectors[word] for word in sentence])[None]  # (B, N, d)
tokens = tokens / 10  # small, so that rounding is too
with torch.no_grad():
    q, k, v = (split(tokens[0] @ W) for W in (W_Q_all, W_K_all, W_V_all))  # (M, N, D) each
    by_hand = (package.attention_weights(q, k) @ v).transpose(0, 1).reshape(-1, M * D) @ W_O
    sdpa = fused(q, k, v).transpose(0, 1).reshape(-1, M * D) @ W_O
    ways = {
        "package": ours(tokens, tokens, tokens)[0],
        "torch, the layer": theirs(tokens, tokens, tokens)[0][0],
    }
for name, result in {**ways, "torch, fused attention": sdpa}.items():
    print(f"{name:23} within 1e-6: {(by_hand - result).abs().max().item() < 1e-6}")

# %%
course.equation_map("02")

# %% [markdown]
# ## 8. From words to pictures
#
# In 01 the patches of our picture looked at patches of their own colour, for colour was all they had. Now give
# each patch six numbers: its mean colour, and the **spread** of each colour inside it. An even patch has spread
# zero; a striped one, or one with an edge, a large one.

# %%
scene = course.picture()
pixels = scene.pixels / 255  # (3, H, W)
patches = pixels.unfold(1, 8, 8).unfold(2, 8, 8)  # (3, 12, 12, 8, 8)
features = torch.cat([patches.mean(dim=(-2, -1)), patches.std(dim=(-2, -1))])  # (6, 12, 12)
features = features.flatten(1).T  # (N, 6)
tokens = (features - features.mean(dim=0)) / features.std(dim=0)  # (N, d) = (144, 6)
print(tuple(tokens.shape))

# %% [markdown]
# Two heads of three channels. The matrix of the first picks the colours out of the six numbers, that of the
# second picks the spreads. Training would find such matrices if they helped; we write them down. As in 01 all
# queries and keys get the length 3.

# %%
eye = torch.eye(6)
W_colour, W_texture = eye[:, :3], eye[:, 3:]  # (d, D) each


def head(W):
    """The weights (N, N) of a head whose queries and keys are made by the same matrix."""
    directions = 3 * torch.nn.functional.normalize(tokens @ W, dim=-1)
    return package.attention_weights(directions, directions)


maps = {"colour": head(W_colour), "texture": head(W_texture)}

# %%
seen_from = {"star": (2, 3), "ground": (1, 10)}
drawn, axes = plots.panels(5, height=2.0)
plots.picture(scene.pixels, "the picture", ax=axes[0])
cells = [(name, place, kind) for name, place in seen_from.items() for kind in maps]
for (name, (row, column), kind), ax in zip(cells, axes[1:]):
    folded = maps[kind].reshape(12, 12, 12, 12)[row, column]
    plots.attention_over_picture(scene.pixels, folded, (row, column), f"{name}: {kind}", ax=ax)
plots.show(
    drawn,
    alt="The picture, and attention over it from a patch of the large star and one of the ground, "
    "for two heads. The head of colour lights up what has the patch's colour, the head of texture "
    "where the same colours change.",
)

# %% [markdown]
# Seen from the star, the head of colour finds the star and, as in 01, the triangle, which has orange in it as well. The
# head of texture finds patches in which the *same colours* change as in the framed one: in both stars and at
# the edge of the ring. What counts is whether they change more or less than usual, not *how much*: each spread is a difference from
# its mean over all patches, and then all vectors were given the same length.

# %% [markdown]
# The output of two such heads, side by side, gives the next layer two means for each patch: one over patches of its own colour, one
# over patches in which the same colours change. One head with all six numbers would have mixed the two into one likeness. And neither
# knows *where* a patch is: shuffled patches would give the same weights, shuffled. That is what [03](03_positional_encoding.ipynb) adds.

# %% [markdown]
# ## Summary
#
# - One attention returns one mean; what went into it cannot be told apart any more.
# - $M$ heads: $M$ sets of $W^Q$, $W^K$, $W^V$, each of $D = d / M$ channels; their results side by side, joined by $W^O$.
# - All at once: one product of $d \times d$ for each of $Q$, $K$, $V$; cut into heads, attend, merge. Cut first,
#   then transpose.
# - Parameters and operations are those of a single head of $d$ channels.
# - In one layer no third word can change the *ratio* of two weights. In two it can: "it" finds its noun.
# - Weights say where a mean was taken from. Whether that explains an answer must be tested by changing something.

# %% [markdown]
# ## Exercises
#
# As in 01: write, check, ask for hints with `course.hint("name")`. The first three can take the package's place.

# %% [markdown]
# ### Exercise 1 · `split_heads`
#
# Difficulty ●●○○○ · Importance ●●●●● · about 10 minutes
#
# Section 3's first half, for a batch of sentences: every head gets its own $D$ channels, and the heads come
# before the words.


# %% tags=["exercise"]
def split_heads(x, heads):
    """x: (B, N, M·D), M = heads. Returns (B, M, N, D)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# First cut the last dimension into two, $(B, N, M, D)$, with `reshape` or `unflatten`. Then exchange the two
# dimensions in the middle.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("split_heads", split_heads)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def split_heads(x, heads):
#     """x: (B, N, M·D), M = heads. Returns (B, M, N, D)."""
#     B, N, d = x.shape
#     return x.reshape(B, N, heads, d // heads).transpose(1, 2)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · `merge_heads`
#
# Difficulty ●●○○○ · Importance ●●●●○ · about 5 minutes
#
# The way back. `merge_heads(split_heads(x, heads))` is `x` again.


# %% tags=["exercise"]
def merge_heads(x):
    """x: (B, M, N, D). Returns (B, N, M·D)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Do the two steps of exercise 1 backwards, in the opposite order.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("merge_heads", merge_heads)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def merge_heads(x):
#     """x: (B, M, N, D). Returns (B, N, M·D)."""
#     B, M, N, D = x.shape
#     return x.transpose(1, 2).reshape(B, N, M * D)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · `combine_masks`
#
# Difficulty ●●●○○ · Importance ●●●●○ · about 10 minutes
#
# A layer is given two kinds of masks: padding, one row for each sentence, and a pattern such as the causal mask,
# the same for all sentences. Attention wants a single mask that stretches to $(B, M, N_q, N_k)$. Either kind may be
# missing. Make the result no larger than it must be: $(B, 1, 1, N_k)$ from padding alone, a pattern alone as it is,
# $(B, 1, N_q, N_k)$ from both.


# %% tags=["exercise"]
def combine_masks(padding_mask, mask):
    """padding_mask: (B, N_k) or None; mask: (N_q, N_k) or None; True hides. Returns one or None."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# Dimensions are matched from the right, and a dimension of size 1 is stretched. What shape must the padding
# get, so that its $N_k$ stands under $N_k$ and its $B$ under $B$? `x[:, None]` inserts a dimension of size 1.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("combine_masks", combine_masks)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def combine_masks(padding_mask, mask):
#     """padding_mask: (B, N_k) or None; mask: (N_q, N_k) or None; True hides. Returns one or None."""
#     if padding_mask is None:
#         return mask
#     padding = padding_mask[:, None, None, :]  # (B, 1, 1, N_k): the same for each head and query
#     return padding if mask is None else padding | mask
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4 · `multi_head_attention`
#
# Difficulty ●●●○○ · Importance ●●●●● · about 20 minutes
#
# The whole of it for one sentence, from four matrices of $d \times d$. A loop over heads is as welcome as a single
# product. You may use `package.scaled_dot_product_attention`, or write the softmax yourself.


# %% tags=["exercise"]
def multi_head_attention(x, W_Q, W_K, W_V, W_O, heads):
    """x: (N, d); the matrices: (d, d), head h in columns h·D to (h + 1)·D. Returns (N, d)."""
    raise NotImplementedError


# %% [markdown]
# <details>
# <summary>Hint</summary>
#
# $D$ is `x.shape[1] // heads`. Make $Q$, $K$ and $V$ of all heads; take the $D$ columns of one head from each; attend; do
# the same for the next. At the end `torch.cat(..., dim=-1)` and `W_O`.
#
# </details>

# %% tags=["nbval-ignore-output"]
course.check("multi_head_attention", multi_head_attention)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def multi_head_attention(x, W_Q, W_K, W_V, W_O, heads):
#     """x: (N, d); the matrices: (d, d), head h in columns h·D to (h + 1)·D. Returns (N, d)."""
#     Q, K, V = x @ W_Q, x @ W_K, x @ W_V  # (N, d) each
#     D = x.shape[1] // heads
#     results = []
#     for h in range(heads):
#         q, k, v = (y[:, h * D : (h + 1) * D] for y in (Q, K, V))  # (N, D) each
#         weights = (q @ k.T / D**0.5).softmax(dim=-1)  # (N, N)
#         results.append(weights @ v)  # (N, D)
#     return torch.cat(results, dim=-1) @ W_O  # (N, d)
# ```
#
# </details>

# %% [markdown]
# ## Your own code in the package
#
# `restore` brings back what you solved in 01, `use` adds what you solved here.

# %% tags=["nbval-ignore-output"]
course.restore()
course.use("split_heads", split_heads)
course.use("merge_heads", merge_heads)
course.use("combine_masks", combine_masks)

# %% tags=["nbval-ignore-output"]
course.parts()

# %% [markdown]
# The pointing model of section 5, trained on the package's functions, must find the same nouns on yours:

# %%
for s, weights in zip((tired, wide), pointers[2](pair).mean(dim=1)):
    print(f"too {s[-1]:5}  it → {s[int(weights.argmax())]}")
course.reset()

# %% [markdown]
# ## Symbols and terms

# %%
course.symbols("x", "d", "N", "B", "N_q", "N_k", "D", "M", "Q", "K", "V", "W^Q", "W^O", "z")

# %% [markdown]
# And the words that this notebook brings:

# %%
course.terms("02")

# %% [markdown]
# **Next:** to all heads a sentence is still a bag of words. [03 · Positional encoding](03_positional_encoding.ipynb)
# tells them where each word stands. Back to [01 · Self-attention](01_self_attention.ipynb).
