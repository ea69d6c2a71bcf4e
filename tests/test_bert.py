"""BERT and its line: sizes, parity with transformers, padding, published names, and that they
learn."""

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import count, dropped
from torch import nn

from bert import electra, names, xlnet
from bert.layers import Dropout, Rows, Sizes, attention, attention_kernel, averaged
from bert.model import FAMILIES, MODELS, Masked, Special, collate

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
    return random_weights(
        names.build({"family": family, **SMALL, **OWN.get(family, {})} | settings)
    )


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
        model = MODELS[name](dropout=0.2)
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
    layers = (m for m in model.modules() if hasattr(m, "num_heads") or hasattr(m, "r_w_bias"))
    own = not published and not name.startswith("albert")
    assert {layer.dropout for layer in layers} == ({0.0} if own else {0.2})


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
    sizes |= dict(intermediate_size=64, max_position_embeddings=16)
    sizes |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    prefix = {"bert": "Bert", "roberta": "Roberta", "albert": "Albert", "electra": "Electra",
              "xlnet": "XLNet"}[family]  # fmt: skip
    if family == "roberta":
        sizes |= dict(max_position_embeddings=18, type_vocab_size=1, pad_token_id=1,
                      layer_norm_eps=1e-5)  # fmt: skip
    if family in ("albert", "electra"):
        sizes |= dict(embedding_size=16)
    if family == "xlnet":
        sizes = dict(vocab_size=50, d_model=32, n_layer=2, n_head=4, d_inner=64, dropout=0.0)
    if kind == "classes":
        sizes["num_labels"] = 3
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
        torch.testing.assert_close(
            found[name].grad, grad, **close, msg=lambda m, n=name: f"{n}: {m}"
        )
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


@pytest.fixture
def double(monkeypatch):
    """Nothing is computed in less: neither losses, nor what transformers' XLNet knows of places."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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


def test_electra_is_two_networks_of_transformers(monkeypatch, double):
    """The generator's logits, the discriminator's for what it wrote, the sum of both losses, and
    the gradients of all, of which the tables get both networks'."""
    ours, theirs, its = electra_pair()
    theirs.electra.embeddings.word_embeddings.padding_idx = None  # or its row gets no gradient
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
    seen = (given[0] != pad).double()
    answer = theirs(given[0], attention_mask=seen, token_type_ids=given[1])
    logits = ours(tokens, segments)
    torch.testing.assert_close(logits, answer.logits, **CLOSE)
    truth = torch.tensor([0, 2, 1])
    for x in (logits, answer.logits):
        F.cross_entropy(x, truth).backward()
    same_gradients(ours, theirs, family, **CLOSE)
    last = ours.logits_proj if family == "xlnet" else ours.classifier
    last = getattr(last, "out_proj", last)
    torch.testing.assert_close(last(ours.summary(tokens, segments)), logits)
    pooled = ours.pool(ours.features(tokens, segments), tokens)
    torch.testing.assert_close(ours.answer(pooled), logits)


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


# ---------------------------------------------------------------------- published weights


def heads_of(family):
    """A head's name that pre-training has and fine-tuning hasn't."""
    return {"bert": "cls.", "roberta": "lm_head.", "albert": "predictions.",
            "electra": "discriminator_predictions.", "xlnet": "lm_loss."}[family]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_are_described_and_built_again(family):
    own = {"albert": dict(num_groups=2), "electra": dict(generator=0.5, everywhere=False),
           "xlnet": dict(num_memory=7), "bert": dict(pairs=False)}.get(family, {})  # fmt: skip
    model = small(family, **own)
    described = names.describe(model)
    assert described["family"] == family
    assert all(isinstance(v, (int, float, str, type(None))) for v in described.values())
    assert "dropout" not in described
    again = names.build(described, dropout=0.5)
    again.load_state_dict(model.state_dict())
    assert names.describe(again) == described
    shares = {m.share for m in again.modules() if isinstance(m, Dropout)}
    assert shares == {0.5}
    assert (model.pad, model.context, model.d_model, model.vocab_size) == (
        pad_of(family),
        16,
        32,
        50,
    )
    plain = {m.share for m in names.build(described).modules() if isinstance(m, Dropout)}
    assert plain == {0.0 if family == "albert" else 0.1}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_settings_of_weights_are_those_of_the_model(family):
    model = small(family, **{"num_groups": 1} if family == "albert" else {})
    state = {n: p for n, p in model.state_dict().items() if not n.startswith("generator.")}
    config = {"model_type": family, "num_hidden_layers": 2, "num_attention_heads": 4}
    assert names.family_of(state, config) == names.family_of(state, {}) == family
    found = names.settings_of(state, config, family)
    wanted = names.describe(model)
    assert found == {key: wanted[key] for key in found}
    assert {
        "vocab_size",
        "d_model",
        "num_layers",
        "num_heads",
        "d_ff",
        "pad",
        "eps",
    } <= found.keys()
    assert family == "xlnet" or found["context"] == 16
    assert names.family_of(state, {"model_type": "gpt2"}) is None
    assert names.family_of({"wte.weight": torch.zeros(2, 2)}, {}) is None


