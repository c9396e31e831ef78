"""The words of the field that the course teaches: what each means, and where it is introduced."""

from typing import NamedTuple

from ddetr_lite.course.tables import Table


class Term(NamedTuple):
    """A word, the number of the notebook and of the section in which it first matters, and what it means."""

    name: str
    notebook: str
    section: str
    meaning: str


def _in(notebook: str, *terms: tuple[str, str, str]) -> list[Term]:
    return [Term(name, notebook, section, meaning) for section, name, meaning in terms]


TERMS: list[Term] = [
    *_in(
        "00",
        ("1", "detector", "a model that names the objects of a picture: for each a class, a score and a box"),
        (
            "1",
            "IoU",
            "intersection over union of two boxes: the area they share, divided by the area they cover together",
        ),
        ("1", "threshold", "the score from which on a detection is reported"),
        (
            "1",
            "AP",
            "average precision, the usual mark of a detector, 0 to 1; COCO's is a mean over ten IoUs and all classes",
        ),
        ("1", "split", "a part of a data set: one to learn from, one (validation) to judge by"),
        ("3", "backbone", "the part that turns pixels into features, usually trained before on another task"),
        ("4", "query", "in a detector: a vector that looks at the picture and ends as one box with its scores"),
        ("4", "logit", "a score before sigmoid or softmax: any number, and 0 means undecided"),
        (
            "4",
            "reference point",
            "where a query stands when it looks around: the centre from which sampling offsets count",
        ),
        ("4", "sampling point", "a place at which deformable attention reads a feature map, between its cells too"),
        ("4", "level", "one of several feature maps of a picture, from fine to coarse"),
    ),
    *_in(
        "01",
        ("1", "embedding", "the vector that stands for a word, or for anything else that is looked up by its number"),
        ("1", "softmax", "makes weights of scores: positive, with the sum one"),
        (
            "1",
            "self-attention",
            "each token looks at all tokens of its own sentence or picture, and takes a weighted mean",
        ),
        ("2", "key", "what a token offers to be found by; its dot product with a query is the score"),
        ("2", "value", "what a token hands over where it is looked at"),
        ("4", "saturated", "of a softmax: nearly all weight on one, so that hardly any gradient is left"),
        (
            "6",
            "padding",
            "what fills up a shorter sentence or a smaller picture in a batch; masked, so that nobody looks",
        ),
        ("6", "causal mask", "hides what comes later: each word sees itself and those before it"),
        ("7", "permutation equivariance", "tokens in another order give the same results in that order"),
        ("8", "token", "one vector of the row that attention works on: a word, or a cell of a feature map"),
    ),
    *_in(
        "02",
        ("2", "head", "one of several attentions side by side, each with its own, smaller queries, keys and values"),
        ("3", "channel", "one of the d numbers of a token's vector"),
        ("5", "optimizer", "the rule that changes parameters by their gradients"),
    ),
    *_in(
        "03",
        ("2", "frequencies", "how fast each sine of the encoding turns from place to place"),
        ("3", "wavelength", "after how many places a sine of the encoding repeats"),
        ("6", "buffer", "a tensor that belongs to a module and moves with it, but is not trained"),
    ),
    *_in(
        "04",
        ("1", "residual connection", "a layer adds to what it was given instead of replacing it"),
        (
            "2",
            "layer norm",
            "brings each token's vector to mean 0 and variance 1, then scales and shifts it as learned",
        ),
        ("3", "feed-forward", "two matrices with a ReLU between, for each token by itself"),
        ("3", "dropout", "in training, sets some numbers to zero at random, so that nothing relies on one of them"),
        ("4", "encoder", "layers in which the tokens of the input look at one another"),
        ("4", "pre-norm", "the norm before attention instead of after the sum; DETR has it after"),
        ("5", "decoder", "layers in which queries look at one another and at what the encoder made"),
        ("5", "cross-attention", "queries of one kind look at keys and values of another"),
        ("5", "memory", "what the encoder hands to the decoder"),
    ),
    *_in(
        "05",
        ("2", "anchor", "a box of fixed size and place, from which a detector before DETR corrects its answer"),
        ("2", "stride", "how many pixels lie between the centres of two neighbouring cells of a feature map"),
        ("3", "assignment rule", "says which anchors are to learn which object, by thresholds of IoU"),
        ("4", "non-maximum suppression (NMS)", "drops what overlaps with a surer detection of the same class"),
        (
            "5",
            "GIoU",
            "generalized IoU: lower than IoU by the empty part of the hull, so that boxes apart have a gradient",
        ),
        ("6", "match", "each object gets one query, so that the sum of costs is smallest"),
        ("6", "no object", "the class that an unmatched query is to name, in DETR"),
        ("6", "Hungarian algorithm", "finds the cheapest match in about n³ steps"),
        ("10", "auxiliary loss", "the same loss for the answer after an earlier decoder layer"),
        ("11", "focal loss", "a loss that counts easy answers less; Deformable DETR has it in place of cross-entropy"),
        ("12", "precision", "the share of the detections that are right"),
        ("12", "recall", "the share of the objects that were found"),
    ),
    *_in(
        "06",
        ("1", "convolution", "the same small matrix of weights, applied at every place of a map"),
        ("1", "feature map", "a grid of vectors, one for each cell of the picture"),
        (
            "1",
            "batch norm",
            "a norm by statistics of the batch, frozen in detectors that start from a trained backbone",
        ),
        ("2", "object query", "DETR's query: a trained vector that asks the picture for an object"),
        ("2", "MLP", "a few matrices with ReLUs between them, here those that make a box of a query"),
        ("4", "warm-up", "the learning rate rises from zero over the first steps"),
        ("4", "clipping", "a gradient longer than a bound is shortened to it"),
        ("4", "Muon", "an optimizer for matrices, whose steps have nearly the same size in all directions"),
        (
            "6",
            "augmentation",
            "random changes of a training picture (flips, crops, colours) under which its answer is known",
        ),
        ("6", "epoch", "one pass over all training pictures"),
        ("6", "seed", "what random numbers start from; runs with other seeds show how much is chance"),
        ("7", "overfit", "to learn a few pictures by heart, which a model that is right can"),
    ),
    *_in(
        "07",
        ("1", "offset", "from the reference point to a sampling point, in cells; a linear function of the query"),
        ("2", "bilinear sampling", "reads a map between its cells: a mean of the four around, by nearness"),
        ("4", "deformable convolution", "a convolution whose places of reading are moved by learned offsets"),
        ("6", "compass", "how offsets begin: each head in a direction of its own, each point one step further"),
    ),
    *_in(
        "08",
        ("2", "level embedding", "a trained vector for each level, added to its tokens' positions"),
        ("3", "valid ratio", "the share of a padded map that is picture, for each level and direction"),
    ),
    *_in(
        "09",
        ("5", "iterative refinement", "each decoder layer corrects the box of the one before"),
        ("6", "two stages", "the encoder's tokens propose boxes, and the best of them become the queries' references"),
        ("6", "encoder loss", "the loss of the first stage, with one class for any object"),
        ("6", "hints", "further queries in training that start near true boxes and need no match"),
    ),
    *_in(
        "10",
        ("1", "envelope", "for each recall the best precision at that recall or beyond"),
        ("1", "crowd", "many objects under one box, where nothing is judged"),
        ("2", "bootstrap", "how sure a number is, from many draws of the same pictures with repetition"),
        ("3", "duplicate", "a detection of an object that a surer one has already"),
        (
            "4",
            "convergence",
            "how fast a model gets better as it trains; to compare two, each schedule is a run of its own",
        ),
        ("6", "ablation", "a run with one part taken away or changed, to see what it brings"),
        ("6", "FPN", "a feature pyramid: coarse maps enlarged and added to finer ones"),
    ),
    *_in(
        "11",
        ("2", "contact sheet", "many pictures with their boxes on one page, to be looked at before training"),
        ("3", "recipe", "all that defines a run: data, model, augmentation, optimizer, schedule"),
        ("3", "schedule", "how the learning rate changes over a training"),
        ("4", "bfloat16", "a number of 16 bits with the range of 32 and eight digits in base two"),
        ("4", "mixed precision", "products in half precision, weights and sums in float32"),
        ("8", "query collapse", "all queries say the same thing"),
        ("9", "fine-tune", "to go on training a trained model, with other data or classes"),
    ),
    *_in(
        "12",
        ("1", "cache", "small, fast memory near the cores, which holds what was read last"),
        ("2", "bandwidth", "how many bytes a second memory hands over"),
        ("2", "roofline", "the two bounds on speed, operations and bytes, in one picture"),
        ("2", "intensity", "operations for each byte that is moved"),
        ("4", "sparse", "of a matrix: nearly all entries are zero, and only the others are kept"),
        ("7", "kernel", "a function that a GPU runs in many programs at once; in a convolution: its matrix of weights"),
        ("7", "program", "one of the many runs of a kernel, with its own number and its own block of the work"),
        ("8", "warp", "32 lanes of a GPU that do the same at the same time"),
        ("9", "atomic", "of an addition: others cannot come between its reading and its writing"),
    ),
    *_in(
        "13",
        ("2", "conditional", "of cross-attention: content and place are compared each by itself"),
        ("3", "anchor box", "in DAB-DETR: a query is a box of four numbers, moved by every layer"),
        ("4", "denoising", "queries made of true boxes with noise learn to put them right, without a match"),
        ("5", "contrastive", "of denoising: a second kind of query, with more noise, learns to say no"),
        ("6", "varifocal loss", "a focal loss whose goal for the score is the IoU of the box"),
        ("7", "one-to-many", "in training several queries learn from one object"),
    ),
]


def terms(*which: str) -> Table:
    """The terms of notebooks ("05") and terms by their names ("anchor"), with where they are introduced; all of them when
    nothing is named.

    A part of a name will do ("norm" finds layer norm and batch norm). Raises ValueError where nothing is found.
    """
    known = {term.name.casefold(): term for term in TERMS}
    notebooks = {term.notebook for term in TERMS}
    chosen: set[Term] = set()
    for one in which:
        if one in notebooks:
            chosen.update(term for term in TERMS if term.notebook == one)
            continue
        found = [term for name, term in known.items() if one.casefold() in name]
        if not found:
            raise ValueError(
                f"there is no term {one!r}: course.terms() lists all, course.terms('05') those of a notebook"
            )
        chosen.update(found)
    rows = [
        (term.name, term.meaning, f"{term.notebook}, section {term.section}")
        for term in TERMS
        if term in chosen or not which
    ]
    return Table(("term", "meaning", "introduced in"), rows)
