"""GPT-3 (Brown and 30 others 2020, "Language models are few-shot learners", arXiv:2005.14165).

GPT-2 at a hundred times its size, with a context of 2,048 tokens: from a few examples in the text
it does what these show, without any weight being changed. Every second layer sees the nearest
tokens alone ("alternating dense and locally banded sparse attention patterns", Sec. 2.1).

Shapes: B batch, T tokens, D d_model, V vocabulary, w window.

Open in the paper: the width of the bands (here 256 tokens, as GPT-Neo has it), their kernel, and
dropout (here none, unless asked for).
Table 2.1 gives the 1.3-billion model 24 heads of 128, which would make it one of 1.5 billion: here
it has 16, as 2,048 dimensions have room for. The 13-billion model has 5,140 dimensions and 40 heads
of 128, as in the table. No weights were published; GPT-Neo's fit (see published.py).
"""

from gpt.gpt2 import GPT2

WINDOW = 256

# fmt: off
SIZES = {  # Table 2.1
    "gpt3_small":  dict(d_model=768,    num_layers=12, num_heads=12),
    "gpt3_medium": dict(d_model=1024,   num_layers=24, num_heads=16),
    "gpt3_large":  dict(d_model=1536,   num_layers=24, num_heads=16),
    "gpt3_xl":     dict(d_model=2048,   num_layers=24, num_heads=16),
    "gpt3_2b7":    dict(d_model=2560,   num_layers=32, num_heads=32),
    "gpt3_6b7":    dict(d_model=4096,   num_layers=32, num_heads=32),
    "gpt3_13b":    dict(d_model=5140,   num_layers=40, num_heads=40, d_head=128),
    "gpt3_175b":   dict(d_model=12_288, num_layers=96, num_heads=96),
}
# fmt: on


class GPT3(GPT2):
    """The language model; every second layer, beginning with the second, sees `window` tokens
    (all, where it is None)."""

    def __init__(
        self,
        vocab_size: int = 50_257,
        context: int = 2048,
        dropout: float = 0.0,
        window: int | None = WINDOW,
        **sizes,
    ):
        how = dict(context=context, dropout=dropout, windows=(None, window))
        super().__init__(vocab_size, **how, **sizes)


def gpt3_small(vocab_size: int = 50_257, **settings) -> GPT3:
    """125,226,240 parameters ("125M")."""
    return GPT3(vocab_size, **SIZES["gpt3_small"] | settings)


def gpt3_medium(vocab_size: int = 50_257, **settings) -> GPT3:
    """355,871,744 parameters ("350M")."""
    return GPT3(vocab_size, **SIZES["gpt3_medium"] | settings)


def gpt3_large(vocab_size: int = 50_257, **settings) -> GPT3:
    """760,300,032 parameters ("760M")."""
    return GPT3(vocab_size, **SIZES["gpt3_large"] | settings)


def gpt3_xl(vocab_size: int = 50_257, **settings) -> GPT3:
    """1,315,723,264 parameters ("1.3B")."""
    return GPT3(vocab_size, **SIZES["gpt3_xl"] | settings)


def gpt3_2b7(vocab_size: int = 50_257, **settings) -> GPT3:
    """2,651,553,280 parameters ("2.7B")."""
    return GPT3(vocab_size, **SIZES["gpt3_2b7"] | settings)


def gpt3_6b7(vocab_size: int = 50_257, **settings) -> GPT3:
    """6,658,404,352 parameters ("6.7B")."""
    return GPT3(vocab_size, **SIZES["gpt3_6b7"] | settings)


def gpt3_13b(vocab_size: int = 50_257, **settings) -> GPT3:
    """12,936,488,380 parameters ("13B")."""
    return GPT3(vocab_size, **SIZES["gpt3_13b"] | settings)


def gpt3_175b(vocab_size: int = 50_257, **settings) -> GPT3:
    """174,604,259,328 parameters ("175B")."""
    return GPT3(vocab_size, **SIZES["gpt3_175b"] | settings)
