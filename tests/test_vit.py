"""Vision Transformers: sizes, parity with torchvision and timm, positions, attention, learning."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import compare, count, perturb
from torch import nn

from vit.layers import SelfAttention, attention, attention_kernel
from vit.loading import current_name, interpolate
from vit.model import MODELS, POOLS, POSITIONS, VisionTransformer, vit_b_16, vit_tiny

PARAMETERS = {  # of the named sizes those of the released networks
    "vit_tiny": 208_074,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_h_14": 632_045_800,
}
SIZES = dict(image_size=24, patch_size=8, num_layers=2, num_heads=4, d_model=32, d_ff=48)


def tiny(**settings):
    """A network for tests: 3x3 patches, two layers of four heads, seven classes."""
    return VisionTransformer(**dict(SIZES, num_classes=7) | settings)


def reference(**settings):
    """torchvision's of the same sizes."""
    sizes = dict(SIZES, num_classes=7) | settings
    names = {"d_model": "hidden_dim", "d_ff": "mlp_dim"}
    return torchvision.models.VisionTransformer(**{names.get(k, k): v for k, v in sizes.items()})


def shaken(model):
    """All weights random: norms and biases, and also what begins at zero or near it."""
    model = perturb(model.double())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.copy_(noise * 0.2)
    return model


def images(count=2, size=24, dtype=torch.float64):
    return torch.randn(count, 3, size, size, dtype=dtype)


