"""Times training steps of Flamingo beside transformers' Idefics.

    python tests/benchmarks/flamingo_step.py                        # a small size, of equal parts
    python tests/benchmarks/flamingo_step.py --width 512 --layers 8 --rounds 7
    python tests/benchmarks/flamingo_step.py --forward              # without the way back

Both sides have an image encoder (a ViT) and a language model that are frozen, a resampler of as
many latents, and a gated layer before each block, all of the same widths; they see the same images
and as many tokens, in fp32, with AdamW on what is learned, and take turns in one process. Their
language models differ: ours is a GPT-2, theirs LLaMA-like, whose feed-forward width makes it as
large; both sizes are printed. `equal` looks at the images in each step, on both sides. `default` is
ours as train.py runs it: images are looked at once, and only their features are read, with a fused
AdamW in the precision of --precision auto. Printed is the ratio of medians, theirs over ours, with
its quartiles round by round.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave, ratio
from torch import nn

from clip.model import VisionTransformer
from common.device import Device
from common.weights import trained
from flamingo.model import IMAGE_TOKEN, Flamingo
from flamingo.train import parse_args
from gpt.model import GPT2

VOCABULARY, PATCH, HEAD = 512, 8, 32


def ours(args: argparse.Namespace) -> Flamingo:
    """Flamingo of these sizes."""
    heads = args.width // HEAD
    vision = VisionTransformer(args.size, PATCH, args.width, args.layers, heads, HEAD, "gelu")
    language = GPT2(VOCABULARY, args.width, args.layers, heads, args.tokens, dropout=0.0)
    return Flamingo(vision, language, num_heads=heads, d_head=HEAD, num_latents=args.latents,
                    resampler_layers=2, resampler_heads=heads, num_frames=1)  # fmt: skip


def theirs(args: argparse.Namespace) -> nn.Module:
    """Idefics of the same, with the same parts frozen."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    heads = args.width // HEAD
    config = IdeficsConfig(
        vocab_size=VOCABULARY, additional_vocab_size=0, hidden_size=args.width,
        num_hidden_layers=args.layers, num_attention_heads=heads, cross_layer_interval=1,
        intermediate_size=round(8 / 3 * args.width), max_position_embeddings=args.tokens,
        use_resampler=True, use_cache=False, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        vision_config=dict(embed_dim=args.width, image_size=args.size, patch_size=PATCH,
                           num_hidden_layers=args.layers, num_attention_heads=heads,
                           intermediate_size=4 * args.width),
        perceiver_config=dict(use_resampler=True, resampler_n_latents=args.latents,
                              resampler_depth=2, resampler_n_heads=heads,
                              resampler_head_dim=HEAD))  # fmt: skip
    model = IdeficsForVisionText2Text(config)
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_("gated_cross_attn" in name or "perceiver_resampler" in name)
    return model


def size(model: nn.Module) -> str:
    """Parameters, and those that are learned, in words."""
    whole, learned = sum(p.numel() for p in model.parameters()), trained(model)
    return f"{whole:,} parameters, {sum(p.numel() for p in learned):,} of them learned"


def sides(args: argparse.Namespace, dev: Device, default: bool) -> list:
    """Our step and Idefics'."""
    rows, images, place = args.batch_size, args.images, dev.device
    tokens = torch.randint(2, VOCABULARY, (rows, args.tokens), device=place)
    tokens[:, :: args.tokens // images] = IMAGE_TOKEN
    pixels = torch.randn(rows, images, 3, args.size, args.size, device=place)
    numbers = (tokens == IMAGE_TOKEN).cumsum(1)
    mask = (numbers[:, :, None] == torch.arange(1, images + 1, device=place)).long()  # (B, T, M)

    def stepper(model: nn.Module, mine: bool):
        model = model.to(place)
        fast = default and mine
        with torch.no_grad():
            features = model.look(pixels) if fast else None
        net = dev.wrap(model) if fast else model
        optimizer = torch.optim.AdamW(trained(model), 1e-4, fused=fast)
        how = dict(dtype=torch.bfloat16, enabled=fast and dev.precision == "bf16")

        def logits() -> torch.Tensor:
            if mine:
                return net(tokens, features=features) if fast else net(tokens, pixels)
            return net(input_ids=tokens, attention_mask=torch.ones_like(tokens),
                       pixel_values=pixels, image_attention_mask=mask).logits  # fmt: skip

        def step() -> None:
            with torch.set_grad_enabled(not args.forward):
                with torch.autocast(place.type, **how):
                    found = logits()
                loss = F.cross_entropy(found[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
            if not args.forward:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            if place.type == "cuda":
                torch.cuda.synchronize()

        return step

    models = ours(args).train(), theirs(args).train()
    if not default:
        print(f"ours: {size(models[0])}; theirs: {size(models[1])}")
    return [stepper(models[0], True), stepper(models[1], False)]


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128, help="of all parts")
    parser.add_argument("--layers", type=int, default=4, help="of both frozen parts")
    parser.add_argument("--latents", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--tokens", type=int, default=75, help="of a row")
    parser.add_argument("--images", type=int, default=5, help="of a row")
    parser.add_argument("--batch-size", type=int, default=16, help="rows")
    parser.add_argument("--forward", action="store_true", help="without the way back")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    for default in (False, True):
        dev = Device(parse_args(["--device", args.device, "--quiet"]))
        mine, other = interleave(sides(args, dev, default), args.rounds)
        print(f"{'default' if default else 'equal':>8}: {ratio(mine, other)}", flush=True)


if __name__ == "__main__":
    main()
