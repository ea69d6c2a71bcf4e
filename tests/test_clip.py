"""CLIP's networks, beside transformers and timm; its loss; its tokenizer; published weights."""

import gzip
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import count, perturb

from clip import published
from clip.contrast import WholeStep, contrastive_loss, look_ahead, unrecorded
from clip.layers import QuickGELU
from clip.model import MODELS, SIZES, clip_resnet50, clip_small
from clip.names import current
from clip.vision import AttentionPool2d, Bottleneck, ModifiedResNet
from common import Flags
from common.data.tokens import END, FEWEST, START, Tokens, from_merges, from_vocabulary, read_merges
from common.data.tokens import train_tokenizer as train
from common.device import Device

TINY = dict(embed_dim=24, image_size=32, text_width=64, text_layers=2, text_heads=2, context=16,
            vocab_size=50, words_first=False)  # fmt: skip
VIT = dict(patch_size=8, vision_layers=2, vision_width=64, vision_heads=2)
RESNET = dict(patch_size=None, vision_layers=(1, 2, 1, 1), vision_width=8, vision_heads=4,
              stem_stride=4)  # fmt: skip
DEVICE = dict(quiet=True, accumulate=1, clip=None, fsdp=False, compile=False, seed=0, device="cpu",
              precision="fp32")  # fmt: skip


def tiny(**settings):
    return clip_small(**TINY | VIT | settings)


