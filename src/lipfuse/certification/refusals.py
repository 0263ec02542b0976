"""Operations without a bound, and what to do instead."""

from __future__ import annotations

from .rules import refuse

__all__: list[str] = []

_STATISTICS = (
    "divides by a statistic of its input, which has no useful bound; centre with "
    "lipfuse.nn.LayerCentering, or use batch normalisation in evaluation"
)
refuse(_STATISTICS, "layer_norm", "group_norm", "rms_norm", "local_response_norm", "normalize")
refuse(_STATISTICS, "std", "var", "std_mean", "var_mean", "cosine_similarity")
refuse(
    "multiplies values that all depend on the input, so its slope grows with them",
    "multi_head_attention_forward", "scaled_dot_product_attention", "bilinear", "glu", "bmm",
    "baddbmm", "outer", "dot", "inner", "cdist", "lstm", "gru", "rnn_tanh", "rnn_relu",
    "lstm_cell", "gru_cell", "einsum", "tensordot", "kron", "addbmm",
)  # fmt: skip
refuse(
    "looks elements up by an index: a network has to be certified behind it",
    "embedding", "embedding_bag", "gather", "take", "take_along_dim", "one_hot",
)  # fmt: skip
refuse("draws at random", "gumbel_softmax", "bernoulli", "multinomial", "rand_like", "randn_like")
refuse("draws at random", "fractional_max_pool2d", "fractional_max_pool3d")
