"""The GPTs: sizes, parity with transformers, the cache, bands, and that they learn.

Usage: torchrun --nproc-per-node 2 tests/test_gpt.py FOLDER [--fsdp] trains the same way there.
"""

import io
import json
import math
import queue
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from conftest import torchrun
from helpers import BOTH, count, dropped, modes, weights
from huggingface_hub.utils import EntryNotFoundError
from safetensors.torch import load_file

from common import plot
from common.data import corpora
from common.data.corpora import END, Vocabulary, make_vocabulary
from gpt import claims, finetune, layers, published, recipes, sample, train
from gpt.layers import Dropout, SelfAttention, attention, banded, visible
from gpt.model import GPT1, GPT2, GPT3, MODELS, Classifier, gpt_tiny
from gpt.writing import Sample, write

COUNTS = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt3_small": 125_226_240,
    "gpt3_medium": 355_871_744,
    "gpt3_large": 760_300_032,
    "gpt3_xl": 1_315_723_264,
    "gpt3_2b7": 2_651_553_280,
    "gpt3_6b7": 6_658_404_352,
    "gpt3_13b": 12_936_488_380,
    "gpt3_175b": 174_604_259_328,
    "gpt_small": 8_791_040,
    "gpt_tiny": 940_800,
}
TABLE = {  # GPT-3's Table 2.1, millions of parameters
    "gpt3_small": 125, "gpt3_medium": 350, "gpt3_large": 760, "gpt3_xl": 1300, "gpt3_2b7": 2700,
    "gpt3_6b7": 6700, "gpt3_13b": 13_000, "gpt3_175b": 175_000,
}  # fmt: skip
TEXT = "".join(f"the {w} of the {w} is a {w}.\n" for w in ("dog", "cat", "bird", "fish") * 40)