def texts_of(rows=5, length=9, vocab_size=50, seed=3):
    """Tokens that begin with the last but one and end, somewhere, with the last of a vocabulary."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size - 2, (rows, length), generator=random)
    tokens[:, 0] = vocab_size - 2
    for row, end in enumerate(torch.randint(2, length, (rows,), generator=random).tolist()):
        tokens[row, end:] = vocab_size - 1
    return tokens


def reference(layers=2, vocab_size=50, context=16, heads=2, act="quick_gelu"):
    """transformers' network of the sizes TINY and VIT, in float64, all its weights random."""
    from transformers import CLIPConfig, CLIPModel

    both = dict(hidden_size=64, intermediate_size=256, num_attention_heads=heads,
                num_hidden_layers=layers, projection_dim=24, hidden_act=act)  # fmt: skip
    text = both | dict(vocab_size=vocab_size, max_position_embeddings=context,
                       eos_token_id=vocab_size - 1, bos_token_id=vocab_size - 2,
                       pad_token_id=vocab_size - 1)  # fmt: skip
    vision = both | dict(image_size=32, patch_size=8)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = CLIPModel(config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            is_norm = "norm" in name and name.endswith("weight")
            p.copy_(noise * 0.2 + is_norm if name != "logit_scale" else torch.tensor(1.3))
    return model.double().eval()


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(("name", "settings", "wanted"), [
    ("clip_vit_b_32", {}, 151_277_313),
    ("clip_vit_b_16", {}, 149_620_737),
    ("clip_vit_l_14", {}, 427_616_513),
    ("clip_vit_l_14", {"image_size": 336}, 427_944_193),
    ("clip_resnet50", {}, 102_007_137),
])  # fmt: skip
def test_parameters(name, settings, wanted):
    with torch.device("meta"):
        model = MODELS[name](**settings)
    assert count(model) == wanted
    if name == "clip_vit_b_32":
        projections = model.text_projection.numel(), model.visual.proj.numel()
        text = sum(map(count, (model.transformer, model.token_embedding, model.ln_final)))
        text += model.positional_embedding.numel()
        assert text == 63_165_952
        assert count(model.visual) - projections[1] == 87_456_000


def test_names_are_openais():
    """Those of the released state_dicts."""
    names = set(tiny().state_dict())
    assert {"positional_embedding", "text_projection", "logit_scale", "visual.class_embedding",
            "visual.positional_embedding", "visual.proj", "visual.conv1.weight",
            "visual.ln_pre.weight", "visual.ln_post.bias", "token_embedding.weight",
            "ln_final.bias", "visual.transformer.resblocks.1.attn.in_proj_weight",
            "transformer.resblocks.0.attn.out_proj.bias", "transformer.resblocks.0.mlp.c_fc.weight",
            "transformer.resblocks.1.mlp.c_proj.bias", "transformer.resblocks.1.ln_2.weight",
            } <= names  # fmt: skip
    names = set(clip_small(**TINY | RESNET).state_dict())
    assert {"visual.conv3.weight", "visual.bn1.running_var", "visual.layer2.1.conv3.weight",
            "visual.layer1.0.downsample.0.weight", "visual.layer1.0.downsample.1.running_mean",
            "visual.attnpool.positional_embedding", "visual.attnpool.q_proj.bias",
            "visual.attnpool.c_proj.weight"} <= names  # fmt: skip


def test_first_weights():
    model = tiny(text_layers=8, text_width=256, vocab_size=2000)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    block = model.transformer.resblocks[3]
    for tensor, std in [
        (model.token_embedding.weight, 0.02),
        (model.positional_embedding, 0.01),
        (model.text_projection, 256**-0.5),
        (block.attn.in_proj_weight, 256**-0.5),
        (block.attn.out_proj.weight, 256**-0.5 / 4),
        (block.mlp.c_fc.weight, 512**-0.5),
        (block.mlp.c_proj.weight, 256**-0.5 / 4),
    ]:
        assert tensor.std().item() == pytest.approx(std, rel=0.05)
    small = clip_small().visual
    assert (small.layer1[0].bn3.weight == 1).all()
    visual = clip_resnet50(image_size=64, text_layers=1).visual
    for name in ("layer1", "layer4"):
        assert not getattr(visual, name)[0].bn3.weight.any()
    assert visual.attnpool.c_proj.weight.std().item() == pytest.approx(2048**-0.5, rel=0.02)


def test_a_small_text_encoder_begins_as_a_mean_of_words():
    """In any order, nearly: a text's feature is not changed when its words change their places."""
    model = clip_small(**TINY | VIT | dict(words_first=True, text_layers=2)).double().eval()
    words = torch.tensor([48, 3, 9, 14, 20, 31, 49])
    other = torch.tensor([48, 31, 14, 3, 9, 20, 49])
    another = torch.tensor([48, 3, 9, 40, 41, 42, 49])
    one, two, three = model.encode_text(torch.stack([words, other, another]))
    assert one @ two > 0.95 > 0.85 > one @ three
    plain = tiny()
    assert plain.transformer.resblocks[0].mlp.c_proj.weight.any()
    assert not model.transformer.resblocks[1].mlp.c_proj.weight.any()


def test_sizes_that_do_not_fit():
    for settings, words in [
        (dict(patch_size=5), "can't be cut into patches of 5"),
        (dict(vision_heads=3), "3 heads can't share 64"),
        (dict(text_heads=5), "5 heads can't share 64"),
        (RESNET | dict(image_size=40), "multiple of 32"),
        (RESNET | dict(vision_heads=3), "3 heads can't share 256"),
    ]:
        with pytest.raises(ValueError, match=words):
            tiny(**settings)
    with pytest.raises(ValueError, match="40x32 pixels, but positions for 32"):
        tiny().encode_image(torch.zeros(1, 3, 40, 32))
    with pytest.raises(ValueError, match="17 tokens, but positions for 16"):
        tiny().encode_text(texts_of(length=17))


# ---------------------------------------------------------------------- parity


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_parity_with_transformers(act):
    """Features, logits, loss, and the gradients of all weights, in float64."""
    theirs = reference(act=act)
    ours = tiny(activation=act).double().eval()
    ours.load_state_dict(current(theirs.state_dict()))
    images, tokens = torch.randn(5, 3, 32, 32, dtype=torch.float64), texts_of()
    found = theirs(input_ids=tokens, pixel_values=images, return_loss=True)
    image, text, scale = ours(images, tokens)
    torch.testing.assert_close(image, found.image_embeds, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(text, found.text_embeds, rtol=1e-9, atol=1e-11)
    logits = scale * image @ text.T
    torch.testing.assert_close(logits, found.logits_per_image, rtol=1e-9, atol=1e-11)
    loss = contrastive_loss(image, text, scale, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, found.loss, rtol=1e-9, atol=1e-11)
    found.loss.backward()
    loss.backward()
    wanted = current({name: p.grad for name, p in theirs.named_parameters()})
    assert wanted.keys() == {name for name, _ in ours.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-7, atol=1e-11, msg=name)


def timms(name):
    """What timm calls a parameter of the modified ResNet."""
    if name.startswith("attnpool."):
        part, _, rest = name.removeprefix("attnpool.").partition(".")
        return {"positional_embedding": "head.pos_embed", "c_proj": "head.proj"}.get(
            part, f"head.{part[0]}") + (f".{rest}" if rest else "")  # fmt: skip
    if not name.startswith("layer"):
        kind, rest = name[:4].rstrip("0123456789."), name.split(".", 1)[1]
        number = name[len(kind)]
        return f"stem.conv{number}.{kind}.{rest}"
    stage, block, layer, rest = name.removeprefix("layer").split(".", 3)
    place = f"stages.{int(stage) - 1}.{block}"
    if layer == "downsample":
        number, rest = rest.split(".", 1)
        return f"{place}.shortcut.conv.{'conv' if number == '0' else 'bn'}.{rest}"
    kind = {"1": "conv1_1x1", "2": "conv2_kxk", "3": "conv3_1x1"}[layer[-1]]
    return f"{place}.{kind}.{layer[:-1]}.{rest}"


def test_parity_of_the_modified_resnet_with_timm():
    """The whole tower of clip_resnet50 at 64 pixels: outputs, gradients, running statistics."""
    timm = pytest.importorskip("timm")
    theirs = perturb(timm.create_model("resnet50_clip", num_classes=1024, img_size=64)).double()
    ours = ModifiedResNet(64, (3, 4, 6, 3), 64, 32, 1024).double()
    state = theirs.state_dict()
    names = {timms(name): name for name in ours.state_dict()}
    assert names.keys() == state.keys()
    ours.load_state_dict({names[key]: value for key, value in state.items()})
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs, gradients = [], []
    for model in (ours, theirs):
        given = x.clone().requires_grad_()
        output = model.train()(given)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        outputs.append(output)
        gradients.append(given.grad)
    assert outputs[0].std() > 1e-3
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-10)
    wanted = {names[name]: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        atol = 1e-7 * wanted[name].abs().max().item() + 1e-11
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-5, atol=atol, msg=name)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[names[key]], value, msg=key)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-8, atol=1e-10)


