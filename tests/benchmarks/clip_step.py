"""Times a training step of CLIP beside transformers' CLIPModel.

    python tests/benchmarks/clip_step.py                                 # clip_vit_b_32
    python tests/benchmarks/clip_step.py --model clip_vit_b_16 --batch 4

Both sides have the same sizes, images, captions of 77 tokens, loss and AdamW, and take turns in one
process. `equal` is both in fp32; `default` is ours as the script runs (precision auto, fused AdamW,
texts as long as the longest of a batch: --length tokens) against transformers' in fp32 with all 77;
between the two is ours with 77, too. Printed is the ratio of medians, theirs over ours. `--busy`
takes the processor's time, not the clock's, where other work is done meanwhile.
"""

import argparse
import os
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from timing import interleave, ratio

from clip.contrast import contrastive_loss
from clip.model import MODELS, SIZES
from clip.train import parse_args
from common.device import Device


def reference(sizes: dict):
    """transformers' network of the same sizes."""
    from transformers import CLIPConfig, CLIPModel

    text = dict(hidden_size=sizes["text_width"], num_hidden_layers=sizes["text_layers"],
                num_attention_heads=sizes["text_heads"], intermediate_size=4 * sizes["text_width"],
                projection_dim=sizes["embed_dim"], eos_token_id=49_407)  # fmt: skip
    vision = dict(hidden_size=sizes["vision_width"], num_hidden_layers=sizes["vision_layers"],
                  num_attention_heads=sizes["vision_heads"], patch_size=sizes["patch_size"],
                  intermediate_size=4 * sizes["vision_width"],
                  projection_dim=sizes["embed_dim"])  # fmt: skip
    width = sizes["embed_dim"]
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))


def main() -> None:
    """Prints the ratios."""
    models = [name for name, sizes in SIZES.items() if sizes["patch_size"]]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=models, default="clip_vit_b_32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=24, help="tokens of captions, of 77")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--busy", action="store_true")
    args = parser.parse_args()
    flags = ["--model", args.model, "--device", args.device, "--quiet"]
    dev = Device(parse_args(flags))
    images = torch.randn(args.batch, 3, 224, 224, device=dev.device)
    tokens = torch.full((args.batch, 77), 49_407, device=dev.device)
    words = torch.randint(49_000, (args.batch, args.length - 1), device=dev.device)
    tokens[:, : args.length - 1] = words
    same = torch.eye(args.batch, dtype=torch.bool, device=dev.device)

    def stepper(ours: bool, default: bool, whole: bool = False):
        model = MODELS[args.model]() if ours else reference(SIZES[args.model])
        model = (dev.wrap(model) if ours and default else model.to(dev.device)).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=default)
        texts = tokens[:, : args.length] if default and ours and not whole else tokens

        def step() -> None:
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                if ours:
                    loss = contrastive_loss(*model(images, texts), same)
                else:
                    how = dict(input_ids=texts, pixel_values=images, return_loss=True)
                    loss = model(**how).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if dev.device.type == "cuda":
                torch.cuda.synchronize()

        return step

    clock = time.process_time if args.busy else time.perf_counter
    for name, default, whole in (("equal", False, True), ("default, texts of 77", True, True),
                                 ("default", True, False)):  # fmt: skip
        sides = [stepper(True, default, whole), stepper(False, False)]
        print(f"{name:>20}: {ratio(*interleave(sides, args.rounds, clock=clock))}", flush=True)


if __name__ == "__main__":
    main()