def random_weights(model, scale=0.2):
    """Every weight random and none near what hides a wrong wire."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(scale * noise + ("ln_" in name and name.endswith("weight")))
    return model.double().eval()


def tiny(kind=GPT2, **settings):
    sizes = dict(vocab_size=50, d_model=32, num_layers=3, num_heads=4, context=16, dropout=0.0)
    return random_weights(kind(**sizes | settings))


def tokens(*shape, vocab_size=50, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    with torch.device("meta"):
        model = MODELS[name]()
    assert count(model) == COUNTS[name]
    if name in TABLE:
        assert count(model) == pytest.approx(1e6 * TABLE[name], rel=0.02)
        windows = [block.attn.window for block in model.h]
        assert windows == [None, 256] * (len(windows) // 2)
        assert model.context == 2048
    assert f"{COUNTS[name]:,}" in MODELS[name].__doc__


# ---------------------------------------------------------------------- parity


def gpt1_reference():
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    sizes = dict(vocab_size=50, n_positions=16, n_embd=32, n_layer=3, n_head=4)
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes))


def gpt2_reference(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(vocab_size=50, n_positions=16, n_embd=32, n_layer=3, n_head=4)
    sizes |= dict(bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**sizes | settings))


def neo_reference():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = dict(vocab_size=50, max_position_embeddings=16, hidden_size=32, num_layers=4)
    sizes |= dict(num_heads=4, attention_types=[[["global", "local"], 2]], window_size=3)
    sizes |= dict(bos_token_id=0, eos_token_id=0)
    return GPTNeoForCausalLM(GPTNeoConfig(**sizes))


REFERENCES = {"gpt1": gpt1_reference, "gpt2": gpt2_reference, "gpt_neo": neo_reference}


def reference(family):
    return random_weights(REFERENCES[family]())


def converted(theirs, family):
    """Ours with their weights, as read from the files that transformers writes."""
    theirs.save_pretrained("theirs")
    found = published.read_published("theirs")
    assert found.network["family"] == family
    return found.build().double().eval()


def exact(theirs, family):
    """The same in float64, through the table of names."""
    state = {n: p.detach() for n, p in theirs.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        found = published.ours(state, family, 8, "theirs")
    network = published.sizes_of(json.loads(theirs.config.to_json_string()), state, "theirs")[1]
    model = published.build({"family": family, **network}).double().eval()
    model.load_state_dict(found)
    return model


@pytest.mark.parametrize("family", REFERENCES)
def test_parity_with_transformers(family):
    """Logits, loss and gradients with the same weights."""
    theirs = reference(family)
    ours = exact(theirs, family)
    if family == "gpt_neo":
        assert [block.attn.window for block in ours.h] == [None, 3, None, 3]
    some = tokens(3, 13)
    answer = theirs(some, labels=some)
    logits = ours(some)
    close = dict(rtol=1e-5, atol=1e-6) if family == "gpt_neo" else dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, answer.logits, **close, check_dtype=False)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), some[:, 1:].flatten())
    torch.testing.assert_close(loss, answer.loss, rtol=1e-6, atol=0, check_dtype=False)
    loss.backward()  # theirs is computed in float32, so its gradients are taken in our way
    F.cross_entropy(answer.logits[:, :-1].flatten(0, 1), some[:, 1:].flatten()).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        wanted = published.ours(grads, family, 8, "theirs")
    for name, p in ours.named_parameters():
        found, want = p.grad, wanted[name]
        if family == "gpt_neo" and "c_attn" in name:
            if name.endswith("bias"):
                continue  # theirs has none
            want = torch.cat([want[:32] / 8, want[32:]])  # of q times the root of d, not of q
        torch.testing.assert_close(found, want, **close, check_dtype=False)


@pytest.mark.parametrize("family", REFERENCES)
def test_weights_as_transformers_writes_them(family):
    theirs = reference(family).float()
    ours = converted(theirs, family)
    some = tokens(2, 16)
    torch.testing.assert_close(
        ours(some), theirs.double()(some).logits.double(), rtol=1e-4, atol=1e-4
    )


def test_first_weights():
    torch.manual_seed(0)
    model = gpt_tiny()
    for name, p in model.named_parameters():
        wanted = 0.01 if "wpe" in name else 0.02 / 8**0.5 if "c_proj" in name else 0.02
        if p.dim() == 2:
            assert p.std().item() == pytest.approx(wanted, rel=0.05), name
        elif name.endswith("bias"):
            assert not p.any()
    for name, p in GPT1(100, 64, 2, 4).named_parameters():
        assert p.dim() < 2 or p.std().item() == pytest.approx(0.02, rel=0.05), name


def test_the_norm_comes_after_in_gpt1_and_before_in_gpt2():
    features = tiny(GPT1).features(tokens(2, 9))
    last = tiny(GPT1).h[-1].ln_2
    plain = (features - last.bias) / last.weight
    torch.testing.assert_close(plain.mean(2), torch.zeros(2, 9).double(), atol=1e-6, rtol=0)
    model = tiny(GPT2)
    for block in model.h:
        for p in (*block.attn.c_proj.parameters(), *block.mlp.c_proj.parameters()):
            torch.nn.init.zeros_(p)
    some = tokens(2, 9)
    x = model.wte(some) + model.wpe.weight[:9]
    torch.testing.assert_close(model.features(some), model.ln_f(x))  # the sum runs through


# ---------------------------------------------------------------------- properties


def test_attention_by_brute_force():
    q, k, v = (torch.randn(1, 1, 5, 4, dtype=torch.float64) for _ in range(3))
    for window in (None, 2, 5):
        found, _ = attention(q, k, v, visible(5, 5, window))
        for i in range(5):
            near = range(max(0, i - (window or 5) + 1), i + 1)
            scores = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / 2) for j in near]
            wanted = sum(s * v[0, 0, j] for s, j in zip(scores, near, strict=True)) / sum(scores)
            torch.testing.assert_close(found[0, 0, i], wanted)


@pytest.mark.parametrize(("length", "window"), [(1, 3), (3, 3), (7, 3), (9, 3), (16, 4), (5, 1)])
def test_bands_are_the_masked_attention(length, window):
    parts = [
        torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    wanted, _ = attention(*parts, visible(length, length, window))
    found = banded(*parts, window)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((x * weight).sum(), parts) for x in (found, wanted)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", [GPT1, GPT2, GPT3])
def test_causality(kind):
    settings = {"window": 3} if kind is GPT3 else {}
    model, some = tiny(kind, **settings), tokens(2, 12)
    before = model(some)
    for t in (1, 5, 11):
        changed = some.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 50
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_how_far_a_banded_layer_sees():
    layer = random_weights(SelfAttention(8, 2, window=3))
    x = torch.randn(1, 10, 8, dtype=torch.float64, requires_grad=True)
    for t in (0, 2, 7):
        (grad,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        seen = grad[0].abs().sum(1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - 2), t + 1))


@pytest.mark.parametrize("kind", [GPT1, GPT2, GPT3])
@pytest.mark.parametrize("first", [1, 4, 11])
def test_the_cache_gives_the_same_logits(kind, first):
    settings = {"window": 3} if kind is GPT3 else {}
    model, some = tiny(kind, **settings), tokens(2, 12)
    whole, cache = model(some), model.new_cache()
    parts = [model(some[:, :first], cache)]
    parts += [model(some[:, t : t + 1], cache) for t in range(first, 12)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    cache = model.new_cache()
    in_three = [model(some[:, a:b], cache) for a, b in ((0, 4), (4, 9), (9, 12))]
    torch.testing.assert_close(torch.cat(in_three, 1), whole)


@pytest.mark.parametrize("begin", [1, 16, 20, 40])
def test_steps_beyond_the_context_with_and_without_a_cache(begin):
    model, some = tiny(), tokens(2, 45)
    cache, reads = model.new_cache(), []
    plain = model.features
    model.features = lambda t, c: reads.append(t.shape[1]) or plain(t, c)
    for length in range(begin, 46):
        reads.clear()
        logits, cache = model.step(some[:, :length], cache)
        read = reads[0]
        alone, nothing = model.step(some[:, :length], None)
        assert nothing is None
        torch.testing.assert_close(logits, alone)
        if length <= 16:
            torch.testing.assert_close(logits, model(some[:, :length])[:, -1])
        anew = length > 16 and (length - 17) % 8 == 0
        assert read == 1 or anew or length == begin


def test_recording_changes_nothing():
    model, some = tiny(GPT3, window=3, num_layers=2), tokens(2, 10)
    plain = model(some)
    for block in model.h:
        block.attn.recording = True
    torch.testing.assert_close(model(some), plain)
    first, second = (block.attn.weights for block in model.h)
    assert first.shape == (2, 4, 10, 10)
    torch.testing.assert_close(first.sum(3), torch.ones(2, 4, 10).double())
    assert torch.equal(first, first.tril())
    assert torch.equal(second, second.tril().triu(-2))


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="3 heads"):
        GPT2(10, 32, 1, 3)
    with pytest.raises(ValueError, match="17 tokens are more than the context, 16"):
        tiny()(tokens(1, 17))


def test_bf16_on_a_cpu_is_near_fp32():
    torch.manual_seed(0)
    model, some, grads = gpt_tiny(50, dropout=0.0), tokens(4, 33), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(some[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), some[:, 1:].flatten()).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert F.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_dropout_leaves_out_its_share(share):
    torch.manual_seed(0)
    drop, x = Dropout(share).train(), torch.ones(333, 301, requires_grad=True)
    y = drop(x)
    kept = y != 0
    rate = 1 - round(256 * share) / 256 if share < 0.99 else 1 / 256
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(kept.float().mean().item() - rate) < 5 * deviation / kept.numel() ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / rate))
    for line in (kept.float().mean(0), kept.float().mean(1)):  # no place is favoured
        assert (line - rate).abs().max() < 6 * deviation / 300**0.5
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert not torch.equal(drop(x), y)
    assert torch.equal(drop.eval()(x), x)
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("kind", [GPT1, GPT2, GPT3])
def test_where_dropout_falls(kind):
    """On the embeddings, and twice in each of three layers; and in training on attention."""
    model = tiny(kind, dropout=0.5, **{"window": 3} if kind is GPT3 else {})
    assert dropped(model, tokens(2, 9)) == {(2, 9, 32): 7}
    classifier = Classifier(model, 3, 0.5).double()
    lengths = torch.tensor([9, 4])
    assert dropped(classifier, tokens(2, 9), lengths) == {(2, 9, 32): 7, (2, 32): 1}
    for layer in (block.attn for block in model.h):
        x = torch.randn(1, 9, 32).double()
        assert not torch.equal(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


def test_causal_attention_in_bf16(monkeypatch):
    """Plain products, and the kernel where they were too large, are the attention written out."""
    parts = [torch.randn(2, 3, 20, 8) for _ in range(3)]
    wanted, _ = attention(*parts, visible(20, 20, None))
    half, most_scores = [x.bfloat16() for x in parts], layers.MOST_SCORES
    for most in (most_scores, 0):
        monkeypatch.setattr(layers, "MOST_SCORES", most)
        found = layers.attention_kernel(*half, causal=True)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), wanted, rtol=0.03, atol=0.03)
    monkeypatch.setattr(layers, "MOST_SCORES", most_scores)
    torch.manual_seed(0)
    half[2] = torch.ones_like(half[2])
    dropped = layers.attention_kernel(*half, causal=True, dropout=0.5)
    assert dropped.std() > 0.1
    assert dropped.float().mean() == pytest.approx(1, abs=0.1)


def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    model, some = gpt_tiny(50, dropout=0.0, num_layers=2, d_model=64), tokens(4, 33)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


# ---------------------------------------------------------------------- weights from elsewhere


def tokenizer_text(vocab_size=300):
    ends = ("s", "ish", "let", "ling", "dom", "hood")
    words = [word + end for word in ("dog", "cat", "bird", "fish", "the") for end in ends]
    made = make_vocabulary(TEXT + " ".join(words * 9), "bpe", vocab_size, ends=True)
    assert made["vocab_size"] == vocab_size
    return made["tokenizer"]


def folder_of(family="gpt2", tokenizer=True, safe=True, **settings):
    """A folder as transformers writes it, with a tokenizer."""
    theirs = gpt2_reference(vocab_size=300, n_positions=64, **settings)
    random_weights(theirs).float()
    theirs.save_pretrained("theirs")
    if not safe:
        state = {n: p for n, p in theirs.state_dict().items() if n != "lm_head.weight"}
        torch.save(state, "theirs/pytorch_model.bin")
        Path("theirs/model.safetensors").unlink()
    if tokenizer:
        Path("theirs/tokenizer.json").write_text(tokenizer_text())
    return theirs


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["theirs", "file"])
def test_a_folder_or_a_file_of_weights(safe, name):
    theirs = folder_of(safe=safe).double().eval()
    file = "theirs/model.safetensors" if safe else "theirs/pytorch_model.bin"
    found = published.read_published(file if name == "file" else name)
    assert found.network["num_heads"] == 4
    assert found.vocabulary["vocab_size"] == 300
    some = tokens(2, 20, vocab_size=300)
    ours = found.build().double().eval()
    torch.testing.assert_close(ours(some), theirs(some).logits, rtol=1e-5, atol=1e-5)


def test_vocab_and_merges_in_place_of_a_tokenizer():
    folder_of(tokenizer=False)
    whole = json.loads(tokenizer_text())
    Path("theirs/vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    Path("theirs/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    found = published.read_published("theirs")
    one, other = Vocabulary(found.vocabulary), Vocabulary({"tokenizer": tokenizer_text()})
    assert one.encode("the dog is\n").tolist() == other.encode("the dog is\n").tolist()
    assert one.end == other.end is not None


def test_the_tokenizer_of_gpt1():
    from transformers import OpenAIGPTTokenizer

    merges = ["t h", "th e</w>", "d o", "do g</w>", "do g"]
    pieces = [
        *"thedogs.",
        *(f"{c}</w>" for c in "thedogs."),
        "th",
        "the</w>",
        "do",
        "dog</w>",
        "dog",
    ]
    vocab = {"<unk>": 0, **{piece: i for i, piece in enumerate(pieces, 1)}}
    Path("theirs").mkdir()
    files = {name: Path("theirs", name) for name in ("vocab.json", "merges.txt")}
    files["vocab.json"].write_text(json.dumps(vocab))
    files["merges.txt"].write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    ours = Vocabulary({"tokenizer": published.read_tokenizer_files(files, "theirs"),
                       "published": True})  # fmt: skip
    pairs = [tuple(merge.split()) for merge in merges]
    theirs = OpenAIGPTTokenizer(vocab=vocab, merges=pairs)
    for text in ("The dog.", "the dogs' \u00e9", "  Dog  the\n\nDOG"):
        found = ours.encode(text).tolist()
        assert found == theirs(text)["input_ids"]
    assert ours.decode(ours.encode("The dogs.").tolist()) == "the dogs ."


def test_weights_that_do_not_fit(refused, monkeypatch):
    read = published.read_published
    folder_of()
    Path("theirs/tokenizer.json").write_text(tokenizer_text(310))
    line = refused(read, "theirs")
    assert "tokenizer doesn't fit the weights: it has 310 tokens, they have 300" in line
    Path("theirs/tokenizer.json").write_text("{")
    assert "tokenizer is damaged" in refused(read, "theirs")
    Path("theirs/tokenizer.json").write_text(tokenizer_text())
    config = json.loads(Path("theirs/config.json").read_text())
    for change, words in (({"model_type": "llama"}, "config.json says llama"),
                          ({"n_head": 5}, "5 heads can't share 32"),
                          ({"scale_attn_weights": False}, "scale_attn_weights is False"),
                          ({"activation_function": "relu"}, "activation is relu")):  # fmt: skip
        Path("theirs/config.json").write_text(json.dumps(config | change))
        assert words in refused(read, "theirs")
    Path("theirs/config.json").write_text("[")
    assert "config.json is damaged" in refused(read, "theirs")
    Path("theirs/config.json").write_text(json.dumps(config))
    state = read("theirs")
    torch.save({"wte.weight": state.state["wte.weight"]}, "part.pt")
    assert "lacks the embedding" in refused(read, "part.pt")
    torch.save(state.build().state_dict(), "ours.pt")
    Path("nowhere").mkdir()
    Path("ours.pt").rename("nowhere/ours.pt")  # no config.json beside it: 32 dimensions are a head
    again = read("nowhere/ours.pt", lambda text: None)
    assert all(torch.equal(again.state[name], value) for name, value in state.state.items())
    torch.save({"conv.weight": torch.zeros(3)}, "other.pt")
    assert "weights of no GPT" in refused(read, "other.pt")
    Path("noise.pt").write_bytes(b"noise" * 100)
    assert "noise.pt" in refused(read, "noise.pt")
    Path("bare").mkdir()
    assert "holds no model.safetensors" in refused(read, "bare")
    assert "no such file" in refused(read, "nowhere/at/all")
    other = gpt2_reference(tie_word_embeddings=False)
    other.lm_head.weight.data.add_(1)
    torch.save(other.state_dict(), "untied.pt")
    assert "last layer of its own" in refused(read, "untied.pt")


def hub(monkeypatch, repo, files):
    """A cache of the hub's with these files, and no network."""
    from huggingface_hub import constants

    root = Path("cache").resolve()
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    for file in files:
        (folder / "snapshots/abc" / file).write_bytes(Path("theirs", file).read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    find = partial(huggingface_hub.try_to_load_from_cache, cache_dir=root)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", find)

    def offline(*_, **__):
        asked.append(1)
        raise OSError("no network\nmore of it")

    asked = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    return asked


@pytest.mark.parametrize("repo", ["gpt2", "openai-community/gpt2"])
def test_weights_of_the_hub_from_its_cache(repo, monkeypatch):
    theirs = folder_of().double().eval()
    hub(monkeypatch, repo, ["model.safetensors", "config.json", "tokenizer.json"])
    found = published.read_published("gpt2")
    some = tokens(1, 9, vocab_size=300)
    ours = found.build().double().eval()
    torch.testing.assert_close(ours(some), theirs(some).logits, rtol=1e-5, atol=1e-5)
    assert found.vocabulary["published"]


def test_weights_of_the_hub_without_a_network(monkeypatch, refused):
    folder_of()
    asked = hub(monkeypatch, "other", [])
    line = refused(published.read_published, "gpt2-medium")
    for words in ("--weights gpt2-medium", "model.safetensors", "cache", "(no network)"):
        assert words in line
    assert len(asked) == 1  # one answer is enough


def test_weights_of_the_hub_by_the_network(monkeypatch):
    folder_of()
    hub(monkeypatch, "other", [])
    there = ["pytorch_model.bin", "config.json", "tokenizer.json"]
    torch.save(load_file("theirs/model.safetensors"), "theirs/pytorch_model.bin")

    def metadata(url, timeout):
        if not url.endswith(tuple(there)):
            raise EntryNotFoundError(url)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: f"theirs/{file}")
    found = published.read_published("gpt2-large")
    assert found.network["num_layers"] == 3
    assert found.vocabulary["published"]
    there.remove("pytorch_model.bin")
    with pytest.raises(SystemExit):
        published.read_published("gpt2-large")