def test_stages_of_the_modified_resnet():
    with torch.device("meta"):
        visual = clip_resnet50().visual
        seen = []
        for name in ("avgpool", "layer1", "layer2", "layer3", "layer4", "attnpool"):
            getattr(visual, name).register_forward_hook(
                lambda _, __, out: seen.append(tuple(out.shape[1:]))
            )
        visual(torch.empty(1, 3, 224, 224))
    assert seen == [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7),
                    (1024,)]  # fmt: skip
    small = ModifiedResNet(32, (1, 1), 8, 4, 10, stem_stride=1)
    assert small.conv1.stride == (1, 1)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert small.attnpool.positional_embedding.shape == (257, 64)


def test_shrinking_is_a_mean_and_not_a_stride():
    """Sec. 2.4: all convolutions have stride 1; a shift by less than the stride isn't lost."""
    block = Bottleneck(8, 4, stride=2)
    torch.nn.init.zeros_(block.bn3.weight)
    assert {m.stride for m in block.modules() if isinstance(m, torch.nn.Conv2d)} == {(1, 1)}
    x = torch.randn(2, 8, 6, 6)
    wanted = F.relu(block.downsample[2](block.downsample[1](F.avg_pool2d(x, 2))))
    torch.testing.assert_close(block.train()(x), wanted)  # the other branch ends in a norm of 0


def test_attention_pool_by_brute_force():
    pool = AttentionPool2d(2, 8, 2, 5).double()
    x = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    for image, found in zip(x, pool(x), strict=True):
        places = image.flatten(1).T
        places = torch.cat([places.mean(0, keepdim=True), places]) + pool.positional_embedding
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            query = pool.q_proj(places[0])[part]
            scores = torch.stack([query @ pool.k_proj(place)[part] / 2 for place in places])
            values = torch.stack([pool.v_proj(place)[part] for place in places])
            heads.append(scores.softmax(0) @ values)
        torch.testing.assert_close(found, pool.c_proj(torch.cat(heads)))


def test_quick_gelu():
    x = torch.linspace(-5, 5, 101)
    assert (QuickGELU()(x) - F.gelu(x)).abs().max().item() == pytest.approx(0.0203, abs=2e-4)
    with torch.device("meta"):
        for name in ("clip_vit_b_32", "clip_resnet50", "clip_small"):
            kinds = {type(block.mlp.gelu) for block in MODELS[name]().transformer.resblocks}
            assert kinds == {QuickGELU}


