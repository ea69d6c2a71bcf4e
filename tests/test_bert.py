"""BERT and its line: sizes, parity with transformers, padding, published names, and that they
learn."""

import copy
import itertools
import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import count, dropped
from torch import nn

from bert import electra, layers, names, xlnet
from bert.layers import Dropout, Rows, Sizes, attention, attention_kernel, averaged
from bert.model import FAMILIES, MODELS, BERT, Masked, Special, collate

COUNTS = {  # of all; of the encoder
    "bert_base": (110_106_428, 109_482_240),
    "bert_large": (336_226_108, 335_141_888),
    "bert_mini": (5_430_786, 5_355_776),
    "bert_tiny": (711_170, 692_096),
    "roberta_base": (124_697_433, 124_645_632 - 590_592),  # less a pooler, of 768² + 768
    "roberta_large": (355_412_057, 355_359_744 - 1_049_600),
    "roberta_mini": (5_364_736, 5_290_240),
    "roberta_tiny": (694_528, 675_712),
    "albert_base": (11_813_810, 11_683_584),
    "albert_large": (17_847_474, 17_683_968),
    "albert_xlarge": (59_021_490, 58_724_864),
    "albert_xxlarge": (223_158_450, 222_595_584),
    "albert_mini": (4_621_698, 4_546_560),
    "albert_tiny": (373_314, 362_624),
    "electra_small": (14_196_475, 13_483_008),
    "electra_base": (119_387_963, 109_482_240 - 590_592),
    "electra_large": (354_657_339, 335_141_888 - 1_049_600),
    "electra_mini": (5_598_273, 5_289_984),
    "electra_tiny": (811_329, 675_584),
    "xlnet_base": (116_750_336, 116_718_336),
    "xlnet_large": (360_300_800, 360_268_800),
    "xlnet_mini": (5_527_808, 5_519_616),
    "xlnet_tiny": (693_888, 691_840),
}
ELECTRAS = {  # discriminator and generator, each as a network of its own
    "electra_small": (13_549_057, 4_620_026),
    "electra_base": (109_483_009, 33_740_602),
    "electra_large": (335_142_913, 51_295_290),
}
SMALL = dict(vocab_size=50, d_model=32, num_layers=2, num_heads=4, d_ff=64, context=16, dropout=0.0)


def body(model):
    return getattr(model, names.BODY[model.family][:-1])