# ---------------------------------------------------------------------- writing


def writer(context=64):
    torch.manual_seed(0)
    vocabulary = Vocabulary(make_vocabulary(TEXT + END, "bpe", 300, ends=True))
    model = gpt_tiny(300, num_layers=2, d_model=32, context=context)
    return random_weights(model, 0.3).float(), vocabulary


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_changes_no_token(temperature):
    model, vocabulary = writer(context=24)
    prompt = vocabulary.encode("the dog")
    how = dict(length=60, count=3, temperature=temperature)
    found = [write(model, vocabulary, prompt, cached=cached, **how) for cached in (True, False)]
    assert found[0] == found[1]
    assert (len(set(found[0])) > 1) == (temperature > 0)


def test_temperature_zero_and_top_k_one_are_greedy():
    model, vocabulary = writer()
    prompt = vocabulary.encode("a cat")
    greedy = write(model, vocabulary, prompt, 20, temperature=0)
    for how in (dict(top_k=1), dict(top_p=1e-9), dict(temperature=1e-4)):
        assert write(model, vocabulary, prompt, 20, **{"temperature": 1.0} | how) == greedy


def test_a_new_line_after_the_prompt_has_no_space():
    vocabulary = writer()[1]
    ids = vocabulary.encode("the dog is.\nthe cat is.\n").tolist()
    place = len(vocabulary.encode("the dog is.\n"))
    row = Sample(ids[place - 1 : place])
    shown = ""
    for token in ids[place:]:
        row.tokens.append(token)
        shown += row.see(vocabulary, "")
    assert shown == "the cat is.\n"