def as_timm(state):
    """A state_dict with timm's names."""
    top = {"conv_proj": "patch_embed.proj", "class_token": "cls_token", "encoder.ln": "norm"}
    top |= {"encoder.pos_embedding": "pos_embed", "heads.head": "head"}
    block = {"ln_1.": "norm1.", "ln_2.": "norm2.", "self_attention.in_proj_": "attn.qkv."}
    block |= {"self_attention.out_proj.": "attn.proj.", "mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}
    found = {}
    for key, value in state.items():
        if key.startswith("encoder.layers."):
            _, _, layer, rest = key.split(".", 3)
            begin = next(name for name in block if rest.startswith(name))
            name = f"blocks.{layer.rpartition('_')[2]}.{block[begin]}{rest.removeprefix(begin)}"
        else:
            begin = next(name for name in top if key.startswith(name))
            name = top[begin] + key.removeprefix(begin)
        found[name] = value
    return found


# ---------------------------------------------------------------------- sizes and parity


def test_parameters():
    with torch.device("meta"):
        assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS
        assert count(vit_b_16(image_size=384)) == 86_859_496  # as fine-tuned in the paper


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit_tiny"])
def test_networks_are_torchvisions(name):
    """Names and shapes, heads, eps, strides, the kind of each layer; what is one class there is
    said once here."""
    with torch.device("meta"):
        ours, theirs = MODELS[name](), getattr(torchvision.models, name)()
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for kind, attributes in (
        (nn.LayerNorm, ("eps", "normalized_shape")),
        (nn.Conv2d, ("kernel_size", "stride", "padding")),
        (nn.GELU, ("approximate",)),
        (nn.Dropout, ("p",)),
    ):
        found = [
            {
                n: [getattr(m, a) for a in attributes]
                for n, m in model.named_modules()
                if isinstance(m, kind)
            }
            for model in (ours, theirs)
        ]
        assert found[0] == found[1] != {}, kind
    heads = {n: m.num_heads for n, m in ours.named_modules() if isinstance(m, SelfAttention)}
    theirs_of = theirs.named_modules()
    assert heads == {n: m.num_heads for n, m in theirs_of if isinstance(m, nn.MultiheadAttention)}


@pytest.mark.parametrize("hidden", [None, 20], ids=["linear head", "head of pre-training"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_parity_with_torchvision(training, hidden):
    theirs = shaken(reference(representation_size=hidden))
    ours = tiny(representation_size=hidden).double()
    ours.load_state_dict(theirs.state_dict())  # the names are the same
    compare(ours, theirs, images(), training)


def test_parity_at_the_papers_size():
    """B/32 as it is released, of which the other sizes differ in counts alone."""
    theirs = perturb(torchvision.models.vit_b_32(num_classes=7))
    with torch.device("meta"):
        ours = MODELS["vit_b_32"](num_classes=7)
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    x = images(1, 224, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def of_timm(**settings):
    """timm's network of the sizes of `tiny`."""
    timm = pytest.importorskip("timm")
    sizes = dict(embed_dim=32, depth=2, num_heads=4, img_size=24, patch_size=8, mlp_ratio=1.5)
    return timm.create_model("vit_base_patch16_224", **sizes | dict(num_classes=7) | settings)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_parity_with_timm(training):
    """Under its names, which are understood as they are loaded; and the same weights back."""
    theirs = shaken(of_timm())
    ours = tiny().double()
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert "patch_embed.proj.weight" in state  # the caller's are kept
    compare(ours, theirs, images(), training, name=current_name)
    back = of_timm().double()
    back.load_state_dict(as_timm(shaken(ours).state_dict()))
    x = images()
    torch.testing.assert_close(back.eval()(x), ours.eval()(x), rtol=1e-8, atol=1e-10)


def test_names_of_timm_and_older_ones_are_understood():
    """Written out, for trees without timm; torchvision's released files say linear_1, linear_2."""
    layer = "encoder.layers.encoder_layer_11"
    assert current_name("patch_embed.proj.bias") == "conv_proj.bias"
    assert current_name("cls_token") == "class_token"
    assert current_name("pos_embed") == "encoder.pos_embedding"
    assert current_name("blocks.11.norm1.weight") == f"{layer}.ln_1.weight"
    assert current_name("blocks.11.attn.qkv.weight") == f"{layer}.self_attention.in_proj_weight"
    assert current_name("blocks.11.attn.proj.bias") == f"{layer}.self_attention.out_proj.bias"
    assert current_name("blocks.11.mlp.fc2.weight") == f"{layer}.mlp.3.weight"
    assert current_name("norm.bias") == "encoder.ln.bias"
    assert current_name("head.weight") == "heads.head.weight"
    assert current_name(f"{layer}.mlp.linear_1.weight") == f"{layer}.mlp.0.weight"
    assert current_name(f"{layer}.mlp.linear_2.bias") == f"{layer}.mlp.3.bias"
    with torch.device("meta"):
        state = MODELS["vit_h_14"]().state_dict()
    assert all(current_name(key) == key for key in state)
    assert {current_name(key) for key in as_timm(state)} == state.keys()


def test_weights_load_inside_of_something_else():
    ours = shaken(tiny())
    whole = nn.Sequential(nn.Linear(1, 1), tiny()).double()
    state = {f"1.{key}": value for key, value in as_timm(ours.state_dict()).items()}
    whole.load_state_dict(state | {f"0.{k}": v for k, v in whole[0].state_dict().items()})
    loaded = whole[1].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in ours.state_dict().items())


# ---------------------------------------------------------------------- the architecture


def test_the_network_written_out():
    """Eq. 1 to 8 token by token and head by head, in numbers of double precision."""
    model = shaken(tiny()).eval()
    picture = images(1)
    p = dict(model.named_parameters())

    def norm(x, name):
        x = (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    patches = [picture[0, :, y : y + 8, x : x + 8] for y in (0, 8, 16) for x in (0, 8, 16)]
    embed, bias = p["conv_proj.weight"], p["conv_proj.bias"]
    tokens = [p["class_token"][0, 0], *((embed * patch).sum((1, 2, 3)) + bias for patch in patches)]
    tokens = [x + e for x, e in zip(tokens, p["encoder.pos_embedding"][0], strict=True)]
    for i in range(2):
        name = f"encoder.layers.encoder_layer_{i}"
        weight, bias = (p[f"{name}.self_attention.in_proj_{kind}"] for kind in ("weight", "bias"))
        rows = [norm(x, f"{name}.ln_1") for x in tokens]
        query, key, value = ([weight[at] @ x + bias[at] for x in rows]
                             for at in (slice(0, 32), slice(32, 64), slice(64, 96)))  # fmt: skip
        for t in range(len(tokens)):
            heads = []
            for a in range(4):
                own = slice(8 * a, 8 * a + 8)
                scores = torch.stack([query[t][own] @ k[own] / math.sqrt(8) for k in key])
                shares = scores.exp() / scores.exp().sum()
                heads.append(sum(s * v[own] for s, v in zip(shares, value, strict=True)))
            out = p[f"{name}.self_attention.out_proj.weight"] @ torch.cat(heads)
            tokens[t] = tokens[t] + out + p[f"{name}.self_attention.out_proj.bias"]
        for t, x in enumerate(tokens):
            wide = p[f"{name}.mlp.0.weight"] @ norm(x, f"{name}.ln_2") + p[f"{name}.mlp.0.bias"]
            wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
            tokens[t] = x + p[f"{name}.mlp.3.weight"] @ wide + p[f"{name}.mlp.3.bias"]
    wanted = p["heads.head.weight"] @ norm(tokens[0], "encoder.ln") + p["heads.head.bias"]
    torch.testing.assert_close(model(picture)[0], wanted)


def test_patches_are_words_without_order():
    """Without positions a network sees a bag of patches; with any kind it sees where they are."""
    x = images(3)
    grid = x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 3, N, 8, 8)
    order = torch.tensor([4, 0, 8, 2, 1, 6, 5, 3, 7])
    other = grid[:, :, order].unflatten(2, (3, 3)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    for positions, pool in itertools.product(POSITIONS, POOLS):
        model = shaken(tiny(positions=positions, pool=pool)).eval()
        same = torch.allclose(model(x), model(other), rtol=1e-9)
        assert same == (positions == "none"), (positions, pool)


def test_learned_positions_are_added_to_the_tokens():
    """1d: to all. 2d: half a vector of the row, half of the column, and none to the class token."""
    for positions, pool in itertools.product(("1d", "2d"), POOLS):
        model = shaken(tiny(positions=positions, pool=pool)).eval()
        seen = []
        model.encoder.dropout.register_forward_hook(lambda _, __, out, to=seen: to.append(out))
        model(images(1))
        bare = model.conv_proj(torch.zeros(1, 3, 24, 24).double()).flatten(2).transpose(1, 2)
        model(torch.zeros(1, 3, 24, 24).double())
        first = [model.class_token] if pool == "token" else []
        added = (seen[1] - torch.cat([*first, bare], 1))[0]
        if positions == "1d":
            wanted = model.encoder.pos_embedding[0]
        else:
            rows, columns = model.encoder.pos_axes
            wanted = [torch.cat([rows[y], columns[x]]) for y in range(3) for x in range(3)]
            wanted = torch.stack([torch.zeros(32).double()] * len(first) + wanted)
        torch.testing.assert_close(added, wanted)


def test_relative_positions_by_brute_force():
    """D.4: the query's products with a vector for the offset are added to the scores."""
    layer = shaken(SelfAttention(12, 3, relative=5))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, 2)
    heads = torch.zeros(2, 5, 12, dtype=torch.float64)
    for b, a, i in itertools.product(range(2), range(3), range(5)):
        own = slice(4 * a, 4 * a + 4)
        scores = torch.stack([
            (q[b, i, own] @ k[b, j, own] + q[b, i, own] @ layer.offsets[j - i + 4]) / 2
            for j in range(5)
        ])  # fmt: skip
        heads[b, i, own] = scores.softmax(0) @ v[b, :, own]
    for layer.recording in (False, True):
        torch.testing.assert_close(layer(x), layer.out_proj(heads))


def test_the_mean_of_tokens():
    model = shaken(tiny(pool="mean")).eval()
    x = images()
    tokens = model.features(x)
    assert tokens.shape == (2, 9, 32)
    torch.testing.assert_close(model(x), model.heads(tokens.mean(1)))
    assert "class_token" not in dict(model.named_parameters())
    token = shaken(tiny()).eval()
    tokens = token.features(x)
    assert tokens.shape == (2, 10, 32)
    torch.testing.assert_close(token(x), token.heads(tokens[:, 0]))


@pytest.mark.parametrize("relative", [False, True])
def test_attention_is_one_whoever_computes_it(relative):
    """The kernel, the plain products of a CPU in bf16, and what is recorded; with gradients."""
    shape = 2, 3, 7, 4
    parts = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 3, 7, 7) if relative else None
    heads, weights = attention(*parts, bias)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 7))
    torch.testing.assert_close(attention_kernel(*parts, bias), heads)
    grads = torch.autograd.grad(heads.square().sum(), parts)
    short = [p.detach().bfloat16().requires_grad_() for p in parts]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_kernel(*short, bias)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), heads, rtol=0.05, atol=0.05)
    for a, b in zip(torch.autograd.grad(found.square().sum(), short), grads, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.2)


