"""Times a training step of T5 beside transformers' T5ForConditionalGeneration, data, and decoding.

    python tests/benchmarks/t5_step.py                       # t5_mini
    python tests/benchmarks/t5_step.py --model t5_small --rows 4

Both sides have the same sizes, dropout, loss and AdamW, and take turns in one process. `equal` is
both in fp32; `default` is ours as the script runs (precision auto, fused AdamW). `data` is a step
with the gaps that are drawn for it, over the same step on one batch. Printed is the ratio of
medians, theirs over ours; then tokens a second of greedy decoding with and without the cache, and
by transformers' generate with the same weights. Times are of the processor on a CPU.
"""

import argparse
import os
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from timing import beside, interleave, ratio

from common.data.corpora import Text, Tokens
from common.device import Device
from t5.data import Gaps
from t5.decoding import write
from t5.model import END, MODELS, PAD
from t5.train import cross_entropy, parse_args
from t5.vocabulary import make_vocabulary


def reference(model, dropout: float):
    """transformers' network of the same sizes."""
    from transformers import T5Config, T5ForConditionalGeneration

    s = model.sizes
    sizes = dict(vocab_size=s.vocab_size, d_model=s.d_model, d_kv=s.d_kv, d_ff=s.d_ff)
    sizes |= dict(num_layers=s.num_layers, num_heads=s.num_heads, dropout_rate=dropout)
    sizes |= dict(feed_forward_proj="gated-gelu" if s.gated else "relu", tie_word_embeddings=s.tied)
    config = T5Config(**sizes, decoder_start_token_id=PAD)
    config.tie_word_embeddings = s.tied  # the library sets it to True
    theirs = T5ForConditionalGeneration(config)
    if not s.tied:  # then its three tables of embeddings come apart
        for part in (theirs.encoder, theirs.decoder):
            part.embed_tokens.weight = theirs.shared.weight
    return theirs


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="t5_mini")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens of a source")
    parser.add_argument("--target-length", type=int, default=29)
    parser.add_argument("--tokens", type=int, default=48, help="to decode")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    flags = parse_args(["--model", args.model, "--device", args.device, "--quiet"])
    dev = Device(flags)
    clock = time.perf_counter if dev.device.type == "cuda" else time.process_time
    draw = dict(low=3, high=args.vocab_size - 100, device=dev.device)
    source = torch.randint(size=(args.rows, args.length), **draw)
    target = torch.randint(size=(args.rows, args.target_length + 1), **draw)
    target[:, 0] = PAD

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool, batches=None):
        model = MODELS[args.model](args.vocab_size, dropout=args.dropout)
        model = (model if ours else reference(model, args.dropout)).to(dev.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=default)

        def step() -> None:
            a, b = next(batches)[:2] if batches else (source, target)
            labels = b[:, 1:].contiguous()
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                if ours:
                    logits = model(a, b[:, :-1])
                else:
                    how = dict(attention_mask=a != PAD, decoder_input_ids=b[:, :-1])
                    logits = model(input_ids=a, **how).logits
                loss = cross_entropy(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    beside(stepper, args.rounds, clock, f"  ({dev.precision})")

    text = "abcdefghij klmnopqrst uvwxyz\n" * 20_000
    facts = make_vocabulary([text[:10_000]], "chars", 0, 100)
    part = Tokens("train", Text([text]), facts | {"published": True}, dev)
    gaps = Gaps(part, args.length, "spans", 0.15, 3.0)
    sides = [stepper(True, True), stepper(True, True, iter(gaps.steps(args.rows, 10**6)))]
    print(f"    data: {ratio(*interleave(sides, args.rounds, clock=clock))}", flush=True)

    model = MODELS[args.model](args.vocab_size).to(dev.device).eval()
    theirs = reference(model, 0.0).to(dev.device).eval()
    state = theirs.state_dict()
    for name, value in model.state_dict().items():
        state[name].copy_(value)
    with torch.no_grad():  # neither side may end early
        for side in (model, theirs):
            table = side.shared if model.sizes.tied else side.lm_head
            table.weight[END] = 0

    def ours(cached: bool):
        def decode() -> None:
            found = write(model, source, args.tokens, cached=cached)
            assert all(len(row) == args.tokens for row in found), "a row ended early"
            wait()

        return decode

    def other() -> None:
        how = dict(do_sample=False, max_new_tokens=args.tokens, min_new_tokens=args.tokens)
        theirs.generate(source, attention_mask=source != PAD, **how)
        wait()

    with torch.inference_mode():
        sides = [ours(True), ours(False), other]
        times = interleave(sides, max(3, args.rounds // 2), 1, clock)
    speeds = [args.rows * args.tokens / sorted(values)[len(values) // 2] for values in times]
    words = ("with the cache", "without", "by transformers")
    print(", ".join(f"{s:.0f} tokens/s {w}" for s, w in zip(speeds, words, strict=True)))
    print(f"   cache: {ratio(times[0], times[1])}, beside transformers {ratio(times[0], times[2])}")


if __name__ == "__main__":
    main()
