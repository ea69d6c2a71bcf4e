"""Times a training step of the recurrent networks beside torch.nn's, an epoch, and sampling.

    python tests/benchmarks/rnn_step.py                         # the QUICK sizes
    python tests/benchmarks/rnn_step.py --hidden-size 512 --num-layers 2

Language models of characters, with the same embedding, layers, output, loss and clipping; the sides
take turns in one process. `equal` is both in fp32; `default` is ours as the script runs
(precision auto, fused AdamW). `masked` is a classifier that reads both ways, of sentences of
unequal length, beside packed sequences. `epoch` is the text cut into streams on the device beside
a loop that makes each batch of slices of the text at random places. Printed are the rounds' ratios,
theirs over ours, their median and quartiles; then the seconds that sampling takes. On a CPU the
processor's time counts, so that other jobs disturb less.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.device import Device
from rnn.corpus import Carried, Windows
from rnn.model import MODELS
from rnn.train import QUICK, parse_args

SYMBOLS = 100


class Reference(nn.Module):
    """A language model as tutorials have it."""

    def __init__(self, layer: type, embedding: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, embedding)
        self.rnn = layer(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, SYMBOLS)

    def forward(self, tokens: Tensor, state=None):
        x, state = self.rnn(self.embedding(tokens), state)
        return self.output(x), state


class PackedReader(nn.Module):
    """A classifier of packed sequences, both ways, by the mean over the steps."""

    def __init__(self, layer: type, embedding: int, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, embedding)
        self.rnn = layer(embedding, hidden, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * hidden, 2)

    def forward(self, tokens: Tensor, lengths: Tensor):
        x = pack_padded_sequence(self.embedding(tokens), lengths, True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.rnn(x)[0], batch_first=True)
        return self.output(x.sum(1) / lengths[:, None])


def race(ours: Callable, theirs: Callable, rounds: int, warm_up: int, clock: Callable) -> str:
    """Theirs over ours, round by round: the median and the quartiles."""
    times = interleave([ours, theirs], rounds, warm_up, clock)
    pairs = [b / a for a, b in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["lstm", "gru", "elman"])
    parser.add_argument("--hidden-size", type=int, default=QUICK["hidden_size"])
    parser.add_argument("--num-layers", type=int, default=QUICK["num_layers"])
    parser.add_argument("--embedding-size", type=int, default=QUICK["embedding_size"])
    parser.add_argument("--bptt", type=int, default=QUICK["bptt"])
    parser.add_argument("--batch-size", type=int, default=QUICK["batch_size"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    dev = Device(parse_args(["--device", args.device, "--quiet"]))
    sizes = dict(hidden_size=args.hidden_size, num_layers=args.num_layers)
    sizes["embedding_size"] = args.embedding_size
    text = torch.randint(SYMBOLS, (20 * args.batch_size + 1,), device=dev.device)
    streams = args.batch_size // args.bptt
    tokens = text[: streams * args.bptt].view(streams, -1)
    following = text[1 : streams * args.bptt + 1].view(streams, -1)
    clock = time.perf_counter if dev.device.type == "cuda" else time.process_time
    layers = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}

    def wait() -> None:
        if dev.device.type == "cuda":
            torch.cuda.synchronize()

    def learner(model: nn.Module, default: bool):
        model.to(dev.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0, fused=default)

        def learn(call, targets: Tensor) -> None:
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                logits = call()
            F.cross_entropy(logits.float().flatten(0, -2), targets.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return learn

    def stepper(model: nn.Module, default: bool):
        learn = learner(model, default)
        return lambda: learn(lambda: model(tokens)[0], following)

    shape = args.embedding_size, args.hidden_size
    for name in args.models:
        for kind, default in (("equal", False), ("default", True)):
            model = MODELS[name]("text", vocab_size=SYMBOLS, **sizes)
            other = Reference(layers[name], *shape, args.num_layers)
            other.load_state_dict(model.state_dict())
            sides = stepper(model, default), stepper(other, False)
            print(f"{name:>6} {kind:>8}: {race(*sides, args.rounds, 2, clock)}", flush=True)

    lengths = torch.randint(5, 40, (32,)).sort(descending=True).values
    words, classes = torch.randint(SYMBOLS, (32, int(lengths[0]))), torch.randint(2, (32,))
    words, classes = words.to(dev.device), classes.to(dev.device)
    for name in [name for name in ("lstm", "gru") if name in args.models]:
        own = dict(hidden_size=128, embedding_size=100, vocab_size=SYMBOLS, pooling="mean")
        model, other = MODELS[f"bi{name}"]("classes", **own), PackedReader(layers[name], 100, 128)
        learn, learn_other = learner(model, True), learner(other, False)
        ours = lambda: learn(lambda: model(words, lengths)[0], classes)  # noqa: B023, E731
        theirs = lambda: learn_other(lambda: other(words, lengths), classes)  # noqa: B023, E731
        print(f"{name:>6}   masked: {race(ours, theirs, args.rounds, 2, clock)}", flush=True)

    model = MODELS["lstm"]("text", vocab_size=SYMBOLS, **sizes)
    other = Reference(nn.LSTM, *shape, args.num_layers)
    learn, learn_other = learner(model, True), learner(other, False)
    batches, carried = Windows(text, args.batch_size, args.bptt, dev), Carried(dev, on=True)

    def epoch() -> None:
        carried.begin(anew=True, batches=batches)
        for inputs, _, targets in batches:

            def call(inputs=inputs) -> Tensor:
                logits, state = model(inputs, None, carried.take())
                carried.put(state)
                return logits

            learn(call, targets)

    def usual() -> None:
        for _ in range(len(batches)):
            places = torch.randint(len(text) - args.bptt - 1, (streams,)).tolist()
            inputs = torch.stack([text[i : i + args.bptt] for i in places])
            targets = torch.stack([text[i + 1 : i + 1 + args.bptt] for i in places])
            learn_other(lambda inputs=inputs: other(inputs)[0], targets)

    print(f"  lstm    epoch: {race(epoch, usual, max(3, args.rounds // 3), 1, clock)}")

    model.eval()
    prompt, seconds = torch.zeros(1, dtype=torch.int64, device=dev.device), []
    for _ in range(5):
        start = clock()
        list(model.generate(prompt, 1000))
        seconds.append(clock() - start)
    print(f"sampling 1,000 characters: {sorted(seconds)[2]:.2f} s")


if __name__ == "__main__":
    main()