# ---------------------------------------------------------------------- texts and features


def test_a_text_is_read_up_to_its_first_end():
    """Causal: what follows changes nothing, what comes before does; no padding is needed."""
    model = perturb(tiny()).double().eval()
    tokens = texts_of(1, 12)
    tokens[0, 5:] = 49
    found = model.encode_text(tokens)
    torch.testing.assert_close(found, model.encode_text(tokens[:, :6]))
    changed = tokens.clone()
    changed[0, 7:] = 3
    torch.testing.assert_close(found, model.encode_text(changed))
    for place in range(5):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 40
        assert (found - model.encode_text(changed)).abs().max() > 1e-4
    other = tiny(end_token=7).double().eval()
    other.load_state_dict(model.state_dict())
    changed = tokens.clone()
    changed[0, 5] = 7
    wanted = model.ln_final(model.transformer(model.token_embedding(changed[:, :6])
                                              + model.positional_embedding[:6]))[:, 5]  # fmt: skip
    wanted = F.normalize(wanted @ model.text_projection, dim=1)
    torch.testing.assert_close(other.encode_text(changed), wanted)


def test_bf16_on_a_cpu_is_near_fp32():
    """Products in place of torch's kernel, with a causal mask and without; features are fp32."""
    model = perturb(tiny()).eval()
    images, tokens = torch.randn(4, 3, 32, 32), texts_of(4)
    whole = model(images, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, tokens)
    for one, other in zip(whole[:2], half[:2], strict=True):
        assert other.dtype == torch.float32
        assert (one * other).sum(1).min() > 0.999
        torch.testing.assert_close(other.norm(dim=1), torch.ones(4))
    tokens[:, 6:] = 49
    changed = tokens.clone()
    changed[:, 7:] = 5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode_text(tokens), model.encode_text(changed))


def test_the_scale_is_limited():
    model = tiny()
    for value, wanted in ((3.0, 3.0), (9.0, math.log(100))):
        model.logit_scale.data.fill_(value)
        model.limit_scale()
        assert model.logit_scale.item() == pytest.approx(wanted)
    assert model(torch.zeros(1, 3, 32, 32), texts_of(1))[2].item() == pytest.approx(100)


@pytest.mark.parametrize("kind", [VIT, RESNET], ids=["vit", "resnet"])
def test_it_learns_one_batch_by_heart(kind):
    model = tiny(**kind)
    images, tokens = torch.randn(8, 3, 32, 32), texts_of(8)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    same = torch.eye(8, dtype=torch.bool)
    for _ in range(40):
        loss = contrastive_loss(*model(images, tokens), same)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


# ---------------------------------------------------------------------- the loss


def features(count, seed):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=random, dtype=torch.float64), dim=1)


def test_loss_by_hand():
    """Each image among the texts, each text among the images; several right ones share alike."""
    images, texts, scale = features(4, 0), features(4, 1), torch.tensor(7.0)
    texts[2] = texts[0]  # an equal caption
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    total = 0.0
    for i in range(4):
        right = [j for j in range(4) if same[i, j]]
        by_text = [math.exp(7 * images[i] @ texts[j]) for j in range(4)]
        by_image = [math.exp(7 * images[j] @ texts[i]) for j in range(4)]
        for odds in (by_text, by_image):
            total -= sum(math.log(odds[j] / sum(odds)) for j in right) / len(right)
            total -= math.log(len(right))
    found = contrastive_loss(images, texts, scale, same)
    assert found.item() == pytest.approx(total / 8)
    plain = contrastive_loss(images, texts, scale, torch.eye(4, dtype=torch.bool))
    logits = scale * images @ texts.T
    wanted = F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))
    torch.testing.assert_close(plain, wanted / 2)


