"""Times a training step of the GPTs beside transformers' GPT2LMHeadModel, data, and decoding.

    python tests/benchmarks/gpt_step.py                       # gpt_small
    python tests/benchmarks/gpt_step.py --model gpt2 --rows 2 --length 256

Both sides have the same sizes, dropout, loss and AdamW, and take turns in one process. `equal` is
both in fp32; `default` is ours as the script runs (precision auto, fused AdamW). `data` is a step
with the windows that it is given, over the same step on one batch. Printed is the ratio of medians,
theirs over ours; then tokens a second of greedy decoding with and without the cache, and by
transformers' generate with the same weights.
"""

import argparse
import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from timing import beside, interleave, ratio

from common.data.corpora import Text, Tokens, Vocabulary, make_vocabulary
from common.device import Device
from gpt.model import MODELS
from gpt.train import cross_entropy, parse_args
from gpt.writing import write


def reference(model, dropout: float):
    """transformers' network of the same sizes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_layer=len(model.h), n_head=model.h[0].attn.num_heads, n_positions=model.context)
    sizes |= dict(vocab_size=model.wte.num_embeddings, n_embd=model.wte.embedding_dim)
    sizes |= {f"{part}_pdrop": dropout for part in ("resid", "embd", "attn")}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, use_cache=True))


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="gpt_small")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256, help="to decode")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    shape = args.rows, args.length + 1
    batch = torch.randint(args.vocab_size, shape, device=dev.device)

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool, batches=None):
        model = MODELS[args.model](args.vocab_size, dropout=args.dropout)
        model = (model if ours else reference(model, args.dropout)).to(dev.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=default)

        def step() -> None:
            tokens, following = next(batches) if batches else (batch[:, :-1], batch[:, 1:])
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                logits = model(tokens) if ours else model(tokens).logits
                loss = cross_entropy(logits, following)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    beside(stepper, args.rounds)

    text = "abcdefghij klmnopqrst uvwxyz\n" * 20_000
    part = Tokens("train", Text([text]), make_vocabulary(text, "chars", 0), dev)
    windows = part.windows(args.rows * args.length, args.length, 10**6)
    sides = [stepper(True, True), stepper(True, True, iter(windows))]
    print(f"    data: {ratio(*interleave(sides, args.rounds))}", flush=True)

    model = MODELS[args.model](args.vocab_size).to(dev.device).eval()
    theirs = reference(model, 0.0).to(dev.device).eval()
    state = theirs.state_dict()
    for name, value in model.state_dict().items():
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        state[f"transformer.{name}"].copy_(value.T if turned else value)
    vocabulary = Vocabulary({"characters": "\ufffd" + "x" * (args.vocab_size - 1)})
    vocabulary.never = ()  # neither side may end early
    prompt = batch[0, :1]
    most = min(args.tokens, model.context - 1)

    def ours(cached: bool):
        def decode() -> None:
            write(model, vocabulary, prompt, most, temperature=0.0, cached=cached)
            wait()

        return decode

    def other() -> None:
        how = dict(do_sample=False, max_new_tokens=most, min_new_tokens=most, pad_token_id=0)
        theirs.generate(prompt[None], **how)
        wait()

    with torch.inference_mode():
        times = interleave([ours(True), ours(False), other], max(3, args.rounds // 2), 1)
    speeds = [most / sorted(values)[len(values) // 2] for values in times]
    words = ("with the cache", "without", "by transformers")
    print(", ".join(f"{s:.0f} tokens/s {w}" for s, w in zip(speeds, words, strict=True)))
    print(f"   cache: {ratio(times[0], times[1])}, beside transformers {ratio(times[0], times[2])}")


if __name__ == "__main__":
    main()
