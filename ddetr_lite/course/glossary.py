"""The letters of shapes and formulas: one meaning each, in notebooks and docstrings alike."""

from ddetr_lite.course.tables import Table

# In the order in which the course meets them. A letter with two lives says so. Meanings: mathematics between dollars, in TeX.
SYMBOLS: dict[str, str] = {
    "x": "a token's vector, one row of the input; beside $y$: a place in a picture, counted to the right",
    "d": "channels of a token: 512 in the Transformer, 256 in DETR",
    "N": "tokens: words of a sentence, or cells of a feature map",
    "B": "pictures (or sentences) in a batch",
    "N_q": "queries: those that look",
    "N_k": "keys: those that are looked at",
    "D": "channels of one head, $d / M$; of a query and of a key",
    "D_v": "channels of a value; usually $D$",
    "Q": "the queries as a matrix, $(N_q, D)$",
    "K": "the keys as a matrix, $(N_k, D)$; in shapes of results: the number of decoder layers",
    "V": "the values as a matrix, $(N_k, D_v)$",
    "W^Q": "the matrix $(d, D)$ that makes queries from tokens; $W^K$ and $W^V$ likewise",
    "W^O": r"the matrix that joins the heads' outputs, $(M \cdot D_v, d)$",
    "M": "heads",
    "T": "a temperature; in detection: the objects of a picture",
    "A": "anchors; in deformable attention: the weight of a sampling point",
    "H": "height of a picture or feature map",
    "W": "width of a picture or feature map",
    "L": "feature levels",
    "P": "sampling points of a head on a level",
    "C": "classes; in a feature map: its channels",
    "z": "a query's vector, as the Deformable DETR paper writes it; in 02: the result of a head",
    "p": "a place: of a word, or a query's reference point; of a class: its probability; in code, the number of a point",
    "Δp": r"a sampling offset: cells from the reference point, as $(x, y)$; $\Delta$ alone: what the box head adds",
    "W_m": "the output matrix of head $m$, $(d, D)$; $W'_m$, $(D, d)$: its value matrix. $W$ alone is a width",
    "σ": "the sigmoid, $1 / (1 + e^{-x})$; in DETR's equations: a match, the query of each object",
    "R": "rows of a table of values, in which every level has a frame of zeros",
    "S": "a sparse matrix, a row for each query and head: the shares of the rows that it sums",
    "λ": "a weight: of a term of a loss; in Conditional DETR, of a channel of the code of a query's place",
    "G": "in 12: the gradient of the output; in 13: groups of hints, queries made from the true boxes, with noise",
}
_GREEK = {"Δ": r"\Delta ", "σ": r"\sigma", "λ": r"\lambda"}


def symbols(*letters: str) -> Table:
    """A table of the symbols named, in the glossary's order; of all of them when none is named.

    Raises ValueError for a symbol that the glossary lacks.
    """
    unknown = [letter for letter in letters if letter not in SYMBOLS]
    if unknown:
        raise ValueError(f"the glossary has no {', '.join(unknown)}; it has {', '.join(SYMBOLS)}")
    rows = [(_typeset(letter), text) for letter, text in SYMBOLS.items() if letter in letters or not letters]
    return Table(("symbol", "meaning"), rows)


def _typeset(letter: str) -> str:
    for greek, name in _GREEK.items():
        letter = letter.replace(greek, name)
    return f"${letter}$"
