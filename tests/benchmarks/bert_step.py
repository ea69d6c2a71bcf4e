"""Times a step of pre-training of the five beside transformers' networks.

    python tests/benchmarks/bert_step.py                      # bert_mini, 16 examples of 128 tokens
    python tests/benchmarks/bert_step.py --model bert_base --rows 4
    python tests/benchmarks/bert_step.py --model electra_mini # also roberta_mini, albert_mini …

Theirs are BertForPreTraining, RobertaForMaskedLM, AlbertForPreTraining, ElectraForMaskedLM and
ElectraForPreTraining with shared embeddings, and XLNetLMHeadModel with perm_mask.

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
from timing import beside, interleave, ratio

from bert.data import load_text
from bert.model import MODELS
from bert.recipes import family_of
from bert.train import parse_args
from common.device import Device


class Electra(torch.nn.Module):
    """transformers' generator and discriminator, which share their embeddings."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        ours, its = discriminator.electra.embeddings, generator.electra.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            setattr(its, name, getattr(ours, name))


def reference(model, dropout: float):
    """transformers' network of the same sizes."""
    import transformers as hub

    s, family = model.settings, model.family
    if family == "xlnet":
        own = dict(vocab_size=s["vocab_size"], d_model=s["d_model"], n_layer=s["num_layers"])
        own |= dict(n_head=s["num_heads"], d_inner=s["d_ff"], layer_norm_eps=s["eps"])
        return hub.XLNetLMHeadModel(hub.XLNetConfig(**own, dropout=dropout, ff_activation="gelu"))
    sizes = dict(vocab_size=s["vocab_size"], hidden_size=s["d_model"], intermediate_size=s["d_ff"])
    sizes |= dict(num_hidden_layers=s["num_layers"], num_attention_heads=s["num_heads"])
    sizes |= dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0)
    sizes |= dict(layer_norm_eps=s["eps"], pad_token_id=s["pad"], type_vocab_size=s["num_segments"])
    places = s["context"] + (s["pad"] + 1 if family == "roberta" else 0)
    sizes |= dict(max_position_embeddings=places)
    if family == "roberta":
        return hub.RobertaForMaskedLM(hub.RobertaConfig(**sizes))
    if family == "bert":
        return hub.BertForPreTraining(hub.BertConfig(**sizes))
    sizes |= dict(embedding_size=s["d_embedding"])
    if family == "albert":
        own = dict(num_hidden_groups=s["num_groups"], hidden_act="gelu_new")
        return hub.AlbertForPreTraining(hub.AlbertConfig(**sizes, **own))
    small = {name: round(s["generator"] * sizes[name]) for name in
             ("hidden_size", "intermediate_size", "num_attention_heads")}  # fmt: skip
    return Electra(hub.ElectraForMaskedLM(hub.ElectraConfig(**sizes | small)),
                   hub.ElectraForPreTraining(hub.ElectraConfig(**sizes)))  # fmt: skip


def their_loss(model, family: str, inputs: dict, answers: dict, pad: int):
    """The loss of transformers' network of the family, with the losses of ours."""
    tokens, segments = inputs["tokens"], inputs["segments"]
    real, places = tokens != pad, inputs["places"]
    hidden = torch.full_like(tokens, -100).flatten()
    hidden[places] = answers["targets"]

    def told(logits):
        return F.cross_entropy(logits.flatten(0, 1).float(), hidden)

    how = dict(attention_mask=real.long())
    if family == "roberta":
        return told(model(tokens, **how).logits)
    how |= dict(token_type_ids=segments)
    if family in ("bert", "albert"):
        out = model(tokens, **how)
        pairs = out.seq_relationship_logits if family == "bert" else out.sop_logits
        return told(out.prediction_logits) + F.cross_entropy(pairs.float(), answers["labels"])
    if family == "electra":
        logits = model.generator(tokens, **how).logits
        chosen = logits.detach().flatten(0, 1)[places].float()
        guesses = (chosen - torch.empty_like(chosen).exponential_().log()).argmax(-1)
        written = tokens.flatten().index_put((places,), guesses)
        replaced = torch.zeros_like(written).index_put(
            (places,), (guesses != answers["targets"]).long()).view_as(tokens)  # fmt: skip
        scores = model.discriminator(written.view_as(tokens), **how).logits
        found = F.binary_cross_entropy_with_logits(scores[real].float(), replaced[real].float())
        return told(logits) + 50 * found
    ranks, rows = inputs["ranks"], places // tokens.shape[1]
    unseen = (ranks[:, None] >= ranks[:, :, None]) & (ranks[:, None] >= 0)  # (B, T, T), by query
    counts = rows.bincount(minlength=len(tokens))
    slots = torch.arange(len(places), device=tokens.device) - (counts.cumsum(0) - counts)[rows]
    mapping = tokens.new_zeros(len(tokens), int(counts.max()), tokens.shape[1]).float()
    mapping[rows, slots, places % tokens.shape[1]] = 1
    logits = model(tokens, **how, perm_mask=unseen.float(), target_mapping=mapping).logits
    return F.cross_entropy(logits[rows, slots].float(), answers["targets"])


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="bert_mini")
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
    family = family_of(args.model)
    train, _, _ = load_text(given, dev, family)
    steps = train.steps(args.rows, args.length, 10**6)
    batch = next(iter(steps))
    size = train.special.vocab_size

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def stepper(ours: bool, default: bool, batches=None):
        how = dict(dropout=args.dropout, attention_dropout=0.0, pad=train.special.pad)
        model = MODELS[args.model](size, **how)
        model = (model if ours else reference(model, args.dropout)).to(dev.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=default)

        def step() -> None:
            inputs, answers = next(batches) if batches else batch
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                if ours:
                    total, count = model.loss(model(**inputs), **answers)
                    loss = total / count
                else:
                    loss = their_loss(model, family, inputs, answers, train.special.pad)
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
    beside(stepper, args.rounds, clock)
    sides = [stepper(True, True), stepper(True, True, iter(steps))]
    print(f"    data: {ratio(*interleave(sides, args.rounds, clock=clock))}", flush=True)


if __name__ == "__main__":
    main()