def random_weights(model, scale=0.2, seed=0):
    """Every weight random and none near what hides a wrong wire."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            norm = name.lower().endswith("norm.weight")
            p.copy_(scale * noise + norm)
    return model.double().eval()


def small(family, **settings):
    return random_weights(names.build({"family": family, **SMALL, **OWN.get(family, {})} | settings))


OWN = {
    "roberta": dict(pad=1, num_segments=1, eps=1e-5),
    "albert": dict(d_embedding=16),
    "electra": dict(d_embedding=16),
    "xlnet": dict(pad=5),
}


def some_tokens(family="bert", rows=3, length=12, lengths=(), seed=0):
    """Tokens from 7 on, padded behind their `lengths`, and segments."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, 50, (rows, length), generator=generator)
    segments = (torch.arange(length) >= length // 3).long().expand(rows, -1).clone()
    if family == "roberta":
        segments.zero_()
    for row, end in enumerate(lengths):
        tokens[row, end:] = pad_of(family)
    return tokens, segments


def pad_of(family):
    return OWN.get(family, {}).get("pad", 0)


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    with torch.device("meta"):
        model = MODELS[name]()
    whole, encoder = COUNTS[name]
    assert (count(model), count(body(model))) == (whole, encoder)
    known = encoder + (590_592 if name == "roberta_base" else 1_049_600) * ("roberta" in name)
    said = " ".join(MODELS[name].__doc__.split())
    published = "mini" not in name and "tiny" not in name
    assert f"{(known if published else whole):,}" in said
    if name in ELECTRAS:
        heads = (model.electra, model.discriminator_predictions), (model.generator,)
        assert tuple(sum(map(count, parts)) for parts in heads) == ELECTRAS[name]
        assert f"{ELECTRAS[name][0]:,}" in said
    elif published and name not in ("roberta_base", "roberta_large"):
        assert f"{whole:,}" in said


def test_sizes_of_turc_and_without_pairs():
    with torch.device("meta"):
        assert count(MODELS["bert_tiny"](30_522, context=512)) == 4_433_468
        assert count(MODELS["bert_base"](pairs=False)) == 109_514_298
        assert count(MODELS["bert_large"](pairs=False)) == 335_174_458
        shared, alone = (count(MODELS["albert_base"](num_groups=n).albert.encoder) for n in (1, 12))
    assert alone - shared == 11 * 7_087_872


# ---------------------------------------------------------------------- parity


def reference(family, kind="pretraining", **settings):
    """transformers' network, with random weights."""
    import transformers as t

    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(intermediate_size=64, max_position_embeddings=16, num_labels=3)
    sizes |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    prefix = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert", "electra": "Electra",
              "xlnet": "XLNet"}[family]  # fmt: skip
    if family == "roberta":
        sizes |= dict(max_position_embeddings=18, type_vocab_size=1, pad_token_id=1,
                      layer_norm_eps=1e-5)  # fmt: skip
    if family in ("albert", "electra"):
        sizes |= dict(embedding_size=16)
    if family == "xlnet":
        sizes = dict(vocab_size=50, d_model=32, n_layer=2, n_head=4, d_inner=64, dropout=0.0,
                     num_labels=3)  # fmt: skip
    config = getattr(t, f"{prefix}Config")(**sizes | settings)
    config._attn_implementation = "eager"
    head = {"pretraining": "ForPreTraining", "classes": "ForSequenceClassification"}.get(kind, kind)
    if kind == "pretraining" and family in ("roberta", "xlnet"):
        head = "ForMaskedLM" if family == "roberta" else "LMHeadModel"
    return random_weights(getattr(t, f"{prefix}{head}")(config))


def facts(theirs):
    return theirs.config.to_dict()


def exact(theirs, family, classes=None, **more):
    """Ours with their weights, by the names of published ones."""
    state = names.renamed(theirs.state_dict(), family)
    settings = names.settings_of(state, facts(theirs), family)
    model = names.build({"family": family, **settings}, dropout=0.0, **more)
    if classes:
        model = model.classifier(classes, dropout=0.0)
    model = model.double().eval()
    model.new = names.load(model, state, family)
    return model


def same_gradients(ours, theirs, family, **close):
    """Those of all parameters of ours that have one of theirs."""
    wanted = names.renamed({n: p.grad for n, p in theirs.named_parameters()
                            if p.grad is not None}, family)  # fmt: skip
    found = dict(ours.named_parameters())
    assert wanted.keys() <= found.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name].grad, grad, **close, msg=lambda m, n=name: f"{n}: {m}")
    assert {n for n, p in found.items() if p.grad is not None} == wanted.keys()


