"""Going on from a prompt: what common/decode.py asks of a GPT, streaming, and where to stop.

for row, text in write(model, vocabulary, prompt_tokens, length=200, count=3, temperature=0.8):
    ...                                    # pieces of text as they are written, by sample
"""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.corpora import Vocabulary
from common.decode import generate
from gpt.model import LanguageModel


@dataclasses.dataclass
class Sample:
    """What one row has written after the tokens `before` it: its tokens, and how much of their
    text was passed on."""

    before: list[int]
    tokens: list[int] = dataclasses.field(default_factory=list)
    shown: str = ""
    ended: bool = False  # at the stop string

    def see(self, vocabulary: Vocabulary, stop: str, final: bool = False) -> str:
        """The text that is new since the last call, before the stop string.

        A character of which bytes are missing waits, and so does what may begin the stop string.
        """
        text = vocabulary.decode([*self.before, *self.tokens])
        text = text[len(vocabulary.decode(self.before)) :]
        if stop and stop in text:
            text, self.ended = text[: text.index(stop)], True
        elif not final:
            if text.endswith("\ufffd") and vocabulary.tokenizer:
                text = text.rstrip("\ufffd")
            held = (
                k for k in range(min(len(stop), len(text)), 0, -1) if stop.startswith(text[-k:])
            )
            text = text[: len(text) - next(held, 0)]
        new = text[len(self.shown) :]
        self.shown += new
        return new


def write(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Tensor,
    length: int,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str = "",
    seed: int = 0,
    cached: bool = True,
    show: Callable[[int, str], None] = lambda row, text: None,
) -> list[str]:
    """`count` texts of at most `length` tokens that go on from the prompt (T,), side by side.

    A text ends before the `stop` string, or where the document ends. Calls `show(row, text)` with
    what is new, as it is written. Temperature 0 is the likeliest token at each step.
    """
    samples = [Sample(prompt[-1:].tolist()) for _ in range(count)]
    size = model.wte.num_embeddings
    end = size if vocabulary.end is None else vocabulary.end  # one that is no token, if need be
    known = vocabulary.tokenizer.get_vocab_size() if vocabulary.tokenizer else size
    begin = len(prompt)

    def step(tokens: Tensor, state: dict) -> tuple[Tensor, dict]:
        rows = state["rows"].tolist()
        for row, written in zip(rows, tokens[:, begin:].tolist(), strict=True):
            samples[row].tokens = written
            if new := samples[row].see(vocabulary, stop) if written else "":
                show(row, new)
        logits, cache = model.step(tokens, state["cache"])
        logits = F.pad(logits.float(), (0, 1), value=-math.inf)
        logits[:, known:] = -math.inf
        logits[:, list(vocabulary.never)] = -math.inf
        for place, row in enumerate(rows):
            if samples[row].ended:  # the only way to end a row is to write the last token
                logits[place] = -math.inf
                logits[place, end] = 0.0
        return logits, {"rows": state["rows"], "cache": cache}

    state = {"rows": torch.arange(count, device=prompt.device)}
    state["cache"] = model.new_cache() if cached else None
    start = prompt.expand(count, -1)
    generator = torch.Generator().manual_seed(seed)
    how = dict(temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    found = generate(step, state, start, length, end, **how)
    for row, (sample, tokens) in enumerate(zip(samples, found, strict=True)):
        sample.tokens = tokens
        if new := sample.see(vocabulary, stop, final=True):
            show(row, new)
    return [sample.shown for sample in samples]