def test_what_is_written_streams():
    model, vocabulary = writer()
    pieces = [[], [], []]
    texts = write(model, vocabulary, vocabulary.encode("the"), 40, 3,
                  show=lambda row, text: pieces[row].append(text))  # fmt: skip
    assert ["".join(some) for some in pieces] == texts
    assert max(map(len, pieces)) > 10
    lonely = "".join(text for text in texts).count("\ufffd")
    whole = sum(text.encode().decode("utf-8").count("\ufffd") for text in texts)
    assert lonely == whole


def test_a_text_ends_before_the_stop_string():
    model, vocabulary = writer()
    prompt = vocabulary.encode("the")
    plain = write(model, vocabulary, prompt, 40, 2, seed=3)
    stop = plain[0][5:9]
    shown = []
    found = write(model, vocabulary, prompt, 40, 2, seed=3, stop=stop,
                  show=lambda row, text: shown.append(text) if row == 0 else None)  # fmt: skip
    assert found[0] == plain[0][: plain[0].index(stop)] == "".join(shown)
    assert stop not in found[1]
    reads, plain = [], model.features
    model.features = lambda *given: reads.append(1) or plain(*given)
    whole = write(model, vocabulary, prompt, 40, temperature=0)[0]
    assert len(reads) == 40
    write(model, vocabulary, prompt, 40, temperature=0, stop=whole[5:9])
    assert len(reads) < 70  # nothing is computed behind it


def test_tokens_that_are_none_are_not_written():
    model, vocabulary = writer()
    model.wte.weight.data = torch.cat([model.wte.weight.data, torch.full((60, 32), 3.0)])
    wide = write(model, vocabulary, vocabulary.encode("the"), 30, temperature=2.0)[0]
    assert wide
    chars = Vocabulary(make_vocabulary("abc\n", "chars", 0))
    model.wte.weight.data = model.wte.weight.data[:5]
    assert "\ufffd" not in write(model, chars, chars.encode("a"), 200, temperature=5.0)[0]


# ---------------------------------------------------------------------- scripts

SMALL = ["--num-layers", "2", "--d-model", "32", "--num-heads", "2", "--context", "16", "--steps",
         "12", "--every", "4", "--batch-size", "64", "--val", "200", "--quiet"]  # fmt: skip

ALONE = ("--dropout", "0", "--precision", "fp32", "--val", "260")  # 13 windows to evaluate


@pytest.fixture
def corpus(monkeypatch):
    text = corpora.Text([TEXT, TEXT.upper()])
    monkeypatch.setitem(corpora.CORPORA, "pydocs", lambda args: corpora.Corpus({"all": text}))


def run_small(folder, *more):
    return train.main([*SMALL, "--vocab-size", "270", "--run-dir", folder, *more])


def test_metrics_are_what_they_say(corpus):
    found = run_small("run")
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12, 12]
    assert rows[-1]["test_loss"] == found["test_loss"]
    _, _, test = corpora.load_corpus(train.parse_args([*SMALL, "--vocab-size", "270"]), device())
    bits = found["test_loss"] * (len(test) - 1) / math.log(2)
    assert found["test_bits"] == pytest.approx(bits / test.characters, rel=1e-5)
    assert found["test_bits_byte"] == pytest.approx(bits / test.bytes, rel=1e-5)
    stored = torch.load("run/last.pt")
    model = published.build(stored["dataset"]["network"])
    model.load_state_dict(stored["model"])
    again = train.evaluate(model, test, train.Device(train.parse_args(SMALL)), 64)
    assert again["test_loss"] == pytest.approx(found["test_loss"], rel=1e-5)