CLOSE = dict(rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_pretraining_is_that_of_transformers(family):
    """Logits, both losses and all gradients, with hidden tokens in rows of different lengths."""
    theirs = reference(family)
    ours = exact(theirs, family)
    assert ours.new == []
    tokens, segments = some_tokens(family, lengths=(12, 7, 10))
    places = torch.tensor([1, 5, 12, 14, 27, 33])  # two of each row
    targets = torch.tensor([9, 8, 7, 11, 20, 33])
    labels = None if family == "roberta" else torch.tensor([1, 0, 1])
    every = torch.full_like(tokens, -100)
    every.view(-1)[places] = targets
    given = dict(attention_mask=(tokens != pad_of(family)).long(), token_type_ids=segments)
    given["labels"] = every
    if labels is not None:
        given["next_sentence_label" if family == "bert" else "sentence_order_label"] = labels
    answer = theirs(tokens, **given)
    outputs = ours(tokens, segments, places)
    logits = answer.logits if family == "roberta" else answer.prediction_logits
    torch.testing.assert_close(outputs.logits, logits.flatten(0, 1)[places], **CLOSE)
    whole = ours(tokens, segments).logits
    real = tokens != pad_of(family)
    torch.testing.assert_close(whole[real], logits[real], **CLOSE)
    torch.testing.assert_close(ours.fill(tokens, places, segments), outputs.logits)
    if labels is not None:
        pair = answer.seq_relationship_logits if family == "bert" else answer.sop_logits
        torch.testing.assert_close(outputs.labels, pair, **CLOSE)
    total, number = ours.loss(outputs, targets, torch.tensor([2, 2, 2]), labels)
    assert number == 6
    torch.testing.assert_close(total / number, answer.loss, **CLOSE)
    (total / number).backward()
    answer.loss.backward()
    same_gradients(ours, theirs, family, **CLOSE)


def electra_pair():
    """Both networks of transformers', which share the tables, and ours with their weights."""
    theirs = reference("electra")
    its = reference("electra", "ForMaskedLM", hidden_size=8, num_attention_heads=1,
                    intermediate_size=16)  # fmt: skip
    random_weights(its, seed=1)
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        mine, other = (getattr(m.electra.embeddings, table) for m in (theirs, its))
        other.weight.data.copy_(mine.weight)
    ours = exact(theirs, "electra")
    assert all(name.startswith("generator.") for name in ours.new)
    names.load(ours, names.renamed(its.state_dict(), "electra"), "electra")
    return ours, theirs, its


def test_electra_is_two_networks_of_transformers(monkeypatch):
    """The generator's logits, the discriminator's for what it wrote, the sum of both losses, and
    the gradients of all, of which the tables get both networks'."""
    ours, theirs, its = electra_pair()
    tokens, segments = some_tokens("electra", 2)
    places = torch.tensor([1, 5, 6, 14, 20, 23])
    targets = torch.tensor([9, 8, 7, 11, 20, 33])
    guesses = torch.tensor([9, 12, 0, 11, 21, 34])  # two are right; one is padding's number
    monkeypatch.setattr(electra, "draw", lambda logits: guesses)
    outputs = ours(tokens, segments, places, targets)
    written = tokens.flatten().index_put((places,), guesses).view_as(tokens)
    replaced = torch.zeros(24, dtype=torch.long).index_put((places,), (guesses != targets).long())
    assert replaced.sum() == 4
    every = torch.full((24,), -100).index_put((places,), targets).view_as(tokens)
    generated = its(tokens, token_type_ids=segments, labels=every)
    judged = theirs(written, token_type_ids=segments, labels=replaced.view_as(tokens))
    torch.testing.assert_close(outputs.logits, generated.logits.flatten(0, 1)[places], **CLOSE)
    torch.testing.assert_close(outputs.scores, judged.logits.flatten(), **CLOSE)
    assert torch.equal(outputs.replaced.long(), replaced)
    total, number = ours.loss(outputs, targets, torch.tensor([3, 3]))
    wanted = generated.loss + 50 * judged.loss
    torch.testing.assert_close(total / number, wanted, **CLOSE)
    (total / number).backward()
    wanted.backward()
    mine = names.renamed({n: p.grad for n, p in its.named_parameters()}, "electra")
    for name, p in theirs.named_parameters():
        tied = mine.pop(f"generator.{name}") if name.endswith("embeddings.weight") else 0
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad + tied, **CLOSE)
    for name, grad in mine.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, grad, **CLOSE)
    assert len(mine) + len([*theirs.parameters()]) == len([*ours.parameters()])


