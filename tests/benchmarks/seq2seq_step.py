"""Times a training step of the translating networks beside torch.nn's, and decoding.

    python tests/benchmarks/seq2seq_step.py                         # the small networks
    python tests/benchmarks/seq2seq_step.py --models bahdanau_small --sentences 64

The other side is the same network as tutorials write it: nn.LSTM or nn.GRU reads packed sentences,
and the decoder is a loop over the words in which each step embeds its word, calls the layer,
attends and predicts the next word. Sizes, embeddings, dropout, loss and optimiser are the same; the
sides take turns in one process. `equal` is both in fp32; `default` is ours as the script runs
(precision auto, fused Adam). Printed is the ratio of medians, theirs over ours; then how long
it takes to translate 1,000 sentences with a beam of 4.
"""

import argparse
import os
import time

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
import torch.nn.functional as F
from timing import interleave, ratio
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.device import Device
from seq2seq.decoding import translate
from seq2seq.model import MODELS, PAD
from seq2seq.train import cross_entropy, parse_args


class Reference(nn.Module):
    """A tutorial's network, with the sizes of one of ours."""

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        words, self.kind, self.dropout = model.words, name.partition("_")[0], model.dropout
        vocab, d_model = words.target.weight.shape
        self.embedding = nn.Embedding(vocab, d_model)
        if self.kind == "bahdanau":
            hidden = model.encoder.forth.hidden_size
            self.encoder = nn.GRU(d_model, hidden, batch_first=True, bidirectional=True)
            self.decoder = nn.GRU(d_model + 2 * hidden, hidden, batch_first=True)
            self.begin = nn.Linear(hidden, hidden)
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.key = nn.Linear(2 * hidden, hidden, bias=False)
            self.v = nn.Linear(hidden, 1, bias=False)
            self.out = nn.Linear(d_model + 3 * hidden, model.from_word.out_features)
            self.width = self.out.out_features // 2
        else:
            hidden, layers = model.encoder.hidden_size, len(model.encoder.layers)
            settings = dict(dropout=self.dropout.p, batch_first=True)
            self.encoder = nn.LSTM(d_model, hidden, layers, **settings)
            fed = hidden if self.kind == "luong" else 0
            self.decoder = nn.LSTM(d_model + fed, hidden, layers, **settings)
            self.width = hidden
            if self.kind == "luong":
                self.key = nn.Linear(hidden, hidden, bias=False)
                self.join = nn.Linear(2 * hidden, hidden, bias=False)
        reduce = self.width != d_model
        self.reduce = nn.Linear(self.width, d_model, bias=False) if reduce else nn.Identity()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        lengths, mask = (source != PAD).sum(1).cpu(), source != PAD
        x = pack_padded_sequence(
            self.dropout(self.embedding(source)), lengths, True, enforce_sorted=False
        )
        memory, state = self.encoder(x)
        memory = pad_packed_sequence(memory, batch_first=True)[0]
        if self.kind == "bahdanau":
            state = self.begin(state[1]).tanh()[None]
        joint, logits = None, []
        for t in range(target.shape[1]):
            y = self.dropout(self.embedding(target[:, t : t + 1]))  # (B, 1, D)
            if self.kind == "bahdanau":
                hidden = (self.query(state[0])[:, None] + self.key(memory)).tanh()
                scores = self.v(hidden)[..., 0].masked_fill(~mask, -torch.inf)
                context = scores.softmax(1)[:, None] @ memory
                top = state.transpose(0, 1)
                _, state = self.decoder(torch.cat([y, context], 2), state)
                out = self.out(torch.cat([top, y, context], 2))
                out = out.unflatten(2, (-1, 2)).amax(3)
            elif self.kind == "luong":
                joint = torch.zeros_like(memory[:, :1]) if joint is None else joint
                h, state = self.decoder(torch.cat([y, joint], 2), state)
                h = self.dropout(h)
                scores = (h @ self.key(memory).transpose(1, 2)).masked_fill(
                    ~mask[:, None], -torch.inf
                )
                out = joint = self.join(torch.cat([scores.softmax(2) @ memory, h], 2)).tanh()
            else:
                out, state = self.decoder(y, state)
            logits.append(F.linear(self.reduce(self.dropout(out)), self.embedding.weight))
        return torch.cat(logits, 1)


def main() -> None:
    """Prints the ratios of both steps, and the seconds of decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    small = [name for name in MODELS if name.endswith("_small")]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=small)
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--to-decode", type=int, default=1000, help="sentences")
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

    def stepper(model: nn.Module, default: bool):
        model = model.to(dev.device).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, (0.9, 0.98), fused=default)

        def step() -> None:
            with dev.autocast() if default else torch.autocast(dev.device.type, enabled=False):
                logits = model(source, target[:, :-1])
            cross_entropy(logits, target[:, 1:], 0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            wait()

        return step

    for name in args.models:
        ours = MODELS[name](args.vocab_size)
        for kind, default in (("equal", False), ("default", True)):
            sides = stepper(ours, default), stepper(Reference(name, ours), False)
            print(f"{name:>16} {kind:>8}: {ratio(*interleave(list(sides), args.rounds))}")
        begin, cpu = time.perf_counter(), time.process_time()
        for some in torch.arange(args.to_decode).split(64):
            rows = source[some % len(source)]
            translate(ours, rows, args.length * 2, beam=4)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(f"{name:>16} {args.to_decode:,} sentences, beam 4, {2 * args.length} steps: "
              f"{seconds:.0f} s ({cpu:.0f} s of the processor's time)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
