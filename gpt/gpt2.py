"""GPT-2 (Radford, Wu, Child, Luan, Amodei, Sutskever 2019, "Language models are unsupervised
multitask learners").

The same as GPT-1, up to ten times as large, on text of the whole web: what GPT-1 was fine-tuned
for, it does when the text asks for it. The norm stands before each part of a block and once after
the last, so that the sum itself runs through unchanged; layers that add to it begin smaller, by the
root of their number.

Shapes: B batch, T tokens, D d_model, V vocabulary.

What the paper leaves open (dropout, GELU by tanh, positions that begin with a std of 0.01) is
as in the released code.
"""

from torch import Tensor, nn

from gpt.layers import MLP, Dropout, LanguageModel, SelfAttention


class Block(nn.Module):
    """Attention and feed-forward on what is normalised, added to what is not (Sec. 2.3)."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        attention_dropout: float,
        d_head: int | None = None,
        window: int | None = None,
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, num_heads, attention_dropout, d_head, window)
        self.ln_2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, cache: dict | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.drop(self.attn(self.ln_1(x), cache))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT2(LanguageModel):
    """The language model; `windows` are those of its layers in turn, None is all (GPT-3).

    `attention_dropout` is of attention's weights, and `dropout` where it is None.
    """

    def __init__(
        self,
        vocab_size: int = 50_257,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        context: int = 1024,
        dropout: float = 0.1,
        d_head: int | None = None,
        windows: tuple[int | None, ...] = (None,),
        attention_dropout: float | None = None,
    ):
        weights = dropout if attention_dropout is None else attention_dropout

        def block(layer: int) -> Block:
            window = windows[layer % len(windows)]
            return Block(d_model, num_heads, dropout, weights, d_head, window)

        super().__init__(vocab_size, context, d_model, num_layers, dropout, block)
        self.ln_f = nn.LayerNorm(d_model)
        nn.init.normal_(self.wpe.weight, std=0.01)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # 1/sqrt(N), N layers that add to the sum
                nn.init.normal_(p, std=0.02 / (2 * num_layers) ** 0.5)


# fmt: off
SIZES = {  # Table 2
    "gpt2":        dict(d_model=768,  num_layers=12, num_heads=12),
    "gpt2_medium": dict(d_model=1024, num_layers=24, num_heads=16),
    "gpt2_large":  dict(d_model=1280, num_layers=36, num_heads=20),
    "gpt2_xl":     dict(d_model=1600, num_layers=48, num_heads=25),
    "gpt_small":   dict(d_model=320,  num_layers=6,  num_heads=5,  context=256),  # ours
    "gpt_tiny":    dict(d_model=128,  num_layers=4,  num_heads=4,  context=128),  # ours
}
# fmt: on
for name in ("gpt_small", "gpt_tiny"):  # attention's weights stay whole, for speed on a CPU
    SIZES[name]["attention_dropout"] = 0.0


def gpt2(vocab_size: int = 50_257, **settings) -> GPT2:
    """124,439,808 parameters; the paper's 117 million were counted wrong."""
    return GPT2(vocab_size, **SIZES["gpt2"] | settings)


def gpt2_medium(vocab_size: int = 50_257, **settings) -> GPT2:
    """354,823,168 parameters."""
    return GPT2(vocab_size, **SIZES["gpt2_medium"] | settings)


def gpt2_large(vocab_size: int = 50_257, **settings) -> GPT2:
    """774,030,080 parameters."""
    return GPT2(vocab_size, **SIZES["gpt2_large"] | settings)


def gpt2_xl(vocab_size: int = 50_257, **settings) -> GPT2:
    """1,557,611,200 parameters."""
    return GPT2(vocab_size, **SIZES["gpt2_xl"] | settings)


def gpt_small(vocab_size: int = 4096, **settings) -> GPT2:
    """Ours, for an hour of one machine; 8,791,040 parameters with 4,096 tokens."""
    return GPT2(vocab_size, **SIZES["gpt_small"] | settings)


def gpt_tiny(vocab_size: int = 1024, **settings) -> GPT2:
    """Ours, for minutes of one machine; 940,800 parameters with 1,024 tokens."""
    return GPT2(vocab_size, **SIZES["gpt_tiny"] | settings)
