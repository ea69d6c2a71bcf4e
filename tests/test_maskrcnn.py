"""Mask R-CNN's model: counts, parts and whole equal to torchvision's, weights, learning."""

import math
import types

import pytest
import torch
import torchvision
from helpers import perturb, structure
from torch import nn
from torchvision.models.detection import _utils as theirs_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn import heads, loading, proposals
from maskrcnn.model import (
    MODELS,
    RCNN,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_small,
    maskrcnn_resnet50_fpn,
    maskrcnn_small,
)
from maskrcnn.pyramid import Backbone, FrozenBatchNorm
from maskrcnn.resizing import paste
from resnet.model import resnet18

SIZES = ((16,), (24,), (32,), (48,), (64,))


def total(model, learnt=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not learnt)


def test_exact_parameter_counts():
    with torch.device("meta"):
        assert total(maskrcnn_resnet50_fpn()) == 44_401_393
        assert total(maskrcnn_resnet50_fpn(), learnt=True) == 44_401_393
        assert total(maskrcnn_resnet50_fpn(trainable=3), learnt=True) == 44_178_993
        assert total(maskrcnn_resnet50_fpn(frozen=False)) == 44_454_513
        assert total(fasterrcnn_resnet50_fpn()) == 41_755_286
        assert total(fasterrcnn_resnet50_fpn(frozen=False)) == 41_808_406
        model = maskrcnn_resnet50_fpn(frozen=False)
        parts = [model.backbone, model.rpn, model.roi_heads.box_head, model.roi_heads.box_predictor]
        parts += [model.roi_heads.mask_head, model.roi_heads.mask_predictor]
        counts = [26_852_416, 593_935, 13_895_680, 466_375, 2_360_320, 285_787]
        assert list(map(total, parts)) == counts
        assert total(maskrcnn_small(11)) == 1_220_329
        assert total(fasterrcnn_small(11)) == 1_168_958


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_large_ones_are_built_as_torchvisions(name, frozen):
    """Names and shapes, and how convolutions and norms are set."""
    kind = "MaskRCNN" if name.startswith("mask") else "FasterRCNN"
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5
        )
        whole = getattr(torchvision.models.detection, kind)(backbone, 7)
        ours = MODELS[name](7, frozen=frozen)
    entries, layers = structure(ours)
    wanted, others = structure(whole)
    assert list(entries) == list(wanted)
    assert entries == wanted
    assert layers == others
    assert [p.requires_grad for p in ours.parameters()] == [True] * len(list(whole.parameters()))
    rpn, box = whole.rpn, whole.roi_heads
    assert (ours.rpn.iou, ours.rpn.number, ours.rpn.share) == (rpn.nms_thresh, 256, 0.5)
    assert ours.rpn.before == (rpn._pre_nms_top_n["training"], rpn._pre_nms_top_n["testing"])
    assert ours.rpn.after == (rpn._post_nms_top_n["training"], rpn._post_nms_top_n["testing"])
    own = ours.roi_heads
    assert (own.threshold, own.iou, own.most) == (
        box.score_thresh, box.nms_thresh, box.detections_per_img)  # fmt: skip
    assert (own.number, own.share) == (512, 0.25)
    levels = ((32,), (64,), (128,), (256,), (512,))
    cells = AnchorGenerator(levels, ((0.5, 1.0, 2.0),) * 5).cell_anchors
    for mine, theirs in zip(proposals.RegionProposals(8).cells, cells, strict=True):
        torch.testing.assert_close(mine, theirs)


# ---------------------------------------------------------------------- parts