def test_equal_captions_are_right_answers_to_each_other():
    """A network that knows all has no loss and no gradient; without `same` it would seem to have.
    As texts are equal, so are the gradients of both: nothing is pushed away."""
    perfect = torch.eye(3, 6, dtype=torch.float64)
    perfect[1] = perfect[0]
    same = perfect @ perfect.T > 0.5
    scale, alone = torch.tensor(100.0), torch.eye(3, dtype=torch.bool)
    images = perfect.clone().requires_grad_()
    found = contrastive_loss(images, perfect, scale, same)
    assert abs(found.item()) < 1e-12
    found.backward()
    assert images.grad.abs().max() < 1e-12
    plain = contrastive_loss(perfect, perfect, scale, alone)
    assert plain.item() == pytest.approx(2 * math.log(2) / 3)
    texts, grads = features(3, 1), []
    texts[1] = texts[0]
    for wanted in (same, alone):
        images = features(3, 0).requires_grad_()
        contrastive_loss(images, texts, scale, wanted).backward()
        grads.append(images.grad)
    torch.testing.assert_close(*grads)
    other = features(3, 2)  # unequal texts that are said to be equal: now it matters
    values = [contrastive_loss(features(3, 0), other, scale, wanted) for wanted in (same, alone)]
    assert abs(values[0] - values[1]) > 0.1


def test_parts_of_a_step_add_up():
    """Gradients of three parts, each against all, are those of the whole, the scale's too."""
    dev = Device(Flags(**DEVICE))
    keys = torch.tensor([1, 2, 3, 1, 5, 6])
    whole = [features(6, 0), features(6, 1), torch.tensor(9.0, dtype=torch.float64)]
    whole = [value.requires_grad_() for value in whole]
    wanted = contrastive_loss(*whole, keys[:, None] == keys[None])
    wanted.backward()
    step = WholeStep(dev)
    pieces = [[f.detach()[i : i + 2].requires_grad_() for i in (0, 2, 4)] for f in whole[:2]]
    scale = whole[2].detach().clone().requires_grad_()
    for i in range(3):
        step.add(pieces[0][i], pieces[1][i], keys[2 * i : 2 * i + 2])
    for i in range(3):
        loss = step.loss(i, pieces[0][i], pieces[1][i], scale)
        torch.testing.assert_close(loss, wanted)
        loss.backward()
    for parts, one in zip(pieces, whole, strict=False):
        torch.testing.assert_close(torch.cat([part.grad for part in parts]), one.grad)
    torch.testing.assert_close(scale.grad, whole[2].grad)


def test_looking_ahead_leaves_batch_norm_as_it_is():
    model = tiny(**RESNET).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 3, 32, 32)
    with unrecorded(model), torch.no_grad():
        ahead = model.encode_image(x)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) or key.endswith("num_batches_tracked"), key
    torch.testing.assert_close(ahead, model.encode_image(x))
    assert not torch.equal(model.visual.bn1.running_mean, before["visual.bn1.running_mean"])
    before = model.visual.bn1.running_mean.clone()
    parts = [(x, texts_of(4), torch.arange(4)), (x + 1, texts_of(4), torch.arange(4))]
    step = look_ahead(model, parts, Device(Flags(**DEVICE)))
    assert torch.equal(model.visual.bn1.running_mean, before)
    assert [len(some) for some in (step.images, step.texts, step.keys)] == [2, 2, 2]
    assert not step.images[0].requires_grad


# ---------------------------------------------------------------------- the tokenizer