@pytest.fixture
def double():
    """transformers' XLNet makes some tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("past", [0, 5])
def test_xlnet_is_that_of_transformers(double, past):
    """Both streams, an order, segments, memory, the loss and all gradients."""
    theirs = reference("xlnet", mem_len=8, use_mems_train=True, use_mems_eval=True)
    ours = exact(theirs, "xlnet", num_memory=8)
    tokens, segments = some_tokens("xlnet", 2, 9)
    ranks = torch.full_like(tokens, -1)
    places = torch.tensor([1, 4, 5, 10, 12, 17])
    ranks.view(-1)[places] = torch.tensor([2, 0, 1, 0, 2, 1])
    targets = tokens.flatten()[places]
    memory = [torch.randn(2, past, 32) for _ in range(2)] if past else None
    seen = (ranks[:, None] == -1) | (ranks[:, None] < ranks[:, :, None])
    rows, columns = places // 9, places % 9
    mapping = torch.zeros(2, 3, 9)
    mapping[rows, torch.tensor([0, 1, 2, 0, 1, 2]), columns] = 1
    answer = theirs(
        tokens,
        token_type_ids=segments,
        perm_mask=(~seen).double(),
        target_mapping=mapping,
        labels=targets.view(2, 3),
        mems=[m.transpose(0, 1) for m in memory] if past else None,
        use_mems=True,
    )
    outputs = ours(tokens, segments, places, ranks, memory)
    torch.testing.assert_close(outputs.logits, answer.logits.flatten(0, 1), **CLOSE)
    for mine, their in zip(outputs.memory, answer.mems, strict=True):
        assert mine.shape == (2, min(8, past + 9), 32)
        assert not mine.requires_grad
        torch.testing.assert_close(mine, their.transpose(0, 1), **CLOSE)
    total, number = ours.loss(outputs, targets, torch.tensor([3, 3]))
    torch.testing.assert_close(total / number, answer.loss, **CLOSE)
    (total / number).backward()
    answer.loss.backward()
    same_gradients(ours, theirs, "xlnet", **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_are_those_of_transformers(family, double):
    """Logits and gradients of three classes, for rows of different lengths."""
    theirs = reference(family, "classes")
    ours = exact(theirs, family, classes=3)
    assert ours.new == []
    tokens, segments = some_tokens(family, lengths=(12, 7, 10))
    pad = pad_of(family)
    given = tokens, segments
    if family == "xlnet":  # which pads in front, as its summary is the last token
        given = [torch.stack([r.roll(s) for r, s in zip(x, (0, 5, 2), strict=True)]) for x in given]
    answer = theirs(
        given[0], attention_mask=(given[0] != pad).long().double(), token_type_ids=given[1])  # fmt: skip
    logits = ours(tokens, segments)
    torch.testing.assert_close(logits, answer.logits, **CLOSE)
    truth = torch.tensor([0, 2, 1])
    for x in (logits, answer.logits):
        F.cross_entropy(x, truth).backward()
    same_gradients(ours, theirs, family, **CLOSE)
    last = ours.logits_proj if family == "xlnet" else ours.classifier
    last = getattr(last, "out_proj", last)
    torch.testing.assert_close(last(ours.summary(tokens, segments)), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_attention_are_those_of_transformers(family, double):
    theirs = reference(family, "Model", summary_type="first")
    ours = exact(theirs, family)
    tokens, segments = some_tokens(family, lengths=(12, 7, 10))
    real = tokens != pad_of(family)
    with torch.no_grad():
        answer = theirs(
            tokens, attention_mask=real.long().double(), token_type_ids=segments,
            output_attentions=True)  # fmt: skip
        features, maps = ours.features(tokens, segments), []
        torch.testing.assert_close(ours.features(tokens, segments, maps), features)
    torch.testing.assert_close(features[real], answer.last_hidden_state[real], **CLOSE)
    assert not features[~real].any()
    assert len(maps) == 2
    for mine, their in zip(maps, answer.attentions, strict=True):
        rows = real[:, None].expand(3, 4, 12)
        torch.testing.assert_close(mine[rows], their[rows], **CLOSE)
    if family in ("bert", "albert"):
        pooled = body(ours).pooled(features)
        torch.testing.assert_close(pooled, answer.pooler_output, **CLOSE)