def device():
    return SimpleNamespace(world=1, rank=0, accumulate=1, seed=0, quiet=True, main=True, say=print,
                           device=torch.device("cpu"), gather=lambda value: [value])  # fmt: skip


def test_resumed_is_uninterrupted(corpus):
    whole = run_small("whole")
    run_small("cut", "--max-steps", "6")
    assert run_small("cut", "--resume") == whole
    for name, value in weights("whole").items():
        assert torch.equal(value, weights("cut")[name]), name


def test_accumulation_is_the_large_batch(corpus):
    run_small("whole", "--dropout", "0", "--clip", "0.5")
    run_small("parts", "--dropout", "0", "--clip", "0.5", "--accumulate", "2")
    for name, value in weights("whole").items():
        torch.testing.assert_close(weights("parts")[name], value, rtol=1e-3, atol=1e-5)


def test_it_trains_in_training_and_is_measured_without_dropout(corpus, monkeypatch):
    uneven()
    for script, run in ((train, run_small), (finetune, tune_small)):
        seen = modes(script, monkeypatch, "make")
        run(script.__name__, "--val", "200" if script is train else "9", "--max-steps", "9")
        assert seen == BOTH


def test_the_auxiliary_loss_has_its_weight():
    uneven()
    found = [tune_small(f"run-{weight}", "--max-steps", "1", "--auxiliary", weight, "--clip", "1e9")
             for weight in ("0", "0.5", "3")]  # fmt: skip
    assert len({run["train_loss"] for run in found}) == 1
    moved = [torch.load(f"run-{w}/last.pt")["optimizer"] for w in ("0", "0.5", "3")]
    first, second, third = (state["state"]["body.wpe.weight"]["exp_avg"] for state in moved)
    torch.testing.assert_close((third - first) / 6, second - first, rtol=1e-3, atol=1e-6)
    assert (second - first).abs().max() > 1e-5


def test_the_mean_of_squares_moves_as_beta2_says(corpus):
    for beta in ("0.9", "0.99"):
        run_small(beta, "--max-steps", "1", "--beta2", beta)
    squares = [torch.load(f"{beta}/last.pt")["optimizer"]["state"]["wte.weight"]["exp_avg_sq"]
               for beta in ("0.9", "0.99")]  # fmt: skip
    torch.testing.assert_close(squares[0], 10 * squares[1], rtol=1e-3, atol=0)


def test_matrices_decay_and_nothing_else(corpus):
    uneven()
    for run in (run_small, tune_small):
        for decay in ("0", "50"):
            run(f"{run.__name__}-{decay}", "--max-steps", "1", "--weight-decay", decay)
        plain, less = (weights(f"{run.__name__}-{decay}") for decay in ("0", "50"))
        for name, value in plain.items():
            assert torch.equal(less[name], value) == (value.dim() < 2), name


