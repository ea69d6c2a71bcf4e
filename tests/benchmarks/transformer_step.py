"""Times a training step of the Transformer beside nn.Transformer, and decoding with its cache.

    python tests/benchmarks/transformer_step.py                        # transformer_small
    python tests/benchmarks/transformer_step.py --model transformer_base --sentences 16

Both sides have the same sizes, tied embeddings, sinusoids, dropout, loss and Adam, and take turns
in one process. `equal` is both in fp32; `default` is ours as the script runs (precision auto).
nn.Transformer also drops attention weights and hidden values, and has two norms more. Printed is
the ratio of medians, theirs over ours; then tokens a second of greedy decoding.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import beside, interleave, ratio
from torch import Tensor, nn

from common.device import Device
from transformer import decoding
from transformer.decoding import generate
from transformer.model import MODELS, PAD, sinusoids
from transformer.train import cross_entropy, parse_args


class Reference(nn.Module):
    """nn.Transformer with embeddings and positions, as a tutorial has it."""

    def __init__(
        self, vocab_size: int, d_model: int, d_ff: int, heads: int, layers: int, drop: float
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.register_buffer("positions", sinusoids(512, d_model))
        self.dropout, self.scale = nn.Dropout(drop), d_model**0.5
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        self.transformer = nn.Transformer(
            d_model, heads, layers, layers, d_ff, drop, batch_first=True
        )

    def embed(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * self.scale + self.positions[: tokens.shape[1]])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length, padding = target.shape[1], source == PAD
        causal = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        x = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return F.linear(x, self.embedding.weight)


def main() -> None:
    """Prints the ratios of both steps, and of decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="transformer_small")
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    shape = args.sentences, args.length
    source = torch.randint(4, args.vocab_size, shape, device=dev.device)
    source[::4, -2:] = PAD
    target = torch.randint(4, args.vocab_size, (shape[0], shape[1] + 1), device=dev.device)

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool):
        model = MODELS[args.model](vocab_size=args.vocab_size)
        if not ours:
            layer = model.encoder[0]
            sizes = model.d_model, layer.feed_forward[0].out_features, layer.attention.num_heads
            rate = model.dropout.p
            model = Reference(args.vocab_size, *sizes, len(model.encoder), rate)
        model = model.to(dev.device).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, (0.9, 0.98), 1e-9, fused=default)

        def step() -> None:
            with torch.autocast(dev.device.type, enabled=False) if not default else dev.autocast():
                logits = model(source, target[:, :-1])
            cross_entropy(logits, target[:, 1:], 0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    beside(stepper, args.rounds)

    decoding.END = -1  # no sentence ends early
    model = MODELS[args.model](vocab_size=args.vocab_size).to(dev.device).eval()

    def decoder(cached: bool):
        def decode() -> None:
            generate(model, source[:16], cached=cached, extra=args.tokens, most=args.tokens)
            wait()

        return decode

    times = interleave([decoder(True), decoder(False)], max(3, args.rounds // 3), 1)
    speeds = [16 * args.tokens / sorted(values)[len(values) // 2] for values in times]
    cached, uncached = (f"{speed:.0f} tokens/s" for speed in speeds)
    print(f"decoding: {cached} with the cache, {uncached} without: {ratio(*times)}")


if __name__ == "__main__":
    main()
