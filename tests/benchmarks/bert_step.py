"""Times a step of BERT's pre-training beside transformers' BertForPreTraining.

    python tests/benchmarks/bert_step.py                      # bert_mini, 16 examples of 128 tokens
    python tests/benchmarks/bert_step.py --model bert_base --rows 4

Both sides have the same sizes, dropout, losses and AdamW, and take turns in one process, on
examples of pydocs as train.py draws them; neither drops any of attention's weights. `equal` is both
in fp32; `default` is ours as the script runs (precision auto, fused AdamW), theirs in fp32. `data`
is a step with its examples drawn and masked, over the same step on one batch. Printed is the ratio
of medians, theirs over ours, of the processor's time, but on CUDA of the clock's.
"""

import argparse
import os
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave, ratio

from bert.data import load_text
from bert.model import MODELS
from bert.train import parse_args
from common.device import Device


def reference(model, dropout: float):
    """transformers' network of the same sizes."""
    from transformers import BertConfig, BertForPreTraining

    s = model.settings
    sizes = dict(vocab_size=s["vocab_size"], hidden_size=s["d_model"], intermediate_size=s["d_ff"])
    sizes |= dict(num_hidden_layers=s["num_layers"], num_attention_heads=s["num_heads"])
    drops = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0)
    return BertForPreTraining(
        BertConfig(**sizes, **drops, max_position_embeddings=s["context"], layer_norm_eps=s["eps"])
    )


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [name for name in MODELS if name.startswith("bert")]
    parser.add_argument("--model", choices=names, default="bert_mini")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    flags = ["--vocab-size", str(args.vocab_size), "--device", args.device, "--quiet"]
    given = parse_args(["--model", args.model, *flags])
    dev = Device(given)
    train, _, _ = load_text(given, dev, "bert")
    steps = train.steps(args.rows, args.length, 10**6)
    batch = next(iter(steps))
    size = train.special.vocab_size

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool, batches=None):
        how = dict(dropout=args.dropout, attention_dropout=0.0)
        model = MODELS[args.model](size, **how)
        model = (model if ours else reference(model, args.dropout)).to(dev.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=default)

        def theirs(inputs: dict, answers: dict):
            tokens, segments = inputs["tokens"], inputs["segments"]
            real = tokens != train.special.pad
            out = model(tokens, attention_mask=real.long(), token_type_ids=segments)
            hidden = torch.full_like(tokens, -100).flatten()
            hidden[inputs["places"]] = answers["targets"]
            logits = out.prediction_logits.flatten(0, 1)
            loss = F.cross_entropy(logits.float(), hidden)
            return loss + F.cross_entropy(out.seq_relationship_logits.float(), answers["labels"])

        def step() -> None:
            inputs, answers = next(batches) if batches else batch
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                if ours:
                    total, count = model.loss(model(**inputs), **answers)
                    loss = total / count
                else:
                    loss = theirs(inputs, answers)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    clock = time.perf_counter if dev.device.type == "cuda" else time.process_time
    real = (batch[0]["tokens"] != train.special.pad).float().mean()
    print(f"{args.model}, {args.rows} examples of {batch[0]['tokens'].shape[1]} tokens, of which "
          f"{real:.0%} are real, {torch.get_num_threads()} threads, {dev.precision}")  # fmt: skip
    for name, default in (("equal", False), ("default", True)):
        sides = [stepper(True, default), stepper(False, False)]
        ours, theirs = interleave(sides, args.rounds, clock=clock)
        print(f"{name:>8}: {ratio(ours, theirs)}", flush=True)
    sides = [stepper(True, True), stepper(True, True, iter(steps))]
    print(f"    data: {ratio(*interleave(sides, args.rounds, clock=clock))}", flush=True)


if __name__ == "__main__":
    main()
