"""What train.py takes by itself for a model, a data set and weights: where recipes differ."""

from clip.published import model_of

OWN = ("embed_dim", "vision_width", "text_width", "text_layers")  # sizes of clip_small
FIXED = ("size", "vocab_size", "weights", "freeze", *OWN)  # by a checkpoint


def recipe(
    model: str, data: str | None, paper: bool, weights: str | None = None, **given
) -> tuple[dict, dict]:
    """Sizes by model and data; what published weights settle."""
    nothing = {"fsdp": "the scale is one number, which can't be sharded; under torchrun alone "
                       "every process holds the whole network"}  # fmt: skip
    own = {}
    if weights:
        model = model if given.get("model_chosen") else model_of(weights)
        own = dict(model=model, lr=1e-5, weight_decay=0.2, epochs=5, batch_size=64)
        return own, nothing | dict.fromkeys(("size", "vocab_size", *OWN), "the weights have theirs")
    data = data or ("captions:" if paper else "shapes")
    if model != "clip_small":
        nothing |= dict.fromkeys(OWN, f"{model} has the paper's")
        own |= dict(size=224, vocab_size=49_408)
        own |= (
            {} if paper else dict(lr=5e-4, batch_size=32, size=32 if data[:6] == "shapes" else 224)
        )
        own |= dict(lr=4e-4) if paper and model == "clip_vit_l_14" else {}
        if model == "clip_vit_l_14" and own["size"] == 32:
            own["size"] = 28
    elif not data.startswith("shapes"):
        own |= dict(size=64, epochs=60, batch_size=64, lr=1e-3, vocab_size=2048)
    own["beta2"], own["eps"] = (0.999, 1e-8) if model == "clip_resnet50" else (0.98, 1e-6)
    return own, nothing