@pytest.mark.parametrize("how", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_processes_are_one(corpus, how):
    uneven()
    found = run_small("one", *ALONE)
    tune_small("tuned-one")
    done = torchrun(__file__, "two", *how)
    assert not done.returncode, done.stderr
    for ours, wanted in (("two", "one"), ("tuned-two", "tuned-one")):
        for name, value in weights(wanted).items():
            torch.testing.assert_close(weights(ours)[name], value, rtol=1e-3, atol=1e-5)
    again = train.main(["--evaluate", "two/last.pt", "--quiet"])
    rows = [json.loads(line) for line in Path("two/metrics.jsonl").read_text().splitlines()]
    for key in ("test_loss", "test_bits"):
        assert rows[-1][key] == pytest.approx(found[key], rel=1e-3)
        assert again[key] == pytest.approx(rows[-1][key], rel=1e-5)
    _, val, _ = corpora.load_corpus(flags(*SMALL, "--vocab-size", "270", *ALONE), device())
    assert -(-(len(val) - 1) // 16) % 4 == 1  # windows: one process has a batch more than the other


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions(corpus, precision):
    found = run_small("run", "--max-steps", "2", "--precision", precision)
    assert math.isfinite(found["test_loss"])


def test_training_goes_on_from_weights(corpus, refused, capsys):
    theirs = folder_of().double().eval()
    how = ["--weights", "theirs", "--quiet", "--max-steps", "1", "--lr", "1e-9", "--val", "0"]
    found = train.main([*how, "--run-dir", "tuned", "--batch-size", "256"])
    _, _, test = corpora.load_corpus(train.parse_args(how), device(),
                                     published.read_published("theirs").vocabulary)  # fmt: skip
    some = test.take(torch.tensor([0]), 65)
    wanted = theirs(some[:, :-1]).logits
    stored = torch.load("tuned/last.pt")
    model = published.build(stored["dataset"]["network"]).double().eval()
    model.load_state_dict(stored["model"])
    torch.testing.assert_close(model(some[:, :-1]), wanted, rtol=1e-3, atol=1e-3)
    assert train.main(["--evaluate", "tuned/last.pt", "--quiet"])["test_loss"] == pytest.approx(
        found["test_loss"], rel=1e-5)  # fmt: skip
    Path("empty").mkdir()
    assert "no last.pt" in refused(train.main, ["--weights", "empty", *how[2:]])
    folder = published.read_published("tuned")
    assert torch.equal(folder.state["wpe.weight"], stored["model"]["wpe.weight"])
    assert folder.vocabulary["tokenizer"] == stored["dataset"]["tokenizer"]
    again = train.main(["--weights", "tuned/last.pt", *how[2:], "--run-dir", "again"])
    assert again["test_loss"] == pytest.approx(found["test_loss"], rel=1e-3)
    assert "gpt2's, not gpt1's" in refused(train.main, [*how, "--model", "gpt1"])
    other = ["--resume", "--run-dir", "again", "--weights", "theirs"]
    assert "holds weights 'tuned/last.pt'" in refused(train.main, other)
    run_small("own")
    line = refused(train.main, ["--weights", "own/last.pt", "--model", "gpt2_xl", "--quiet"])
    assert "are gpt_tiny's, not gpt2_xl's" in line
    assert published.model_of("own/last.pt") == published.model_of("own") == "gpt_tiny"
    assert published.model_of("theirs") == "gpt2"
    assert "sizes and a vocabulary" in refused(train.main, [*how, "--d-model", "64"])
    Path("theirs/tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(train.main, how)
    medium = published.Found("gpt2-medium", {"family": "gpt2"}, {})
    assert "are gpt2_medium's, not gpt2's" in refused(published.check_model, medium, "gpt2")
    published.check_model(medium, "gpt2_medium")


def flags(*argv):
    return train.parse_args(list(argv))


def test_shakespeare_has_an_hour_or_minutes():
    """By itself the recipe of the lower bar; minutes where the small network was asked for."""
    hour = flags("--data", "shakespeare")
    assert (hour.model, hour.tokens, hour.context, hour.steps) == ("gpt_small", "chars", None, 4000)
    again = flags("--data", "shakespeare", "--model", "gpt_small")
    assert vars(again) | {"typed": 0, "chosen": 0} == vars(hour) | {"typed": 0, "chosen": 0}
    minutes = flags("--data", "shakespeare", "--model", "gpt_tiny")
    assert (minutes.model, minutes.context, minutes.steps) == ("gpt_tiny", 64, 1600)
    assert flags("--data", "tinystories").model == "gpt_small"
    assert flags().model == "gpt_tiny"


def test_recipes_of_the_papers():
    one = flags("--paper", "--model", "gpt1")
    assert (one.lr, one.batch_size, one.weight_decay, one.beta2) == (2.5e-4, 64 * 512, 0.01, 0.999)
    assert one.warmup * one.steps == pytest.approx(2000, rel=0.01)
    assert one.steps * one.batch_size == pytest.approx(100 * 1.2e9, rel=0.03)
    assert (one.vocab_size, one.dropout, one.floor) == (40_478, 0.1, 0)
    short = flags("--paper", "--model", "gpt1", "--steps", "10000")
    assert short.warmup * 10_000 == pytest.approx(2000)
    rates = [6e-4, 3e-4, 2.5e-4, 2e-4, 1.6e-4, 1.2e-4, 1e-4, 0.6e-4]  # Table 2.1
    millions = [0.5, 0.5, 0.5, 1, 1, 2, 2, 3.2]
    for name, rate, tokens_of_step in zip(TABLE, rates, millions, strict=True):
        args = flags("--paper", "--model", name)
        assert args.lr == rate
        assert args.batch_size == pytest.approx(1e6 * tokens_of_step, rel=0.05)
        assert args.batch_size % (2048 * args.accumulate) == 0
        seen = args.steps * args.batch_size
        assert seen == pytest.approx(300e9, rel=1e-3)
        assert args.warmup * seen == pytest.approx(375e6, rel=0.01)
        assert args.fall * seen == pytest.approx(260e9, rel=1e-3)
        assert (args.floor, args.beta2, args.weight_decay, args.clip) == (0.1, 0.95, 0.1, 1)
        assert args.dropout == 0
    two = flags("--paper")
    assert (two.model, two.lr, two.batch_size, two.beta2) == ("gpt2", 6e-4, 524_288, 0.95)
    assert recipes.papers_own("gpt2", {}) == {}


def test_the_rate_rises_falls_and_stays(refused):
    args = flags("--steps", "99", "--warmup", "0.1", "--fall", "0.8", "--floor", "0.1")
    shares = [train.step_size(args, step) for step in range(99)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    middle = 0.1 + 0.9 * (1 + math.cos(math.pi * 0.5)) / 2
    assert shares[44] == pytest.approx(middle)
    assert shares[79:] == pytest.approx([0.1] * 20)
    assert train.step_size(flags("--steps", "99"), 98) == pytest.approx(0, abs=1e-3)
    line = refused(train.parse_args, ["--warmup", "0.5", "--fall", "0.5"])
    assert "--warmup 0.5 has to be less" in line


def test_bad_flags(corpus, refused):
    assert "3 heads can't share 128" in refused(train.main, ["--num-heads", "3", "--quiet"])
    Path("tiny.txt").write_text("a")
    assert "take more text" in refused(train.main, ["--data", "text:tiny.txt", "--quiet"])
    assert "--weights is empty" in refused(train.main, ["--weights", ""])
    line = refused(train.main, ["--tokens", "chars", "--vocab-size", "500"])
    assert "as many characters as the text has" in line
    line = refused(train.main, ["--accumulate", "3", "--quiet", "--batch-size", "1024"])
    assert "can't share" in line


def test_a_window_longer_than_the_text(capsys):
    Path("short.txt").write_text(TEXT[:400])
    argv = ["--data", "text:short.txt", "--tokens", "chars", "--max-steps", "1", "--val", "0"]
    assert math.isfinite(train.main([*argv, "--context", "1000"])["test_loss"])
    assert "note: windows have 359 tokens, the context 1,000" in capsys.readouterr().out


def test_samples(corpus, capsys, refused):
    run_small("run")
    capsys.readouterr()
    argv = ["--checkpoint", "run/last.pt", "--length", "20"]
    texts = sample.main([*argv, "--prompt", "the dog", "--count", "2", "--out", "out"])
    said = capsys.readouterr()
    assert said.out == f"--- 1\n{texts[0]}\n--- 2\n{texts[1]}\n"
    assert all(text.startswith("the dog") for text in texts)
    assert Path("out/text.txt").read_text() == "\n---\n".join(texts) + "\n"
    assert {p.name for p in Path("out").iterdir()} == {"text.txt", "next.png", "attention.png"}
    assert "is there already" in refused(sample.main, [*argv, "--out", "out"])
    assert sample.main([*argv, "--prompt", "the dog", "--count", "2"]) == texts
    capsys.readouterr()
    sample.main([*argv, "--prompt", "the dog of " * 20])
    assert "of which the network sees the last 16" in capsys.readouterr().err
    Path("prompt.txt").write_text("a cat")
    assert sample.main([*argv, "--file", "prompt.txt"])[0].startswith("a cat")
    for flags, words in ((["--prompt", ""], "empty"), (["--top-p", "1.5"], "--top-p"),
                         (["--temperature", "-1"], "--temperature"), (["x"], "--prompt"),
                         (["--prompt", "a", "--file", "b"], "one of them"),
                         (["--prompt", "a", "x"], "one of them"),
                         (["x", "--out", "new"], "no files"),
                         (["--interactive", "--out", "new"], "no files"),
                         (["--temperature", "0", "--top-k", "3"], "--top-k"),
                         (["--data-dir", "data"], "no data set"),
                         (["--weights", "no/where/at"], "no/where/at")):  # fmt: skip
        assert words in refused(sample.main, [*argv, *flags] if "--weights" not in flags else flags)


def test_samples_of_published_weights(capsys):
    folder_of()
    texts = sample.main(["--weights", "theirs", "--prompt", "the dog", "--length", "5"])
    assert texts[0].startswith("the dog")
    assert len(list(Path("runs/gpt").glob("weights-theirs/samples/*"))) == 3
    sample.main(["--weights", "theirs", "--prompt", "the dog", "--length", "5"])
    assert Path("runs/gpt/weights-theirs/samples-2").is_dir()


def test_attention_of_many_heads(monkeypatch):
    model, vocabulary = writer()
    sizes = []
    monkeypatch.setattr("common.plot.save", lambda figure, path: sizes.append(len(figure.axes)))
    for most in (64, 7):
        monkeypatch.setattr("common.plot.MOST_HEADS", most)
        sample.draw_attention(model, vocabulary, vocabulary.encode("the dog is a dog"), Path("a"))
    assert sizes == [8, 1]


def test_prompts_that_are_typed(corpus, capsys, monkeypatch):
    run_small("run")
    stdin = io.TextIOWrapper(io.BytesIO(b"the dog\n\nthe cat\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    capsys.readouterr()
    sample.main(["--checkpoint", "run/last.pt", "--interactive", "--length", "5"])
    out = capsys.readouterr().out
    assert out.startswith("the dog")
    assert "\nthe cat" in out


# ---------------------------------------------------------------------- fine-tuning

WORDS = {"positive": ["good", "fine", "warm"], "negative": ["bad", "dull", "cold"]}


def sentences(path="films.tsv", count=120):
    rows = [f"a {word} film of {i}\t{label}" for i in range(count // 6)
            for label, words in WORDS.items() for word in words]  # fmt: skip
    Path(path).write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return ["--data", f"sentences:{path}", "--quiet", "--val", "0", "--batch-size", "8"]


TINY = ["--num-layers", "1", "--d-model", "32", "--num-heads", "2", "--context", "16"]


def tune_small(folder, *more):
    """A few steps on texts of very different lengths."""
    argv = ["--data", "sentences:uneven.tsv", "--quiet", "--val", "0", "--batch-size", "8", *TINY]
    argv += ["--vocab-size", "300", "--dropout", "0", "--precision", "fp32", "--max-steps", "4"]
    return finetune.main([*argv, "--run-dir", folder, *more])


def uneven():
    """The table of them."""
    rows = [f"{'so ' * (7 * i % 12)}{word}{i}\t{label}" for i in range(20)
            for label, words in WORDS.items() for word in words[:2]]  # fmt: skip
    Path("uneven.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")


def test_losses_of_fine_tuning():
    """The classes' cross-entropy, and that of each next token of a text, none of the padding."""
    answer, logits = torch.randn(2, 3), torch.randn(2, 5, 7)
    some, lengths = torch.tensor([[1, 2, 3, 4, 5], [1, 6, 2, 0, 0]]), torch.tensor([5, 3])
    found = finetune.losses(answer, logits, some, lengths, torch.tensor([2, 0]))
    odds = logits.log_softmax(2)
    told = [
        [odds[row, t, some[row, t + 1]] for t in range(count)] for row, count in ((0, 4), (1, 2))
    ]
    means = torch.stack([torch.stack(text).mean() for text in told])
    torch.testing.assert_close(found[1], -means.mean())
    torch.testing.assert_close(found[0], F.cross_entropy(answer, torch.tensor([2, 0])))


def test_accumulated_fine_tuning_is_the_large_batch():
    """Though the parts have unequally many tokens."""
    uneven()
    tune_small("whole")
    tune_small("parts", "--accumulate", "4")
    for name, value in weights("whole").items():
        torch.testing.assert_close(weights("parts")[name], value, rtol=1e-3, atol=1e-5)


def test_the_class_is_read_at_the_last_token():
    model = Classifier(tiny(), 3, 0.0).double().eval()
    some, lengths = tokens(2, 9), torch.tensor([9, 5])
    both, logits = model(some, lengths)
    assert logits.shape == (2, 9, 50)
    torch.testing.assert_close(model(some[1:, :5], lengths[1:])[0][0], both[1])
    changed = some.clone()
    changed[1, 5:] = (changed[1, 5:] + 1) % 50
    torch.testing.assert_close(model(changed, lengths)[0], both)


def test_fine_tuning_learns_and_answers(capsys, refused):
    argv = sentences()
    found = finetune.main([*argv, *TINY, "--vocab-size", "300", "--epochs", "6", "--lr", "3e-3",
                           "--run-dir", "run"])  # fmt: skip
    assert found["test_accuracy"] > 0.9
    capsys.readouterr()
    answers = sample.main(["--checkpoint", "run/last.pt", "a good film of 9", "a bad film of 9"])
    assert list(answers.values()) == ["positive", "negative"]
    assert "a good film of 9: positive" in capsys.readouterr().out
    sample.main(["--checkpoint", "run/last.pt", "good " * 40])
    assert "1 sentence cut at 14 tokens" in capsys.readouterr().err
    for text, words in (("\udcff", "is not UTF-8"), (" ", "is empty")):
        line = refused(sample.main, ["--checkpoint", "run/last.pt", "fine", text])
        assert f"sentence 2 {words}" in line
    assert "give sentences" in refused(sample.main, ["--checkpoint", "run/last.pt"])
    for flag in ("--length 3", "--count 2", "--temperature 1", "--top-k 3", "--top-p 0.5",
                 "--stop x", "--seed 1"):  # fmt: skip
        line = refused(sample.main, ["--checkpoint", "run/last.pt", "a film", *flag.split()])
        assert f"{flag.split()[0]} has no meaning here" in line
    assert "use gpt/finetune.py" in refused(train.main, ["--evaluate", "run/last.pt"])
    assert "a classifier" in refused(train.main, ["--weights", "run/last.pt"])
    again = finetune.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again["test_accuracy"] == found["test_accuracy"]


def test_fine_tuning_resumes(capsys):
    argv = [*sentences(), *TINY, "--vocab-size", "300", "--epochs", "2"]
    whole = finetune.main([*argv, "--run-dir", "whole"])
    finetune.main([*argv, "--run-dir", "cut", "--max-steps", "5"])
    assert finetune.main([*argv, "--run-dir", "cut", "--resume"]) == whole


def test_a_stopped_fine_tuning_names_its_script(capsys, monkeypatch):
    monkeypatch.setattr(finetune.Run, "between_steps", lambda run: run.leave(2))
    with pytest.raises(SystemExit) as stop:
        finetune.main([*sentences(), *TINY, "--vocab-size", "300", "--run-dir", "cut"])
    assert stop.value.code == 130
    assert "python gpt/finetune.py --resume --run-dir cut\n" in capsys.readouterr().out


def test_what_fine_tuning_can_not_read(refused):
    line = refused(finetune.main, ["--data-dir", "nowhere"])
    assert "train.tsv is not in nowhere/SST2" in line
    assert "sentences:PATH" in line
    line = refused(finetune.main, ["--data", "sentences:none.csv"])
    assert "none.csv" in line
    assert "pydocs" not in line
    assert "needs 3 tokens" in refused(finetune.main, [*sentences(), "--context", "2"])


def test_fine_tuning_goes_on_from_weights(refused):
    folder_of()
    argv = [*sentences(), "--weights", "theirs", "--max-steps", "1", "--lr", "1e-9"]
    finetune.main([*argv, "--run-dir", "run"])
    state, found = weights("run"), published.read_published("theirs")
    assert state["body.wte.weight"].shape == (302, 32)
    torch.testing.assert_close(state["body.wte.weight"][:300], found.state["wte.weight"],
                               rtol=0, atol=1e-6)  # fmt: skip
    for name, value in found.state.items():
        if name != "wte.weight":
            torch.testing.assert_close(state[f"body.{name}"], value, rtol=0, atol=1e-6)
    line = refused(finetune.main, ["--evaluate", "nothing.pt"])
    assert "nothing.pt" in line


# ---------------------------------------------------------------------- claims


def test_a_rule_is_told_by_its_examples():
    draw, rules = random.Random(0), set()
    for _ in range(50):
        text, known = claims.rule_text(draw)
        rule = {}
        for number, (letter, digit) in enumerate(zip(text[::2], text[1::2], strict=True)):
            assert known[number] == (letter in rule)
            assert rule.setdefault(letter, digit) == digit
        assert number + 1 == claims.EXAMPLES
        rules.add(tuple(sorted(rule.items())))
    assert len(rules) > 40


def test_a_power_law_is_found_again():
    compute = [10.0**k for k in (10, 11, 12, 13)]
    a, b, c = claims.power_law(compute, [7 * x**-0.1 + 1.5 for x in compute])
    assert a * 1e14**-b + c == pytest.approx(7 * 1e14**-0.1 + 1.5, rel=0.003)
    assert b == pytest.approx(0.1, rel=0.1)


def test_claims_run_and_are_skipped_when_done(monkeypatch, corpus):
    monkeypatch.setattr(claims, "RULE_TEXTS", 200)
    monkeypatch.setattr(claims, "TESTED", 300)
    argv = ["shots", "--seeds", "0", "--max-steps", "1", "--out", "out"]
    summary = claims.main(argv)
    assert set(summary) == set(claims.CLAIMS["shots"])
    one = summary["1 layer"]
    assert "rules-0.txt" in one["command"]
    assert one["command"].endswith("# the claim writes that file")
    assert one["possible_0_shots"]["mean"] == 1 / 8
    wanted = 1 - (7 / 8) ** 15 * 7 / 8
    assert one["possible_15_shots"]["mean"] == pytest.approx(wanted, abs=0.07)
    assert one["right_15_shots"]["mean"] < 0.3
    assert {p.name for p in Path("out").iterdir()} == {"claim_shots.json", "claim_shots.png"}
    monkeypatch.setattr(claims, "train", None)
    assert claims.main(argv) == summary


class Inline:
    """A process of multiprocessing that is none."""

    exitcode = 0

    def __init__(self, target, args):
        self.start = lambda: target(*args)

    def join(self):
        pass


@pytest.mark.parametrize("claim", ["transfer", "scaling", "banded"])
def test_claims_on_files(claim, monkeypatch):
    for folder in ("brown", "movie_reviews/pos", "SST2"):
        Path("data", folder).mkdir(parents=True)
    Path("data/brown/news.txt").write_text(TEXT + "\n" + TEXT.upper())
    Path("data/movie_reviews/pos/1.txt").write_text(TEXT)
    for part in ("train", "dev", "test"):
        rows = [f"a {word} {part}\t{number}" for number, word in enumerate(("dull", "fine"))]
        Path(f"data/SST2/{part}.tsv").write_text("\n".join(rows * 3) + "\n")
    context = SimpleNamespace(SimpleQueue=queue.SimpleQueue, Process=Inline)
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: context)
    monkeypatch.setattr(claims, "LENGTHS", (8, 96))
    less = ["100" if word == "100000" else word for word in claims.SHARED["scaling"]]  # --val
    monkeypatch.setitem(claims.SHARED, "scaling", less)
    drawn, save = [], plot.save
    monkeypatch.setattr(
        plot, "save", lambda figure, path: save(figure, path) or drawn.append(figure)
    )
    argv = [claim, "--seeds", "0", "--max-steps", "1", "--out", "out", "--data-dir", "data"]
    summary = claims.main(argv)
    assert len(summary) == len(claims.CLAIMS[claim])
    assert {p.name for p in Path("out").iterdir()} == {
        f"claim_{claim}.{e}" for e in ("json", "png")
    }
    assert all(arm["test_loss"]["mean"] > 0 for arm in summary.values())
    commands = [arm["command"] for arm in summary.values()]
    parts = [text.split(" && ") for text in commands]
    script = "finetune" if claim == "transfer" else "train"
    assert all(some[-1].startswith(f"python gpt/{script}.py") for some in parts)
    if claim == "transfer":  # each command can be repeated: what begins with weights makes them
        assert [len(some) for some in parts] == [2, 2, 1]
        for before, after in parts[:2]:
            assert before.startswith("python gpt/train.py")
            assert "--data text:PATH/movie_reviews" in before
            folder = before.split("--run-dir ")[1]
            assert f"--weights {folder}/last.pt" in after
        assert "--weights" not in commands[2]
    if claim == "scaling":
        for arm in summary.values():
            a, b, c = (arm[f"fitted_{letter}"]["mean"] for letter in "abc")
            wanted = a * arm["compute"]["mean"] ** -b + c
            assert arm["fitted_loss"]["mean"] == pytest.approx(wanted)
    if claim == "banded":
        assert all(arm["seconds_96_tokens"]["mean"] > 0 for arm in summary.values())
        figure = drawn[-1]
        assert [axis.get_ylabel().split(" of ")[0] for axis in figure.axes] == [
            "test loss (nats a token)", "seconds", "peak MiB"]  # fmt: skip
        memory = [line.get_ydata()[-1] for line in figure.axes[2].lines]
        assert memory == [arm["mib_96_tokens"]["mean"] for arm in summary.values()]


if __name__ == "__main__":
    corpora.CORPORA["pydocs"] = lambda args: corpora.Corpus(
        {"all": corpora.Text([TEXT, TEXT.upper()])}
    )
    run_small(sys.argv[1], *ALONE, *sys.argv[2:])
    tune_small(f"tuned-{sys.argv[1]}", *sys.argv[2:])