def random_boxes(count, side=100.0, least=1.0):
    corner = torch.rand(count, 2, dtype=torch.float64) * side * 0.8 - side * 0.1
    return torch.cat([corner, corner + least + torch.rand(count, 2).double() * side * 0.6], 1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_roi_align_is_torchvisions(aligned, samples):
    """Also of regions outside the map, tiny ones, and of an image without any; and its gradient."""
    x = torch.randn(3, 4, 13, 17, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(30)
    boxes[0], boxes[1] = torch.tensor([5.0, 5, 5.1, 5.2]), torch.tensor([-50.0, -50, -20, -9])
    number = torch.randint(0, 2, (30, 1)) * 2.0  # none of image 1
    regions = torch.cat([number, boxes], 1)
    ours = heads.align(x, regions, 5, 0.25, samples, aligned)
    theirs = torchvision.ops.roi_align(x, regions, 5, 0.25, samples, aligned)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert heads.align(x, regions[:0], 5, 0.25).shape == (0, 4, 5, 5)


def test_roi_pool_is_torchvisions():
    """Also of regions that reach out of the map, tiny ones, and turned ones; and its gradient."""
    x = torch.randn(3, 4, 13, 17, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(30)
    boxes[0], boxes[1] = torch.tensor([5.0, 5, 5.1, 5.2]), torch.tensor([-50.0, -50, -20, -9])
    boxes[2] = torch.tensor([30.0, 30, 20, 10])
    regions = torch.cat([torch.randint(0, 2, (30, 1)) * 2.0, boxes], 1)
    ours = heads.pool(x, regions, 5, 0.25)
    theirs = torchvision.ops.roi_pool(x, regions, 5, 0.25)
    torch.testing.assert_close(ours, theirs)
    assert (ours[1] == 0).all() and (ours != 0).float().mean() > 0.2
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert heads.pool(x, regions[:0], 5, 0.25).shape == (0, 4, 5, 5)


def test_suppression_is_torchvisions():
    boxes, scores = random_boxes(200), torch.rand(200, dtype=torch.float64)
    for iou in (0.1, 0.3, 0.5):
        kept = proposals.nms(boxes, scores, iou)
        assert kept.tolist() == torchvision.ops.nms(boxes, scores, iou).tolist()
        assert 1 < len(kept) < 200
    assert len(proposals.nms(boxes[:0], scores[:0], 0.5)) == 0


def test_boxes_are_coded_as_torchvisions():
    boxes, anchors = random_boxes(50), random_boxes(50)
    for weights in ((1.0, 1.0, 1.0, 1.0), heads.BOX_WEIGHTS):
        coder = theirs_utils.BoxCoder(weights)
        moves = proposals.encode(boxes, anchors, weights)
        torch.testing.assert_close(moves, coder.encode_single(boxes, anchors))
        torch.testing.assert_close(proposals.decode(moves, anchors, weights), boxes)
        wild = torch.randn(50, 4, dtype=torch.float64) * 30  # some grow beyond all bounds
        found = proposals.decode(wild, anchors, weights)
        torch.testing.assert_close(found, coder.decode_single(wild, anchors))
        assert found.isfinite().all()
    torch.testing.assert_close(
        proposals.box_iou(boxes, anchors), torchvision.ops.box_iou(boxes, anchors)
    )
    image = (40, 60)
    clipped = torchvision.ops.clip_boxes_to_image(boxes, image)
    torch.testing.assert_close(proposals.clip(boxes, image), clipped)
    assert proposals.not_tiny(clipped, 5.0).tolist() == (
        torchvision.ops.remove_small_boxes(clipped, 5.0).tolist()
    )


def test_anchors_are_torchvisions():
    maps = [torch.zeros(2, 1, 24, 40), torch.zeros(2, 1, 12, 20), torch.zeros(2, 1, 3, 5)]
    sizes, ratios = ((13,), (24, 31), (64,)), (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, (ratios,) * 3)
    image = ImageList(torch.zeros(2, 3, 96, 160), [(96, 160), (90, 151)])
    cells = [proposals.anchors_of(some, ratios) for some in sizes]
    anchors, counts = proposals.all_anchors(maps, (96, 160), cells)
    torch.testing.assert_close(anchors, generator(image, maps)[0])
    assert counts == [24 * 40 * 3, 12 * 20 * 6, 3 * 5 * 3]


def test_boxes_are_matched_as_torchvisions():
    iou = torch.rand(5, 400)
    iou[:, 7] = iou[:, 8]  # equal
    iou[4] *= 0.2  # one that nothing overlaps much
    iou[:, 3] = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.25])  # and what overlaps it most
    for high, low, rescue in ((0.7, 0.3, True), (0.5, 0.5, False)):
        matcher = theirs_utils.Matcher(high, low, allow_low_quality_matches=rescue)
        assert proposals.match(iou, high, low, rescue).tolist() == matcher(iou).tolist()


def test_samples_are_torchvisions():
    labels = torch.randint(-1, 3, (300,))
    sampler = theirs_utils.BalancedPositiveNegativeSampler(64, 0.25)
    for some in (labels, labels.clamp(max=0), labels.clamp(min=1), labels[:10]):
        torch.manual_seed(5)
        positive, negative = proposals.sample(some, 64, 0.25)
        torch.manual_seed(5)
        (theirs,), (others,) = sampler([some])
        assert sorted(positive.tolist()) == theirs.nonzero()[:, 0].tolist()
        assert sorted(negative.tolist()) == others.nonzero()[:, 0].tolist()


def test_frozen_norms_are_torchvisions():
    theirs, ours = FrozenBatchNorm2d(6).double(), FrozenBatchNorm(6).double()
    perturb(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    trained = perturb(nn.BatchNorm2d(6).double())
    ours.load_state_dict(trained.state_dict())  # which counts its batches, too
    torch.testing.assert_close(ours(x), trained.eval()(x))
    assert not list(ours.parameters())


def test_levels_by_size():
    """Sec. 4.2 of the pyramid's paper: 224 pixels to the fourth map, 112 to the third."""
    pool, scales = heads.RegionPool(), [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    sides = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert pool.level_of(boxes, scales).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", ["align", "pool"])
def test_regions_are_cut_from_their_levels(kind):
    """As torchvision's pooling of several maps; RoIPool as written out, on the level it chooses."""
    maps = [torch.randn(2, 3, 64 // 2**k, 96 // 2**k, dtype=torch.float64) for k in range(4)]
    boxes = [random_boxes(9, 350.0), random_boxes(7, 200.0)]
    image = (256, 384)
    found = heads.RegionPool(kind)(maps, boxes, image, 7)
    if kind == "align":
        pooler = torchvision.ops.MultiScaleRoIAlign(list("0123"), 7, 2)
        wanted = pooler(dict(zip("0123", maps, strict=True)), boxes, [image, image])
        torch.testing.assert_close(found, wanted)
        return
    numbers = [torch.full((len(b), 1), float(i)) for i, b in enumerate(boxes)]
    regions = torch.cat([torch.cat(numbers).double(), torch.cat(boxes)], 1)
    levels = torchvision.ops.poolers.LevelMapper(2, 5)(boxes)
    assert len(levels.unique()) > 1
    for region, level, one in zip(regions, levels.tolist(), found, strict=True):
        wanted = heads.pool(maps[level], region[None], 7, 0.25 / 2**level)
        torch.testing.assert_close(one[None], wanted)


def test_small_maps_learn_through_the_products(monkeypatch):
    """Which of the two ways computes RoIAlign changes nothing."""
    maps = [torch.randn(2, 3, 24 // 2**k, 24 // 2**k).requires_grad_() for k in range(3)]
    boxes = [torch.tensor([[5.0, 5, 5 + side, 9 + side] for side in sides])
             for sides in ((8, 30, 70, 20), (60, 13, 85, 35, 9))]  # fmt: skip
    pool, found = heads.RegionPool(side=56.0), []
    for cells in (0, 1024):
        monkeypatch.setattr(heads, "SMALL_MAP", cells)
        with torch.autocast("cpu", torch.bfloat16):  # in full precision all the same
            out = pool(maps, boxes, (96, 96), 7)
        found.append([out, *torch.autograd.grad(out.square().sum(), maps)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_losses_of_masks():
    logits, labels = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.tensor([1, 3, 1])
    truth = torch.rand(3, 6, 6, dtype=torch.float64)
    own = torch.stack([logits[i, k] for i, k in enumerate(labels)])
    p = own.sigmoid()
    wanted = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    torch.testing.assert_close(heads.mask_loss(logits, labels, truth), wanted)
    torch.testing.assert_close(heads.mask_probabilities(logits, labels), p)
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    q = torch.stack([shares[i, k] for i, k in enumerate(labels)])
    torch.testing.assert_close(heads.mask_probabilities(logits, labels, "softmax"), q)
    wanted = -(truth * q.log() + (1 - truth) * shares[:, 0].log()).mean()
    torch.testing.assert_close(heads.mask_loss(logits, labels, truth, "softmax"), wanted)
    assert heads.mask_loss(logits[:0], labels[:0], truth[:0]) == 0  # and not nan


# ---------------------------------------------------------------------- the whole


def pair(masks=True, frozen=False, num_classes=5, **settings):
    """The same network twice, ours and torchvision's: ResNet-18, small pictures, float64."""
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=5
    )
    kind = (
        torchvision.models.detection.MaskRCNN if masks else torchvision.models.detection.FasterRCNN
    )
    sizes = dict(min_size=64, max_size=96) | settings
    theirs = kind(
        backbone,
        num_classes,
        rpn_anchor_generator=AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=60,
        rpn_pre_nms_top_n_test=40,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=30,
        box_batch_size_per_image=24,
        box_detections_per_img=20,
        **sizes,
    )
    rpn = proposals.RegionProposals(256, SIZES, before=(60, 40), after=(50, 30))
    parts = heads.RegionHeads(
        256, num_classes, masks="sigmoid" if masks else None, number=24, most=20
    )
    ours = RCNN(Backbone(resnet18(1), 256, 4, frozen), rpn, parts, **sizes)
    perturb(theirs.double())
    with torch.no_grad():  # random moves of pixels, not of whole images
        theirs.rpn.head.bbox_pred.bias *= 0.3
    ours.double().load_state_dict(theirs.state_dict())
    return ours, theirs


def scene(masks=True):
    """Images of odd sizes: two objects, none, and a tiny one."""
    images = [torch.rand(3, *size, dtype=torch.float64) for size in ((61, 90), (77, 70), (40, 66))]
    boxes = [[[10.0, 8, 60, 51], [30, 4, 44, 20]], [], [[20.2, 11.7, 21.5, 12.9]]]
    targets = []
    for image, some, labels in zip(images, boxes, ([1, 4], [], [2]), strict=True):
        target = {"boxes": torch.tensor(some, dtype=torch.float64).view(-1, 4)}
        target["labels"] = torch.tensor(labels, dtype=torch.int64)
        if masks:
            target["masks"] = torch.zeros(len(labels), *image.shape[1:], dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], some, strict=True):
                mask[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = 1
                mask[int(top) :: 3, int(left) :: 2] = 0
        targets.append(target)
    return images, targets


def close(ours, theirs, key):
    """Equal losses; torchvision sums up this one in single precision, whatever its inputs are."""
    rtol = 1e-5 if key == "loss_objectness" else 1e-9
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=rtol, atol=1e-9, msg=key)


@pytest.mark.parametrize(("masks", "frozen"), [(True, False), (True, True), (False, True)])
def test_training_is_torchvisions(masks, frozen):
    """The five losses and all gradients, with samplers seeded alike."""
    ours, theirs = pair(masks, frozen)
    images, targets = scene(masks)
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        found = model.train()(images, [dict(target) for target in targets])
        sum(found.values()).backward()
        losses.append(found)
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 4 + masks
    for key, value in losses[1].items():
        assert value > 1e-4, key
        close(losses[0][key], value, key)
    wanted = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        atol = 1e-7 * wanted[name].grad.abs().max().item() + 1e-12
        torch.testing.assert_close(p.grad, wanted[name].grad, rtol=1e-6, atol=atol, msg=name)


def test_training_without_any_object_is_torchvisions():
    ours, theirs = pair()
    images = scene()[0][:1]
    target = {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0).long(),
              "masks": torch.zeros(0, 61, 90).byte()}  # fmt: skip
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        found.append(model.train()(images, [dict(target)]))
    for key, value in found[1].items():
        close(found[0][key], value, key)
    assert found[0]["loss_mask"] == found[0]["loss_box_reg"] == found[0]["loss_rpn_box_reg"] == 0
    sum(found[0].values()).backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("masks", [True, False])
def test_answers_are_torchvisions(masks):
    """Boxes, scores, labels and masks, in the pixels of images of odd sizes, and proposals."""
    ours, theirs = pair(masks)
    images = scene()[0]
    with torch.no_grad():
        found, wanted = ours.eval()(images), theirs.eval()(images)
        listed, _ = theirs.transform(images)
        features = theirs.backbone(listed.tensors)
        boxes, _ = theirs.rpn(listed, features)
    assert sum(len(one["boxes"]) for one in wanted) > 20
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(one[key], value, rtol=1e-6, atol=1e-8, msg=key)
    scales = [(image.shape[2] / w, image.shape[1] / h)
              for image, (h, w) in zip(images, listed.image_sizes, strict=True)]  # fmt: skip
    for (own, scores), other, (across, down) in zip(
        ours.propose(images), boxes, scales, strict=True
    ):
        wanted_boxes = other * torch.tensor([across, down] * 2)
        torch.testing.assert_close(own, wanted_boxes, rtol=1e-6, atol=1e-6)
        assert (scores.diff() <= 0).all()


def test_several_sizes_are_drawn_as_torchvisions():
    ours, theirs = pair(min_size=(48, 56, 64))
    images, targets = scene()
    found = []
    for model in (ours, theirs):
        torch.manual_seed(4)
        found.append(model.train()(images, [dict(target) for target in targets]))
    for key, value in found[1].items():
        close(found[0][key], value, key)
    assert {ours.scaled_size(64, 96)[0] for _ in range(40)} == {48, 56, 64}
    assert ours.eval().scaled_size(64, 96)[0] == 64  # the last


def test_far_padding_changes_no_stride():
    """Small images padded to far larger ones, and strips that would scale to no pixel at all."""
    ours, _ = pair()
    ours.eval()
    small, large = torch.rand(3, 33, 33).double(), torch.rand(3, 60, 90).double()
    with torch.no_grad():
        assert len(ours([small])[0]["boxes"]) and len(ours([small, large])) == 2
    padded, sizes, _ = ours.prepare([small, torch.rand(3, 3, 500).double()], None)
    assert sizes == [(64, 64), (1, 96)]  # a strip keeps a row
    assert padded.shape == (2, 3, 64, 96)


def test_masks_end_at_the_image():
    """Of a box that crosses the border the part inside is drawn; of one outside nothing."""
    masks = torch.ones(3, 1, 4, 4)
    boxes = torch.tensor([[-10.0, -10, 10, 10], [100, 100, 120, 120], [4, 4, 4, 4]])
    drawn = paste(masks, boxes, (20, 30))
    assert drawn.shape == (3, 1, 20, 30)
    assert (drawn[0, 0, :6, :6] > 0.999).all()
    assert drawn[0, 0, 14:, :].sum() == drawn[0, 0, :, 14:].sum() == drawn[1].sum() == 0
    assert paste(masks[:0], boxes[:0], (20, 30)).shape == (0, 1, 20, 30)


def test_what_training_refuses():
    model = maskrcnn_small(3, 64)
    image = torch.rand(3, 64, 64)
    with pytest.raises(ValueError, match="targets"):
        model.train()([image])
    flat = {"boxes": torch.tensor([[5.0, 5, 5, 20]]), "labels": torch.tensor([1])}
    with pytest.raises(ValueError, match="area"):
        model([image], [flat | {"masks": torch.zeros(1, 64, 64)}])
    whole = flat | {"boxes": torch.tensor([[5.0, 5, 9, 20]])}
    with pytest.raises(ValueError, match="without masks"):
        model([image], [whole])
    with pytest.raises(TypeError, match="divide uint8 by 255"):
        model.eval()([(image * 255).byte()])
    losses = fasterrcnn_small(3, 64).train()([image], [whole])  # which draws none
    assert "loss_mask" not in losses and sum(losses.values()).isfinite()


# ---------------------------------------------------------------------- the small one


def small_scene(count=4, size=64):
    """Squares and bars, brighter than the ground."""
    generator = torch.Generator().manual_seed(1)
    images, targets = torch.rand(count, 3, size, size, generator=generator) * 0.2, []
    for number, image in enumerate(images):
        left, top = 6 + 7 * number, 30 - 5 * number
        boxes = [[left, top, left + 20, top + 20], [2, 52, 40 + 3 * number, 60]]
        masks = torch.zeros(2, size, size, dtype=torch.uint8)
        for mask, (x, y, right, bottom) in zip(masks, boxes, strict=True):
            mask[y:bottom, x:right] = 1
        image[0] += masks[0] * 0.8
        image[1] += masks[1] * 0.8
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([1, 2]),
                        "masks": masks})  # fmt: skip
    return list(images), targets


@pytest.mark.parametrize(
    "settings",
    [{}, {"masks": "softmax"}, {"pool": "pool"}, {"pyramid": False}],
    ids=["plain", "softmax", "pool", "single"],
)
def test_it_learns_a_batch_by_heart(settings):
    """As it is, and with what the paper compares."""
    model = maskrcnn_small(3, 64, width=16, proposals=32, regions=16, **settings)
    images, targets = small_scene()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = sum(model.train()(images, targets).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 1.0
    with torch.no_grad():
        found = model.eval()(images)
    hits = 0
    for one, target in zip(found, targets, strict=True):
        for box, label, mask in zip(
            *(target[k] for k in ("boxes", "labels", "masks")), strict=True
        ):
            iou = torchvision.ops.box_iou(one["boxes"], box[None])[:, 0]
            drawn = one["masks"][:, 0] > 0.5
            both = (drawn & mask.bool()).sum((1, 2)) / (drawn | mask.bool()).sum((1, 2))
            right = (one["labels"] == label) & (iou > 0.5) & (both > 0.5) & (one["scores"] > 0.4)
            hits += bool(right.any())
    assert hits >= 6, hits


def test_a_single_map_has_all_anchors():
    model = maskrcnn_small(3, 64, pyramid=False)
    whole = maskrcnn_small(3, 64)  # looks at as many boxes, on four levels
    assert model.rpn.before == tuple(4 * count for count in whole.rpn.before)
    assert model.rpn.after == whole.rpn.after
    maps = model.backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 48, 4, 6)]
    assert [len(cell) for cell in model.rpn.cells] == [12]
    levels = maskrcnn_small(3, 64).backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_frozen_parts_do_not_learn():
    model = Backbone(resnet18(1), 8, 4, frozen=True, trainable=3)
    parts = {name.split(".")[1] for name, p in model.body.named_parameters(prefix="body")
             if not p.requires_grad}  # fmt: skip
    assert parts == {"conv1", "layer1"}
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


# ---------------------------------------------------------------------- weights


def released(state):
    """A state_dict under the names of torchvision's released files."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for kind in ("inner", "layer"):
            for k in range(4):
                key = key.replace(f"{kind}_blocks.{k}.0.", f"{kind}_blocks.{k}.")
        for k in range(4):
            key = key.replace(f"mask_head.{k}.0.", f"mask_head.mask_fcn{k + 1}.")
        renamed[key] = value
    return renamed


def flags(**changes):
    values = dict(model="maskrcnn_resnet50_fpn", weights="file.pth", data="x", freeze=False,
                  evaluate=None, stored={}, typed=["weights"])  # fmt: skip
    return types.SimpleNamespace(**(values | changes))


def test_released_files_mean_what_they_mean_there():
    """Old names, and norms without the 1e-5 that all others have."""
    ours, theirs = pair(frozen=True)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.mul_(1e-4)
            module.weight.mul_(1e-2)
            module.eps = 0.0
    state = loading.fitted(ours, released(theirs.state_dict()), flags())
    ours.load_state_dict(state)
    images = scene()[0]
    with torch.no_grad():
        for one, other in zip(ours.eval()(images), theirs.eval()(images), strict=True):
            torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(one["masks"], other["masks"], rtol=1e-6, atol=1e-8)


def test_other_classes_get_new_last_layers(refused):
    """What depends on the classes is new, the rest is the file's; masks may be missing."""
    quiet = types.SimpleNamespace(say=lambda *text: None)
    theirs, facts = maskrcnn_small(5), {"mean": [0, 0, 0], "std": [1, 1, 1]}
    torch.save(theirs.state_dict(), "file.pth")
    for model in (maskrcnn_small(3), fasterrcnn_small(3)):
        fresh = {key: value.clone() for key, value in model.state_dict().items()}
        loading.start_from(model, flags(model="maskrcnn_small", freeze=True), quiet, facts)
        state = model.state_dict()
        for key, value in state.items():
            new = key.startswith(loading.HEADS) and "conv5" not in key
            torch.testing.assert_close(value, fresh[key] if new else theirs.state_dict()[key])
        learn = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
        assert learn <= {"box_predictor", "mask_predictor"} and "box_predictor" in learn
    torch.save(fasterrcnn_small(5).state_dict(), "file.pth")
    loading.start_from(maskrcnn_small(3), flags(model="maskrcnn_small"), quiet, facts)
    torch.save(nn.Linear(2, 2).state_dict(), "file.pth")
    line = refused(loading.start_from, maskrcnn_small(3), flags(), quiet, facts)
    assert "file.pth" in line


def test_a_classifiers_weights_are_the_backbones():
    classifier = perturb(resnet18(10))
    backbone = Backbone(resnet18(1), 16, 4, frozen=True)
    rpn, parts = proposals.RegionProposals(16), heads.RegionHeads(16, 3, 32, (16,))
    model = RCNN(backbone, rpn, parts)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(loading.fitted(model, classifier.state_dict(), flags()))
    for key, value in model.state_dict().items():
        own = key.removeprefix("backbone.body.")
        wanted = before[key] if own == key else classifier.state_dict()[own]
        torch.testing.assert_close(value, wanted)