def test_old_names_and_files_without_a_prefix():
    model = small("bert")
    state = dict(model.state_dict())
    old = {
        n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): p
        for n, p in state.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(16)[None]
    old["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    assert any(n.endswith("gamma") for n in old) and any(n.endswith("beta") for n in old)
    found = names.renamed(old, "bert")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], state[n]) for n in state)
    bare = {n.removeprefix("bert."): p for n, p in state.items() if n.startswith("bert.")}
    other = small("bert")
    nn.init.zeros_(other.bert.embeddings.word_embeddings.weight)
    new = names.load(other, names.renamed(bare, "bert"), "bert")
    assert new == ["cls.predictions", "cls.predictions.transform.LayerNorm",
                   "cls.predictions.transform.dense", "cls.seq_relationship"]  # fmt: skip
    assert torch.equal(other.bert.embeddings.word_embeddings.weight,
                       model.bert.embeddings.word_embeddings.weight)  # fmt: skip


def test_a_table_that_is_there_only_as_the_last_layer():
    state = dict(small("xlnet").state_dict())
    table = state.pop("transformer.word_embedding.weight")
    found = names.renamed(state | {"lm_loss.weight": table}, "xlnet")
    assert torch.equal(found["transformer.word_embedding.weight"], table)
    state["transformer.word_embedding.weight"] = table
    with pytest.raises(ValueError, match=r"a last layer of its own \(lm_loss.weight\)"):
        names.renamed(state | {"lm_loss.weight": table + 1}, "xlnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_model_becomes_a_classifier_and_back(family):
    model, tokens = small(family), some_tokens(family)[0]
    state = {n: p.clone() for n, p in model.state_dict().items()}
    classifier = small(family, d_ff=64).classifier(3).double().eval()
    new = names.load(classifier, state, family)
    last = {"bert": ["classifier"], "albert": ["classifier"], "roberta": ["classifier.dense",
            "classifier.out_proj"], "electra": ["classifier.dense", "classifier.out_proj"],
            "xlnet": ["logits_proj", "sequence_summary.summary"]}[family]  # fmt: skip
    assert new == last
    torch.testing.assert_close(classifier.features(tokens), model.features(tokens))
    tuned = {n: p.clone() for n, p in classifier.state_dict().items()}
    again = small(family).classifier(3)
    assert names.load(again, tuned, family) == []
    other = small(family).classifier(5)  # another number of classes
    found = names.load(other, tuned, family)
    assert found == [last[0] if family in ("bert", "albert", "xlnet") else "classifier.out_proj"]
    back = small(family)
    left = names.load(back, tuned, family)
    assert left and all(f"{n}.".startswith(names.HEADS[family]) for n in left)
    assert any(n.startswith(heads_of(family)[:-1]) for n in left)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_classifier_of_a_model_without_pairs_has_a_new_pooler(family):
    model = small(family, pairs=False)
    assert not hasattr(body(model), "pooler")
    classifier = model.classifier(3)
    state = {n: p for n, p in small(family, pairs=False, d_ff=64).state_dict().items()}
    assert [n for n in names.load(classifier, state, family) if "pooler" in n]


BROKEN = [
    (
        "bert",
        dict(position_embedding_type="relative_key"),
        "position_embedding_type is relative_key",
    ),
    ("bert", dict(hidden_act="relu"), "its activation is relu, here it is the GELU"),
    ("bert", dict(is_decoder=True), "is_decoder is True, here it is False"),
    ("albert", dict(inner_group_num=2), "inner_group_num is 2, here it is 1"),
    ("albert", dict(num_hidden_layers=None), "its config.json is missing"),
    ("xlnet", dict(attn_type="uni"), "attn_type is uni, here it is bi"),
    ("xlnet", dict(ff_activation="relu"), "its activation is relu"),
]


@pytest.mark.parametrize(("family", "change", "reason"), BROKEN)
def test_other_networks_are_refused(family, change, reason):
    config = {"num_hidden_layers": 2, "num_attention_heads": 4} | change
    config = {k: v for k, v in config.items() if v is not None}
    with pytest.raises(ValueError, match=reason):
        names.settings_of(small(family).state_dict(), config, family)


def test_weights_that_do_not_fit_are_refused():
    state, model = dict(small("bert").state_dict()), small("bert", d_ff=48)
    with pytest.raises(
        ValueError, match=r"its bert.encoder.layer.0.intermediate.dense.weight doesn't"
    ):
        names.load(model, state, "bert")
    with pytest.raises(ValueError, match=r"it has bert\.strange, which no bert has"):
        names.load(small("bert"), state | {"bert.strange": torch.zeros(1)}, "bert")
    some = {n: p for n, p in state.items() if "layer.1" not in n}
    with pytest.raises(ValueError, match=r"it has no bert.encoder.layer.1"):
        names.load(small("bert"), some, "bert")
    with pytest.raises(ValueError, match=r"it is no roberta: it has no roberta.embeddings"):
        names.settings_of(state, {}, "roberta")


def test_names_of_the_hub():
    ours = {n for n in MODELS if "mini" not in n and "tiny" not in n}
    assert {key for _, key in names.PUBLISHED.values()} == ours | {"bert_mini", "bert_tiny"}
    for name, (repository, _) in names.PUBLISHED.items():
        assert repository.endswith(name) or name in ("bert-mini", "bert-tiny")


# ---------------------------------------------------------------------- properties


def test_rows():
    real = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    rows, x = Rows(real), torch.arange(12.0).view(2, 3, 2)
    assert rows.pack(x).tolist() == [[0, 1], [2, 3], [8, 9]]
    spread = rows.spread(rows.pack(x))
    assert torch.equal(spread, x * real[:, :, None])
    assert torch.equal(rows.mask, real[:, None, None])
    whole = Rows(torch.ones(2, 3).bool())
    assert whole.mask is None
    assert torch.equal(whole.spread(whole.pack(x)), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    """Features, classes, losses and gradients of rows in a batch are those of each row alone."""
    model = small(family)
    classifier = random_weights(small(family).classifier(3))
    lengths = (12, 6, 8)
    tokens, segments = some_tokens(family, lengths=lengths)
    features, classes = model.features(tokens, segments), classifier(tokens, segments)
    for row, n in enumerate(lengths):
        alone = tokens[row : row + 1, :n], segments[row : row + 1, :n]
        torch.testing.assert_close(model.features(*alone)[0], features[row, :n])
        torch.testing.assert_close(classifier(*alone)[0], classes[row])
        mean = averaged(features, tokens != model.pad)[row]
        torch.testing.assert_close(mean, features[row, :n].mean(0))
        assert not features[row, n:].any()
    if family == "electra":
        return  # it draws
    special = special_of(family)
    examples = [corrupted(family, n, seed) for seed, n in enumerate(lengths)]
    inputs, answers = collate(examples, special.pad, family)
    total, number = model.loss(model(**inputs), **answers)
    parts = []
    for example in examples:
        inputs, answers = collate([example], special.pad, family)
        parts.append(model.loss(model(**inputs), **answers))
    torch.testing.assert_close(sum(part for part, _ in parts), total)
    assert sum(n for _, n in parts) == number


def special_of(family, vocab_size=50):
    entry = FAMILIES[family]
    ids = {role: entry.specials.index(name) for role, name in entry.roles.items()}
    others = tuple(set(range(len(entry.specials))) - set(ids.values()))
    return Special(**ids, vocab_size=vocab_size, others=others)


def corrupted(family, length, seed=0, vocab_size=50):
    """An example of so many tokens, as its paper hides some of them, with a label if it has one."""
    draw, special, entry = random.Random(seed), special_of(family, vocab_size), FAMILIES[family]
    words = [draw.randrange(7, vocab_size) for _ in range(length)]
    example = entry.join(words[: length // 2], words[length // 2 :], special, length)
    assert len(example.tokens) == length
    if family in ("bert", "albert"):
        example = example._replace(label=seed % 2)
    return entry.corrupt(example, special, draw)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns_and_a_batch_can_be_cut(family, monkeypatch):
    """The loss of a batch is the sum of its parts', and has a gradient for all weights."""
    model = small(family).train()
    monkeypatch.setattr(electra, "draw", lambda logits: logits.argmax(-1))
    examples = [corrupted(family, n, seed) for seed, n in enumerate((12, 16, 9, 7))]
    grads, sums = [], []
    for cuts in ((4,), (1, 3), (2, 2)):
        model.zero_grad()
        left, total = list(examples), 0
        for cut in cuts:
            inputs, answers = collate(left[:cut], model.pad, family)
            loss, _ = model.loss(model(**inputs), **answers)
            loss.backward()
            left, total = left[cut:], total + loss.item()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        sums.append(total)
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-6)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_pair_counts_as_much_as_the_hidden_tokens(family):
    model = small(family)
    examples = [corrupted(family, n, seed) for seed, n in enumerate((16, 5))]
    inputs, answers = collate(examples, 0, family)
    assert answers["counts"].tolist() == [2, 1]
    outputs = model(**inputs)
    words = F.cross_entropy(outputs.logits, answers["targets"], reduction="none")
    pairs = F.cross_entropy(outputs.labels, torch.tensor([0, 1]), reduction="none")
    total, number = model.loss(outputs, **answers)
    assert number == 3
    torch.testing.assert_close(total, words.sum() + 2 * pairs[0] + pairs[1])
    figures = model.figures(outputs, **answers)
    right = (outputs.labels.argmax(1) == torch.tensor([0, 1])).sum()
    name = "pair" if family == "bert" else "order"
    torch.testing.assert_close(figures[f"{name}_accuracy"], torch.tensor([right, 2]).float())
    torch.testing.assert_close(
        figures["masked_loss"].double(), torch.stack([words.detach().sum(), 3 * torch.ones(())])
    )
    assert figures[f"{name}_loss"][0].item() == pytest.approx(pairs.sum().item(), rel=1e-5)
    with pytest.raises(ValueError, match="the model has a head for labels, the examples none"):
        model.loss(outputs, answers["targets"], answers["counts"])
    alone = small(family, pairs=False)
    with pytest.raises(ValueError, match="examples have labels, the model none"):
        alone.loss(alone(**inputs), **answers)


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_discriminator_counts_as_much_as_the_hidden_tokens(everywhere, monkeypatch):
    model = small("electra", everywhere=everywhere, weight=3.0)
    monkeypatch.setattr(electra, "draw", lambda logits: torch.tensor([7, 8, 9, 10]))
    masked = [
        Masked([2, 4, 11, 12, 13, 4, 3, 14], [0] * 8, None, [1, 3, 5], [7, 12, 20]),
        Masked([2, 15, 16, 3], [0] * 4, None, [2], [16]),
    ]
    inputs, answers = collate(masked, 0, "electra")
    outputs = model(**inputs)
    assert outputs.replaced.tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0]  # 7 was guessed
    assert outputs.chosen.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0]
    each = F.binary_cross_entropy_with_logits(outputs.scores, outputs.replaced.double(),
                                              reduction="none")  # fmt: skip
    words = F.cross_entropy(outputs.logits, answers["targets"], reduction="sum")
    total, number = model.loss(outputs, **answers)
    assert number == 4
    wanted = 3 * each[:8].mean() + each[8:].mean() if everywhere else each[outputs.chosen].sum()
    torch.testing.assert_close(total, words + 3 * wanted, rtol=1e-6, atol=1e-6)
    figures = model.figures(outputs, **answers)
    guess = outputs.scores > 0
    found = torch.stack([(guess & outputs.replaced).sum(), torch.tensor(3)]).float()
    torch.testing.assert_close(figures["replaced_found"], found)
    torch.testing.assert_close(figures["replaced_share"], torch.tensor([3.0, 12.0]))
    right = (guess == outputs.replaced).sum().float()
    torch.testing.assert_close(
        figures["replaced_accuracy"], torch.stack([right, torch.tensor(12.0)])
    )
    assert figures["replaced_loss"][0].item() == pytest.approx(each.sum().item(), rel=1e-5)


def test_what_the_generator_draws():
    """Words by their softmax; and the discriminator's loss gives the generator's layers nothing."""
    torch.manual_seed(0)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = electra.draw(shares.log().repeat(40_000, 1).requires_grad_())
    assert not drawn.requires_grad
    found = drawn.bincount(minlength=4) / 40_000
    assert (found - shares).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    model = small("electra")
    inputs, _ = collate([corrupted("electra", 12)], 0, "electra")
    outputs = model(**inputs)
    outputs.scores.sum().backward()
    tied = {id(p) for p in model.electra.parameters()}
    assert all(p.grad is None for p in model.generator.parameters() if id(p) not in tied)
    assert all(p.grad is not None for p in model.electra.parameters())
    tables = [n for n, p in model.generator.electra.named_parameters() if id(p) in tied]
    assert tables == [f"embeddings.{kind}_embeddings.weight" for kind in
                      ("word", "position", "token_type")]  # fmt: skip
    assert model.detect(inputs["tokens"]).shape == (1, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hidden_token_is_not_seen(family):
    """What fills a place doesn't depend on what stood there: it is [MASK], or out of sight."""
    model = small(family)
    tokens, segments = some_tokens(family, 2)
    places = torch.tensor([3, 7, 15])
    if family == "xlnet":
        other = tokens.flatten().index_put((places,), torch.tensor([9, 9, 9])).view_as(tokens)
        assert not torch.equal(other, tokens)
        found = model.fill(tokens, places, segments)
        torch.testing.assert_close(model.fill(other, places, segments), found)
        turned = places.flip(0)
        torch.testing.assert_close(model.fill(tokens, turned, segments), found.flip(0))
    shape = model.fill(tokens, places, segments).shape
    assert shape == (3, 50)
    if family not in ("electra", "xlnet"):
        torch.testing.assert_close(
            model.fill(tokens, places, segments),
            model(tokens, segments).logits.flatten(0, 1)[places],
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_sees_both_sides(family):
    model = small(family)
    tokens, segments = some_tokens(family, 1, 8)
    before = model.features(tokens, segments)
    for changed in (0, 4, 7):
        other = tokens.clone()
        other[0, changed] = 7 + (tokens[0, changed] - 6) % 43
        after = model.features(other, segments)
        assert ((after - before).abs().amax(2) > 1e-6).all()
    if family != "roberta":
        assert not torch.allclose(model.features(tokens), before)  # segments matter
        torch.testing.assert_close(model.features(tokens, 0 * segments), model.features(tokens))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_more_tokens_than_the_context(family):
    with pytest.raises(ValueError, match="17 tokens are more than the context, 16"):
        small(family).features(some_tokens(family, 1, 17)[0])


def test_xlnet_reads_more_than_its_context():
    assert small("xlnet").features(some_tokens("xlnet", 1, 40)[0]).shape == (1, 40, 32)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="3 heads can't share 32 dimensions"):
        Sizes(50, 32, 2, 3, 64)
    with pytest.raises(ValueError, match=r"0\.03 of 32 dimensions has no whole heads"):
        small("electra", generator=0.03)
    with pytest.raises(ValueError, match="2 layers can't be shared by 3 groups"):
        small("albert", num_groups=3)


def test_positions_of_roberta_begin_behind_that_of_padding():
    model = small("roberta")
    seen = []
    table = model.roberta.embeddings.position_embeddings
    table.register_forward_hook(lambda module, given, out: seen.append(given[0].tolist()))
    model.features(torch.tensor([[7, 8, 9, 1], [1, 7, 8, 1]]))
    assert seen == [[2, 3, 4, 2, 3]]
    assert table.num_embeddings == 18


def test_layers_of_albert_are_shared():
    model = small("albert", num_layers=4, num_groups=2)
    seen = []
    for number, group in enumerate(model.albert.encoder.albert_layer_groups):
        group.register_forward_hook(lambda *_, n=number: seen.append(n))
    model.features(some_tokens()[0])
    assert seen == [0, 0, 1, 1]


# ---------------------------------------------------------------------- XLNet's orders


def brute_force(model, tokens, segments, order):
    """The log probability of each token in an order, Sec. 2.3 by loops over tokens: nothing is
    masked, each looks up those it may see; distances are looked at one by one."""
    body, (width, heads, d) = model.transformer, model.transformer.layer[0].rel_attn.q.shape
    turn = {place: number for number, place in enumerate(order)}
    content = [body.word_embedding.weight[token] for token in tokens]
    guess = [body.mask_emb[0, 0] for _ in tokens]
    rates = [10_000 ** (-2 * i / width) for i in range(width // 2)]

    def attend(layer, x, place, seen):
        a = layer.rel_attn
        found = []
        for head in range(heads):
            query, scores = x @ a.q[:, head], []
            for j in seen:
                angles = torch.tensor([(place - j) * rate for rate in rates])
                far = torch.cat([angles.sin(), angles.cos()]).double() @ a.r[:, head]
                segment = a.seg_embed[int(segments[place] != segments[j]), head]
                scores.append((query + a.r_w_bias[head]) @ (content[j] @ a.k[:, head])
                              + (query + a.r_r_bias[head]) @ far
                              + (query + a.r_s_bias[head]) @ segment)  # fmt: skip
            values = [content[j] @ a.v[:, head] for j in seen]
            if seen:
                weights = (torch.stack(scores) / math.sqrt(d)).softmax(0)
                found.append((weights[:, None] * torch.stack(values)).sum(0))
            else:
                found.append(torch.zeros(d).double())
        out = sum(found[head] @ a.o[:, head].T for head in range(heads))
        y = a.layer_norm(x + out)
        return layer.ff.layer_norm(y + layer.ff.layer_2(F.gelu(layer.ff.layer_1(y))))

    for layer in body.layer:
        before = {i: [j for j in turn if turn[j] < turn[i]] for i in turn}
        new_guess = [attend(layer, guess[i], i, before[i]) for i in range(len(tokens))]
        content = [attend(layer, content[i], i, [*before[i], i]) for i in range(len(tokens))]
        guess = new_guess
    logits = torch.stack(guess) @ body.word_embedding.weight.T + model.lm_loss.bias
    return logits.log_softmax(-1)[range(len(tokens)), tokens]


def all_orders(model, tokens, segments):
    """Log probabilities (orders, T) of a text in each of its orders, by two streams."""
    length = len(tokens)
    orders = list(itertools.permutations(range(length)))
    ranks = torch.tensor([[order.index(place) for place in range(length)] for order in orders])
    rows = torch.tensor([tokens] * len(orders)), torch.tensor([segments] * len(orders))
    logits = model(*rows, torch.arange(rows[0].numel()), ranks).logits
    found = logits.log_softmax(-1).gather(1, rows[0].flatten()[:, None])
    return orders, found.view(len(orders), length)


def test_two_streams_are_the_sum_over_orders(double):
    """The expectation of Eq. 3 over all factorisation orders of a short text, token by token."""
    model = small("xlnet", num_heads=2, d_model=8, d_ff=16)
    tokens, segments = [9, 30, 9, 12], [0, 0, 1, 2]
    orders, found = all_orders(model, tokens, segments)
    wanted = torch.stack([brute_force(model, tokens, segments, order) for order in orders])
    torch.testing.assert_close(found, wanted)
    assert found.sum(1).std() > 0.01  # the orders differ
    total, number = 0, 0
    for order in orders:
        ranks = [order.index(place) for place in range(4)]
        masked = Masked(tokens, segments, None, [0, 1, 2, 3], tokens, ranks)
        inputs, answers = collate([masked], 5, "xlnet")
        loss, count = model.loss(model(**inputs), **answers)
        total, number = total + loss, number + count
    torch.testing.assert_close(total / number, -wanted.mean())


def test_each_order_is_a_distribution_over_texts():
    """The probabilities of all texts sum to 1, which they don't if a token sees itself."""
    model = small("xlnet", vocab_size=4, pad=99)
    texts = list(itertools.product(range(4), repeat=3))
    sums = torch.stack([all_orders(model, list(text), [0, 0, 1])[1].sum(1) for text in texts])
    torch.testing.assert_close(sums.exp().sum(0), torch.ones(6).double())


def test_who_sees_whom_in_an_order():
    """A target sees those before it and all that aren't predicted; these see no target."""
    model = small("xlnet")
    tokens, segments = some_tokens("xlnet", 1, 6)
    places, ranks = torch.tensor([1, 3, 4]), torch.tensor([[-1, 2, -1, 0, 1, -1]])
    table = model.transformer.word_embedding
    seen = []
    table.register_forward_hook(lambda module, given, out: seen.append(out.requires_grad_()) or out)
    logits = model(tokens, segments, places, ranks).logits
    sees = []
    for row in logits:
        (grad,) = torch.autograd.grad(row.sum(), seen[0], retain_graph=True)
        sees.append(grad[0].abs().sum(1).nonzero().flatten().tolist())
    assert sees == [[0, 2, 3, 4, 5], [0, 2, 5], [0, 2, 3, 5]]


def test_memory_is_what_came_before():
    """With memory the tokens of the batch before are seen, and no gradient goes there."""
    model = small("xlnet", num_memory=6)
    tokens, segments = some_tokens("xlnet", 2, 8)
    ranks = torch.full_like(tokens, -1)
    ranks[:, 3] = 0
    places = torch.tensor([3, 11])
    first = model(tokens, 0 * segments, places, ranks)
    assert [m.shape for m in first.memory] == [(2, 6, 32)] * 2
    other = model(tokens.flip(1), 0 * segments, places, ranks)
    after, without = (model(tokens, 0 * segments, places, ranks, m) for m in (first.memory, None))
    assert not torch.allclose(after.logits, without.logits)
    assert not torch.allclose(
        after.logits, model(tokens, 0 * segments, places, ranks, other.memory).logits
    )
    torch.testing.assert_close(after.memory[0], model.transformer.word_embedding(tokens)[:, 2:])
    assert small("xlnet")(tokens, segments, places, ranks).memory is None


def test_shifted_scores():
    scores = torch.randn(2, 3, 4, 4 + 4 + 5)  # T 4, M 5
    found = xlnet.shifted(scores, 4, 9, None)
    for i in range(4):
        for j in range(9):
            assert torch.equal(found[:, :, i, j], scores[:, :, i, 4 - i + j])
    places = torch.tensor([[2, 0], [1, 3]])
    chosen = torch.stack([scores[b, :, places[b]] for b in range(2)])
    found_there = xlnet.shifted(chosen, 4, 9, places)
    wanted = torch.stack([found[b, :, places[b]] for b in range(2)])
    assert torch.equal(found_there, wanted)


# ---------------------------------------------------------------------- layers


def test_attention_by_brute_force():
    q, k, v = (torch.randn(2, 1, 5, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()[:, None, None]
    found, weights = attention(q, k, v, mask)
    torch.testing.assert_close(attention_kernel(q, k, v, mask), found)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 1, 5).double())
    for b in range(2):
        near = mask[b, 0, 0].nonzero().flatten().tolist()
        for i in range(5):
            scores = [math.exp(float(q[b, 0, i] @ k[b, 0, j]) / 2) for j in near]
            wanted = sum(s * v[b, 0, j] for s, j in zip(scores, near, strict=True)) / sum(scores)
            torch.testing.assert_close(found[b, 0, i], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_in_other_precisions_and_with_dropout(dtype):
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 20, 8) for _ in range(3)]
    mask = (torch.arange(20) < 15)[None, None, None]
    wanted, _ = attention(*parts, mask)
    some = [x.to(dtype) for x in parts]
    found = attention_kernel(*some, mask)
    assert found.dtype == dtype
    close = dict(rtol=0.03, atol=0.03) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found.float(), wanted, **close)
    some[2] = torch.ones_like(some[2])
    ones = torch.stack([attention_kernel(*some, mask, 0.5).float() for _ in range(60)])
    assert ones.std() > 0.1
    assert ones.mean() == pytest.approx(1, abs=0.02)
    tiny = attention_kernel(*some, mask, 1e-9)  # a share of none
    torch.testing.assert_close(tiny.float(), torch.ones_like(wanted), **close)


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
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    assert not torch.equal(drop(x), y)
    assert torch.equal(drop.eval()(x), x)
    assert Dropout(0.0).train()(x) is x


WHERE = {  # of two layers: on the embeddings, and twice in each
    "bert": {(27, 32): 5},
    "roberta": {(27, 32): 5},
    "albert": {(27, 16): 1, (27, 32): 4, (3, 32): 1},  # before the label
    "electra": {(27, 16): 2, (27, 32): 4, (27, 8): 4},
    "xlnet": {(1, 24, 32): 1, (3, 12, 32): 1 + 2, (3, 2, 32): 1 + 4 + 1, (3, 2, 64): 2,
              (3, 12, 64): 1},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_where_dropout_falls(family):
    """On real tokens alone, but for XLNet's; and in training on attention."""
    model = small(family, dropout=0.5, attention_dropout=0.0)
    lengths = (12, 6, 9)
    inputs, _ = collate([corrupted(family, n, seed) for seed, n in enumerate(lengths)],
                        model.pad, family)  # fmt: skip
    ordered = [inputs[key] for key in ("tokens", "segments", "places", "targets", "ranks")
               if key in inputs]  # fmt: skip
    assert dropped(model, *ordered) == WHERE[family]
    classifier = model.classifier(3, dropout=0.5)
    pooled = 2 if family in ("roberta", "electra") else 1
    assert dropped(classifier.double(), inputs["tokens"])[(3, 32)] == pooled
    attending = small(family, attention_dropout=0.5)
    x = inputs["tokens"], inputs["segments"]
    assert not torch.equal(attending.train().features(*x), attending.features(*x))
    assert torch.equal(attending.eval().features(*x), attending.features(*x))


def test_attention_dropout_is_dropout_unless_given():
    """Also of a network that is built from its description, as when a run goes on."""
    assert Sizes(50, 32, 2, 4, 64, dropout=0.3).weights_dropout == 0.3
    assert Sizes(50, 32, 2, 4, 64, attention_dropout=0.0).weights_dropout == 0.0
    for given, wanted in ((None, 0.3), (0.0, 0.0)):
        network = names.describe(small("bert", attention_dropout=given))
        again = names.build(network, dropout=0.3)
        assert again.bert.encoder.layer[0].attention.self.dropout == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_first_weights(family):
    torch.manual_seed(0)
    model = MODELS[f"{family}_tiny"](500)
    for name, p in model.named_parameters():
        if name.lower().endswith("norm.weight"):
            assert (p == 1).all(), name
        elif name.endswith("bias") and "rel_attn.r_" not in name:
            assert not p.any(), name
        else:
            near = 4 / (2 * p.numel()) ** 0.5
            assert p.std().item() == pytest.approx(0.02, rel=max(near, 0.05)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_on_a_cpu_is_near_fp32(family, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(electra, "draw", lambda logits: inputs["targets"].roll(1))
    model, grads = MODELS[f"{family}_tiny"](50, dropout=0.0), []
    inputs, answers = collate([corrupted(family, n, n) for n in (32, 25, 30)], model.pad, family)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, number = model.loss(model(**inputs), **answers)
        assert loss.dtype == torch.float32
        (loss / number).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert F.cosine_similarity(*grads, dim=0) > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_one_batch_by_heart(family):
    torch.manual_seed(0)
    sizes = dict(d_model=64, num_layers=2, num_heads=2, d_ff=128, dropout=0.0)
    model = MODELS[f"{family}_tiny"](50, **sizes)
    inputs, answers = collate([corrupted(family, 24, n) for n in range(6)], model.pad, family)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(70):
        outputs = model(**inputs)
        loss, number = model.loss(outputs, **answers)
        (loss / number).backward()
        optimizer.step()
        optimizer.zero_grad()
    figures = model.eval().figures(model(**inputs), **answers)
    shares = {name: (total / n).item() for name, (total, n) in figures.items()}
    assert shares["masked_accuracy"] == 1
    assert shares["masked_loss"] < 0.1
    if family in ("bert", "albert"):
        assert shares["pair_accuracy" if family == "bert" else "order_accuracy"] == 1
    classifier = model.classifier(3, dropout=0.0).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
    truth = torch.arange(6) % 3
    for _ in range(60):
        loss = F.cross_entropy(classifier(inputs["tokens"], inputs["segments"]), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