MERGED = [("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
TEXTS = [
    "The dogs' 12 cats!", "  DOG\n\tthe dog ", "caf\u00e9 \u2014 it's they'll 3.14",
    "a photo of a \u4e2d\u6587 \U0001f600", "<|endoftext|> is text", "",
]  # fmt: skip


def theirs_of(tokenizer):
    """transformers' tokenizer of the same vocabulary and merges."""
    from transformers import CLIPTokenizer

    model = json.loads(tokenizer)["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges)


def test_tokens_are_those_of_transformers():
    """But for special tokens that are typed, which are text here, as in OpenAI's code."""
    text = from_merges(MERGED)
    ours, theirs = Tokens(text), theirs_of(text)
    assert (ours.start, ours.end, ours.size) == (518, 519, 520)
    for line in TEXTS:
        if START in line or END in line:
            continue
        (row,), cut = ours.encode([line], 77)
        assert row.tolist() == theirs(line)["input_ids"], line
        assert not cut
    dog, the = ("".join(MERGED[i]) for i in (1, 3))
    names = ours.tokenizer.get_vocab()
    wanted = [ours.start, names[the], names[dog], ours.end]
    assert ours.encode(["the dog"], 77)[0].tolist() == [wanted]
    typed = ours.encode([f"{END} is text"], 77)[0][0].tolist()
    assert typed.count(ours.end) == 1


def test_long_texts_are_cut_and_counted():
    tokens = Tokens(from_merges(MERGED))
    rows, cut = tokens.encode(["the dog", "the " * 14, "the " * 15, "dog"], 16)
    assert rows.shape == (4, 16)
    assert cut == 1
    assert (rows[:, 0] == tokens.start).all()
    assert rows[1, -1] == rows[2, -1] == tokens.end
    assert (rows[0, 3:] == tokens.end).all()
    assert tokens.encode([], 16)[0].shape == (0, 0)


def test_a_vocabulary_is_trained_on_captions():
    """Words that are frequent become one token; whatever else can be written in bytes."""
    text = train(["a small red circle left of a blue star"] * 3 + ["an Orange cross"] * 3, 560)
    tokens = Tokens(text)
    assert tokens.size <= 560
    assert (tokens.start, tokens.end) == (tokens.size - 2, tokens.size - 1)
    rows, _ = tokens.encode(["A RED star", "orange circle"], 77)
    assert rows.shape == (2, 5)
    assert rows[0].tolist()[1] == tokens.tokenizer.token_to_id("a</w>")
    assert tokens.encode(["\u4e2d"], 77)[0].shape == (1, 5)  # three bytes
    assert Tokens(train(["a b"], FEWEST)).size == FEWEST


def test_the_released_file_of_merges(refused):
    lines = ["#version: 0.2", *map(" ".join, MERGED), ""]
    path = Path("bpe_simple_vocab_16e6.txt.gz")
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert read_merges(path) == from_merges(MERGED)
    path.write_bytes(b"\x1f\x8bno")
    assert "bpe_simple_vocab_16e6.txt.gz is damaged" in refused(read_merges, path)


def test_a_tokenizer_of_another_kind(refused):
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.BPE({"a": 0}, [])).to_str()
    assert f"it has no {START}" in refused(Tokens, other)


# ---------------------------------------------------------------------- published weights


def folder_of(tokenizer="json", **settings):
    """A folder as transformers writes it, with a tokenizer; the network."""
    theirs = reference(vocab_size=520, **settings)
    theirs.float().save_pretrained("theirs")
    text = from_merges(MERGED)
    if tokenizer == "json":
        Path("theirs/tokenizer.json").write_text(text)
    elif tokenizer == "two":
        model = json.loads(text)["model"]
        Path("theirs/vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(map(" ".join, MERGED))
        Path("theirs/merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    elif tokenizer == "merges":
        merges = "\n".join(["#", *map(" ".join, MERGED)])
        Path("theirs/bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges.encode()))
    return theirs.double()


@pytest.mark.parametrize("tokenizer", ["json", "two", "merges"])
def test_a_folder_of_weights(tokenizer):
    theirs = folder_of(tokenizer)
    found = published.read_published("theirs")
    assert found.network["text_heads"] == found.network["vision_heads"] == 2
    assert found.network["end_token"] == 519
    assert found.inputs["mean"][0] == pytest.approx(0.48145466)
    model = found.build().double().eval()
    tokens, _ = Tokens(found.tokenizer).encode(["the dog", "a cat, the dog"], model.context)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted = theirs(input_ids=tokens, pixel_values=images)
    image, text, scale = model(images, tokens)
    torch.testing.assert_close(scale * image @ text.T, wanted.logits_per_image,
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_a_state_dict_under_openais_names():
    """As OpenAI's code and open_clip save it: half precision, with numbers beside the weights."""
    for kind in (VIT, RESNET):
        model = perturb(tiny(**kind, text_heads=1) if kind is RESNET else
                        tiny(**kind | dict(vision_heads=1), text_heads=1))  # fmt: skip
        state = {key: value.half() for key, value in model.state_dict().items()}
        extra = dict(input_resolution=torch.tensor(32), context_length=torch.tensor(16))
        torch.save(state | extra | dict(vocab_size=torch.tensor(50)), "openai.pt")
        found = published.read_published("openai.pt")
        assert found.tokenizer is None
        built = found.build()
        for key, value in built.state_dict().items():
            torch.testing.assert_close(value, state[key].to(value.dtype), msg=key)
        assert found.network["image_size"] == 32
        if kind is RESNET:
            assert found.network["vision_layers"] == [1, 2, 1, 1]
            assert found.network["vision_heads"] == 4  # 256 channels
        assert built.eval().encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


def test_sizes_of_the_published_networks():
    """Found again from the shapes of their weights."""
    for name, sizes in SIZES.items():
        if name == "clip_small":
            continue
        with torch.device("meta"):
            model = MODELS[name]()
        found = published.sizes_of(model.state_dict(), {}, name)
        wanted = sizes | dict(context=77, vocab_size=49_408, activation="quick_gelu")
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()} == wanted


def test_weights_that_do_not_fit(refused):
    read = published.read_published
    assert "there is no such file or folder" in refused(read, "nothing.pt")
    Path("empty").mkdir()
    assert "holds no model.safetensors" in refused(read, "empty")
    torch.save({"weight": torch.zeros(3)}, "foreign.pt")
    assert "foreign.pt is no CLIP: it has no positional_embedding" in refused(read, "foreign.pt")
    state = tiny().state_dict()
    torch.save({k: v for k, v in state.items() if k != "ln_final.bias"}, "part.pt")
    line = refused(lambda: read("part.pt").build())
    assert "part.pt doesn't fit the sizes that its weights seem to have" in line
    torch.save([1], "list.pt")
    assert "holds no weights" in refused(read, "list.pt")
    folder_of()
    text = from_merges([*MERGED, ("o", "g</w>")])
    Path("theirs/tokenizer.json").write_text(text)
    assert "it has 521 tokens, they have 520" in refused(read, "theirs")
    Path("theirs/tokenizer.json").write_text("{")
    assert "tokenizer is damaged" in refused(read, "theirs")
    config = json.loads(Path("theirs/config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    Path("theirs/config.json").write_text(json.dumps(config))
    assert "its activations are quick_gelu, relu" in refused(read, "theirs")
    torch.save({"config": {"flags": {"milestone": "gpt", "model": "gpt2"}}, "dataset": {}}, "g.pt")
    assert "g.pt is a checkpoint of gpt, not of clip/train.py" in refused(read, "g.pt")


def test_without_config_heads_have_64_dimensions(capsys):
    folder_of(heads=1)
    Path("theirs/config.json").unlink()
    said = []
    found = published.read_published("theirs/model.safetensors", said.append)
    assert found.network["text_heads"] == found.network["vision_heads"] == 1
    assert "heads are taken to be of 64 dimensions" in said[0]


def test_names_of_models_for_weights():
    assert published.model_of("openai/clip-vit-large-patch14") == "clip_vit_l_14"
    assert published.model_of("nothing") == "clip_vit_b_32"
    folder = Path("folder")
    folder.mkdir()
    for content, wanted in [
        ({"vision_config": {"patch_size": 16, "hidden_size": 768}}, "clip_vit_b_16"),
        ({"vision_config": {"patch_size": 14, "hidden_size": 1024}}, "clip_vit_l_14"),
        ({"vision_config": {}}, "clip_vit_b_32"),
        ({"flags": {"model": "clip_small"}}, "clip_small"),
        ([], "clip_vit_b_32"),
    ]:
        Path("folder/config.json").write_text(json.dumps(content))
        assert published.model_of("folder") == wanted


def test_a_vocabulary_given_with_its_numbers():
    vocabulary = {"a</w>": 0, "b</w>": 1, "ab</w>": 3, "a": 2, START: 4, END: 5}
    tokens = Tokens(from_vocabulary(vocabulary, [("a", "b</w>")]))
    assert tokens.encode(["a ab"], 77)[0].tolist() == [[4, 0, 3, 5]]


def test_weights_of_the_hub_from_its_cache(monkeypatch, refused):
    import huggingface_hub
    from huggingface_hub import constants

    theirs, root = folder_of(), Path("cache").resolve()
    name = "openai/clip-vit-base-patch32"
    folder = root / f"models--{name.replace('/', '--')}"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / "snapshots/abc" / file).write_bytes(Path("theirs", file).read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    find = partial(huggingface_hub.try_to_load_from_cache, cache_dir=root)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", find)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    found = published.read_published(name)
    tokens = Tokens(found.tokenizer).encode(["the dog"], 16)[0]
    wanted = theirs.get_text_features(tokens)
    wanted = F.normalize(getattr(wanted, "pooler_output", wanted), dim=1)
    ours = found.build().double().eval().encode_text(tokens)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    line = refused(published.read_published, "openai/clip-vit-large-patch14")
    for words in ("--weights openai/clip-vit-large-patch14", "model.safetensors", "(no network)"):
        assert words in line
