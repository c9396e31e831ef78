"""The equation map: equation of a paper → symbols → function → the test that holds it."""

from dataclasses import dataclass
from typing import Literal

from ddetr_lite.course.tables import Table

Paper = Literal["Attention Is All You Need", "DETR", "Deformable DETR", "Roofline", "DAB-DETR", "DN-DETR"]


@dataclass(frozen=True)
class Equation:
    """One equation.

    paper, place: where it stands, as in "equation 1". notebook: where the course builds it.
    formula, symbols: mathematics between dollars, in TeX.
    symbols: the paper's symbol → the name of the parameter (or, in a module, of the attribute) that holds it.
    function: "module:name". test: "file::name".
    """

    paper: Paper
    place: str
    notebook: str
    formula: str
    symbols: dict[str, str]
    function: str
    test: str


EQUATIONS: tuple[Equation, ...] = (
    Equation(
        "Attention Is All You Need",
        "equation 1, the softmax",
        "01",
        r"$\text{softmax}(Q K^\top / \sqrt{d_k})$",
        {"$Q$": "query", "$K$": "key"},
        "ddetr_lite.layers.attention:attention_weights",
        "tests/test_course.py::test_equation_1_weights",
    ),
    Equation(
        "Attention Is All You Need",
        "equation 1",
        "01",
        r"$\text{softmax}(Q K^\top / \sqrt{d_k})\,V$",
        {"$Q$": "query", "$K$": "key", "$V$": "value"},
        "ddetr_lite.layers.attention:scaled_dot_product_attention",
        "tests/test_course.py::test_equation_1",
    ),
    Equation(
        "Attention Is All You Need",
        "section 3.2.2",
        "02",
        r"$\text{Concat}(\text{head}_1, \ldots, \text{head}_h)\,W^O$, "
        r"with $\text{head}_i = \text{Attention}(Q W_i^Q, K W_i^K, V W_i^V)$",
        {"$h$": "heads", "$W_i^Q, W_i^K, W_i^V$": "in_proj_weight", "$W^O$": "out_proj"},
        "ddetr_lite.layers.attention:MultiHeadAttention",
        "tests/test_course.py::test_multi_head_attention_of_section_3_2_2",
    ),
    Equation(
        "Attention Is All You Need",
        "section 3.5",
        "03",
        r"$PE_{pos,\,2i} = \sin(pos / 10000^{2i/d})$, $PE_{pos,\,2i+1} = \cos(pos / 10000^{2i/d})$",
        {"number of positions": "length", "$d$": "dim", "10000": "temperature"},
        "ddetr_lite.layers.positional_encoding:sine_encoding_1d",
        "tests/test_positional_encoding.py::test_interleaved_is_the_papers_formula",
    ),
    Equation(
        "Attention Is All You Need",
        "equation 2",
        "04",
        r"$\text{FFN}(x) = \max(0,\, x W_1 + b_1)\,W_2 + b_2$",
        {"$W_1, b_1$": "linear1", "$W_2, b_2$": "linear2"},
        "ddetr_lite.layers.transformer:FeedForward",
        "tests/test_transformer.py::test_encoder_layer_equals_torch",
    ),
    Equation(
        "Attention Is All You Need",
        "section 3.1",
        "04",
        r"$\text{LayerNorm}(x + \text{Sublayer}(x))$, twice",
        {"LayerNorm": "norm1", "Sublayer": "self_attn"},
        "ddetr_lite.layers.transformer:EncoderLayer",
        "tests/test_transformer.py::test_encoder_layer_equals_torch",
    ),
    Equation(
        "DETR",
        "appendix, spatial positional encoding",
        "03",
        r"$d/2$ channels for $y$, $d/2$ for $x$, each as above; over $0 \ldots 2\pi$ of the picture in the official code",
        {"$d$": "dim"},
        "ddetr_lite.layers.positional_encoding:sine_encoding_2d",
        "tests/test_positional_encoding.py::test_two_dimensions_cell_by_cell",
    ),
    Equation(
        "DETR",
        "equation 1",
        "05",
        r"$\hat\sigma = \text{argmin}_\sigma \sum_i L_\text{match}(y_i, \hat y_{\sigma(i)})$",
        {r"$L_\text{match}$": "cost"},
        "ddetr_lite.set_prediction.matching:assign",
        "tests/test_set_prediction.py::test_assignment_is_the_cheapest",
    ),
    Equation(
        "DETR",
        r"section 3.1, $L_\text{match}$",
        "05",
        r"$-\hat p_{\sigma(i)}(c_i) + L_\text{box}(b_i, \hat b_{\sigma(i)})$, for $c_i \neq \varnothing$",
        {r"$\hat p$": "logits", "$c_i$": "labels", r"$\hat b$": "boxes", "$b_i$": "target_boxes"},
        "ddetr_lite.set_prediction.matching:matching_cost",
        "tests/test_set_prediction.py::test_cost_of_every_pair",
    ),
    Equation(
        "DETR",
        "equation 2",
        "05",
        r"$\sum_i \big[-\log \hat p_{\hat\sigma(i)}(c_i) "
        r"+ 1_{c_i \neq \varnothing}\, L_\text{box}(b_i, \hat b_{\hat\sigma(i)})\big]$",
        {r"$\hat p, \hat b$": "outputs", "$c_i, b_i$": "targets"},
        "ddetr_lite.set_prediction.losses:set_losses",
        "tests/test_set_prediction.py::test_losses_equal_a_slow_loop",
    ),
    Equation(
        "DETR",
        r"section 3.1, $L_\text{box}$",
        "05",
        r"$\lambda_\text{iou} L_\text{iou}(b_i, \hat b_{\sigma(i)}) + \lambda_{L1} \lVert b_i - \hat b_{\sigma(i)} \rVert_1$",
        {r"$\hat b$": "boxes", "$b_i$": "targets", r"$\sigma$": "matches"},
        "ddetr_lite.set_prediction.losses:box_losses",
        "tests/test_set_prediction.py::test_losses_equal_a_slow_loop",
    ),
    Equation(
        "DETR",
        "appendix, generalized IoU",
        "05",
        r"$\lvert b \cap \hat b \rvert / \lvert b \cup \hat b \rvert "
        r"- \lvert \text{hull} \setminus (b \cup \hat b) \rvert / \lvert \text{hull} \rvert$",
        {"$b$": "a", r"$\hat b$": "b"},
        "ddetr_lite.set_prediction.boxes:generalized_box_iou",
        "tests/test_set_prediction.py::test_overlaps_equal_torchvision",
    ),
    Equation(
        "DETR",
        "appendix, multi-head attention layer with its residual",
        "04",
        r"$\text{layernorm}\big(X_q + \text{dropout}(L\,Y)\big)$, "
        r"with $Y = [\text{attn}(X_q, X_{kv}, T_1); \ldots; \text{attn}(X_q, X_{kv}, T_M)]$",
        {"$T, L$": "multihead_attn", "layernorm": "norm2"},
        "ddetr_lite.layers.transformer:DecoderLayer",
        "tests/test_transformer.py::test_decoder_layer_equals_torch",
    ),
    Equation(
        "DETR",
        "appendix, single head with positions",
        "06",
        r"$[Q; K; V] = [T'_1 (X_q + P_q);\; T'_2 (X_{kv} + P_{kv});\; T'_3 X_{kv}]$",
        {"$X_q$": "x", "$P_q$": "query_position", "$X_{kv}$": "memory", "$P_{kv}$": "memory_position"},
        "ddetr_lite.layers.transformer:DecoderLayer.forward",
        "tests/test_transformer.py::test_decoder_adds_positions_to_queries_and_keys_only",
    ),
    Equation(
        "DETR",
        "section 3.2, object queries",
        "06",
        r"$\text{decoder}(0, \text{memory}, P_q)$, with $N$ learned embeddings as $P_q$",
        {"memory": "tokens", "$P_q$": "query_embed"},
        "ddetr_lite.layers.transformer:Transformer.forward",
        "tests/test_transformer.py::test_queries_are_positions_and_their_content_starts_at_zero",
    ),
    Equation(
        "DETR",
        "section 3.2, prediction heads",
        "06",
        "class: linear, $C + 1$; box: 3-layer perceptron with ReLU and width $d$, then the sigmoid",
        {"class": "class_embed", "box": "bbox_embed"},
        "ddetr_lite.models.detr:Detr",
        "tests/test_models.py::test_detr_outputs_by_hand",
    ),
    Equation(
        "Deformable DETR",
        "equation 1",
        "07",
        r"$\sum_m W_m \big[\sum_k A_{mqk} \cdot W'_m x_k\big]$, $k$ over all tokens: "
        "attention of 02, written as a sum over heads",
        {"$z_q$": "query", "$x$ for $A$": "key", "$x$ for $W'_m x$": "value"},
        "ddetr_lite.layers.attention:MultiHeadAttention.forward",
        "tests/test_course.py::test_heads_summed_are_heads_joined",
    ),
    Equation(
        "Deformable DETR",
        "equation 2",
        "07",
        r"$\sum_m W_m \big[\sum_k A_{mqk} \cdot W'_m\, x(p_q + \Delta p_{mqk})\big]$",
        {"$z_q$": "query", "$p_q$": "reference", "$x$": "tokens"},
        "ddetr_lite.layers.deformable_attention:DeformableAttention.forward",
        "tests/test_deformable_layers.py::test_one_level_is_the_case_of_one_level",
    ),
    Equation(
        "Deformable DETR",
        r"section 4.1, $p_q + \Delta p_{mqk}$",
        "07",
        "a fractional place, sampled by bilinear interpolation",
        {"$p$": "x"},
        "ddetr_lite.kernels.reference:bilinear_sample",
        "tests/test_kernels.py::test_bilinear_sample_by_hand",
    ),
    Equation(
        "Deformable DETR",
        r"section A.4, initialisation of $\Delta p$",
        "07",
        r"$\Delta p_{mqk} = k \cdot {}$(a direction for each head: $(-1, -1), (-1, 0), \ldots$, "
        "in another order here, as in the code)",
        {"$M$": "heads", "$K$": "points"},
        "ddetr_lite.layers.deformable_attention:compass_offsets",
        "tests/test_deformable_layers.py::test_points_are_at_kings_distances",
    ),
    Equation(
        "Deformable DETR",
        "equation 3",
        "08",
        r"$\sum_m W_m \big[\sum_l \sum_k A_{mlqk} \cdot W'_m\, x^l\big(\phi_l(\hat p_q) + \Delta p_{mlqk}\big)\big]$",
        {
            "$x^l$": "value",
            r"$\phi_l(\hat p_q) + \Delta p$": "locations",
            "$A_{mlqk}$": "weights",
            "sizes of the $x^l$": "level_shapes",
        },
        "ddetr_lite.kernels:multi_scale_deformable_attention",
        "tests/test_kernels.py::test_forward",
    ),
    Equation(
        "Deformable DETR",
        "section 4.1, reference points of the encoder",
        "08",
        r"$\hat p_q$: the centre of the query's own cell, in $0 \ldots 1$, on every level",
        {"sizes of the levels": "level_shapes", "valid ratios": "ratios"},
        "ddetr_lite.layers.deformable_transformer:encoder_reference_points",
        "tests/test_deformable_layers.py::test_encoder_reference_points_cell_by_cell",
    ),
    Equation(
        "Deformable DETR",
        "section A.3, bounding box relative to the reference point",
        "09",
        r"$\hat b_q = \big(\sigma(b_{qx} + \sigma^{-1}(\hat p_{qx})),\; \sigma(b_{qy} + \sigma^{-1}(\hat p_{qy})),\; "
        r"\sigma(b_{qw}),\; \sigma(b_{qh})\big)$",
        {"$b_q$": "delta", r"$\hat p_q$": "reference"},
        "ddetr_lite.layers.deformable_transformer:refine_boxes",
        "tests/test_deformable_layers.py::test_refine_boxes",
    ),
    Equation(
        "Deformable DETR",
        "section A.4, iterative bounding box refinement",
        "09",
        r"$\hat b^d_q = \big(\sigma(\Delta b^d_{qx} + \sigma^{-1}(\hat b^{d-1}_{qx})),\; \ldots\big)$, for all four numbers",
        {r"$\Delta b$": "delta", r"$\hat b^{d-1}$": "reference"},
        "ddetr_lite.layers.deformable_transformer:refine_boxes",
        "tests/test_deformable_layers.py::test_refine_boxes",
    ),
    Equation(
        "Deformable DETR",
        "section A.4, two-stage",
        "09",
        r"$\hat b_i = \big(\sigma(\Delta b_{ix} + \sigma^{-1}(\hat p_{ix})),\; \ldots,\; "
        r"\sigma(\Delta b_{iw} + \sigma^{-1}(2^{l_i - 1} s)),\; \ldots\big)$, $s = 0.05$",
        {r"$\hat p_i, l_i$": "level_shapes", "tokens": "memory"},
        "ddetr_lite.models.deformable_detr:DeformableDetr.proposals",
        "tests/test_models.py::test_proposals_and_the_queries_made_from_them",
    ),
    Equation(
        "DETR",
        r"section 3.1, normalisation of $L_\text{box}$",
        "11",
        r"$\sum_i L_\text{box}(b_i, \hat b_{\hat\sigma(i)})$, divided by the number of objects in the batch: "
        "the batch of all processes",
        {"objects of this process": "targets"},
        "ddetr_lite.set_prediction.losses:count",
        "tests/test_distributed.py::test_two_processes_or_two_pieces_equal_one",
    ),
    Equation(
        "Roofline",
        "the model: what bounds an operation",
        "12",
        r"$t \ge \max\Big(\frac{\text{bytes}}{\text{bandwidth}},\, "
        r"\frac{\text{multiply-adds}}{\text{multiply-adds a second}}\Big)$; here the bytes",
        {"bandwidth": "bandwidth", "bytes (from the shapes)": "setting"},
        "ddetr_lite.benchmarks.msda:floors",
        "tests/test_benchmarks.py::test_floor_counts_every_byte_once",
    ),
    Equation(
        "Deformable DETR",
        "equation 3, as a sparse product",
        "12",
        r"$\text{output} = S\,V$; row $q$ of $S$: $A_{mlqk}$ times four bilinear shares for each $l, k$",
        {"$V$": "value", "where $S$ is not zero": "locations", "$A_{mlqk}$": "weights"},
        "ddetr_lite.kernels.cpu:embedding_bag",
        "tests/test_kernels.py::test_forward",
    ),
    Equation(
        "Deformable DETR",
        "equation 3, gradient of the values",
        "12",
        r"$\partial\,\text{loss} / \partial V = S^\top\, \partial\,\text{loss} / \partial\,\text{output}$",
        {
            r"$\partial\,\text{loss} / \partial\,\text{output}$": "grad_bags",
            "where $S$ is not zero": "corners",
            "$S$": "shares",
        },
        "ddetr_lite.kernels.cpu:_grad_table",
        "tests/test_kernels.py::test_gradients",
    ),
    Equation(
        "DAB-DETR",
        "positional query of an anchor box",
        "13",
        r"$P_q = \text{MLP}(\text{Cat}(PE(x), PE(y), PE(w), PE(h)))$; "
        "here one linear map and a norm, as in Deformable DETR's two stages",
        {"$x, y, w, h$": "reference"},
        "ddetr_lite.models.deformable_detr:DeformableDetr.queries_from",
        "tests/test_models.py::test_proposals_and_the_queries_made_from_them",
    ),
    Equation(
        "DAB-DETR",
        "anchor update",
        "13",
        r"$(x, y, w, h)_k = \sigma(\Delta_k + \sigma^{-1}((x, y, w, h)_{k-1}))$, layer by layer",
        {r"$\Delta$": "delta", "$x, y, w, h$": "reference"},
        "ddetr_lite.layers.deformable_transformer:refine_boxes",
        "tests/test_deformable_layers.py::test_refine_boxes",
    ),
    Equation(
        "DN-DETR",
        "box noise",
        "13",
        r"a true box, moved and scaled by up to $\lambda$; "
        r"here each corner moves by up to $\lambda w/2$ and $\lambda h/2$, as in DINO",
        {r"$\lambda$": "amount", "true box": "boxes"},
        "ddetr_lite.models.hints:jitter",
        "tests/test_models.py::test_hints_stand_near_their_objects",
    ),
    Equation(
        "DN-DETR",
        "attention mask",
        "13",
        "$a_{ij} = 1$ where $i$ must not see $j$: hints for queries, and for other groups; here queries for hints, too",
        {"number of groups": "groups", "queries": "reference"},
        "ddetr_lite.models.hints:add_hints",
        "tests/test_models.py::test_hints_are_appended_in_groups_that_do_not_see_one_another",
    ),
)


def equation_map(notebook: str | None = None) -> Table:
    """Where each equation lives: those of one notebook, such as "01", or all."""
    rows = []
    for e in EQUATIONS:
        if notebook in (None, e.notebook):
            names = ", ".join(f"{symbol} is `{name}`" for symbol, name in e.symbols.items())
            function = e.function.removeprefix("ddetr_lite.").replace(":", ".")
            test = e.test.partition("::")[2]
            rows.append((f"{e.paper}, {e.place}", f"{e.formula}\n{names}", f"`{function}`\n`{test}`"))
    return Table(("paper", "formula, and its symbols in the code", "function, and the test that holds it"), rows)