def test_sizes_that_cannot_be():
    for wrong, words in (
        (dict(image_size=25), "patches of 8"),
        (dict(num_heads=5), "5 heads"),
        (dict(positions="3d"), "3d"),
        (dict(pool="max"), "max"),
        (dict(positions="2d", d_model=33, num_heads=3), "rows and columns"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(**wrong)
    with pytest.raises(ValueError, match="24x32 pixels, but positions for 24"):
        tiny()(torch.zeros(1, 3, 24, 32))


def test_dropout_is_where_the_paper_has_it():
    """B.1: after positions are added and after every dense layer but those of q, k and v."""
    model, seen = tiny(dropout=0.5).train(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, i, __, n=name: seen.append((n, i[0].shape[2])))
    model(images(1, dtype=torch.float32))
    block = [("dropout", 32), ("mlp.2", 48), ("mlp.4", 32)]
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    wanted = [("encoder.dropout", 32)]
    assert seen == wanted + [(f"{layer}.{name}", d) for layer in layers for name, d in block]


def test_initial_weights():
    torch.manual_seed(0)
    model = vit_tiny(d_model=192)
    state = model.state_dict()
    assert not state["class_token"].any()
    assert not state["heads.head.weight"].any()
    assert not model(images(2, 32, torch.float32)).any()  # all classes are as likely
    assert state["encoder.pos_embedding"].std().item() == pytest.approx(0.02, rel=0.05)
    block = "encoder.layers.encoder_layer_2."
    for part in state[f"{block}self_attention.in_proj_weight"].chunk(3):
        assert part.abs().max().item() == pytest.approx(math.sqrt(6 / 384), rel=0.01)
    wide = state[f"{block}mlp.0.weight"]
    assert wide.abs().max().item() == pytest.approx(math.sqrt(6 / (5 * 192)), rel=0.01)
    assert 0 < state[f"{block}mlp.0.bias"].abs().max() < 1e-5
    assert state["conv_proj.weight"].std().item() == pytest.approx(48**-0.5, rel=0.05)


# ---------------------------------------------------------------------- another resolution


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("old", "new"), [(3, 5), (6, 4), (2, 7)])
def test_positions_are_interpolated_as_in_the_authors_code(old, new, class_token):
    """scipy.ndimage.zoom of order 1 on the grid, and the class token's own kept (Sec. 3.2)."""
    ndimage = pytest.importorskip("scipy.ndimage")
    table = torch.randn(1, old**2 + class_token, 6, dtype=torch.float64)
    found = interpolate(table, new**2 + class_token, class_token)
    assert torch.equal(found[:, :class_token], table[:, :class_token])
    grid = table[0, class_token:].view(old, old, 6).numpy()
    wanted = ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    torch.testing.assert_close(found[0, class_token:].view(new, new, 6), torch.from_numpy(wanted))


def test_positions_on_a_plane_stay_on_it():
    """By hand: what grows by one from patch to patch grows by a half on twice the steps."""
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    table = torch.stack([y, x], 2).view(1, 9, 2)
    grid = interpolate(table, 25, False).view(5, 5, 2)
    halves = torch.arange(5) / 2
    torch.testing.assert_close(grid[..., 0], halves[:, None].expand(5, 5))
    torch.testing.assert_close(grid[..., 1], halves.expand(5, 5))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("positions", ["none", "1d", "2d"])
def test_weights_of_another_resolution_load(positions, pool):
    small = shaken(tiny(positions=positions, pool=pool))
    large = tiny(image_size=40, positions=positions, pool=pool).double()
    large.load_state_dict(small.state_dict())
    loaded, state = large.state_dict(), small.state_dict()
    changed = {key for key in state if loaded[key].shape != state[key].shape}
    kinds = {"none": set(), "1d": {"encoder.pos_embedding"}, "2d": {"encoder.pos_axes"}}
    assert changed == kinds[positions]
    assert all(torch.equal(loaded[key], state[key]) for key in state.keys() - changed)
    table = large.encoder.table()
    if table is not None:
        corners = table[0, -25:].view(5, 5, 32)[::4, ::4]
        old = small.encoder.table()[0, -9:].view(3, 3, 32)[::2, ::2]
        torch.testing.assert_close(corners, old)  # corners stay where they are
    assert large.eval()(images(size=40)).isfinite().all()
    again = tiny(positions=positions, pool=pool).double()
    again.load_state_dict(state)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())


def test_relative_positions_are_of_one_grid():
    state = tiny(positions="relative").state_dict()
    with pytest.raises(ValueError, match="relative positions are of one grid"):
        tiny(image_size=40, positions="relative").load_state_dict(state)


def test_positions_that_are_no_square_are_named():
    """Left as they are, and torch says which do not fit."""
    state = tiny().state_dict()
    state["encoder.pos_embedding"] = torch.zeros(1, 8, 32)
    with pytest.raises(RuntimeError, match=r"encoder\.pos_embedding"):
        tiny().load_state_dict(state)


# ---------------------------------------------------------------------- it learns


@pytest.mark.parametrize(("positions", "pool"), [("1d", "token"), ("relative", "mean")])
def test_it_overfits_a_batch(positions, pool):
    torch.manual_seed(0)
    model = vit_tiny(d_model=32, num_layers=2, positions=positions, pool=pool)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
