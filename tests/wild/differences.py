"""Why what is found of a model differs from what its code says, or from what the model computes: reviewed, by model."""

REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            "open_clip/CLIP",
            "open_clip/CLIP_quick_gelu",
            "open_clip/VisionTransformer",
            "open_clip/VisionTransformer_attentional_pool",
            "open_clip/VisionTransformer_layer_scale",
        ),
        "outputs differ in the last digits by torch's fused path of nn.MultiheadAttention, and by nothing without it",
    ),
    "transformers/Beit": "outputs differ in the last digits: traced, it makes a mask of truths, and adds it to "
    "its scores as ones, which a softmax takes away again",
    "transformers/Falcon": "x + dropout(mlp + attention): the dropout takes the sum of both, so it is one branch",
    "transformers/PatchTST_prediction": "y_hat * scale + loc: loc, a mean over time, is broadcast, so it is trunk",
    "transformers/Rwkv": "on a CPU its own backward fails: its loop over tokens overwrites what the backward needs",
    "vit_pytorch/nViT": "its sums are torch.lerp, one operator each: listed by other_sums, and no blocks",
    "x_transformers/decoder_gru": "the gate is inside nn.GRUCell, one operator: no sum in the graph",
}
"""`library/model`, and the reason."""


def reason(library, model):
    """Return the reason that is stated for a model, or an empty text."""
    return REASONS.get(f"{library}/{model}", "")
