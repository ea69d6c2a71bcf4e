"""Windows of photographs, published weights, images that don't fit, the user's files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from test_common_data import device, load
from torch import nn

from common import classify, cli, weights
from common.data import augment, images
from common.data.batches import Draw
from common.data.files import ImageFiles


class Numbers:
    """A draw whose uniform numbers are given."""

    def __init__(self, values):
        self.values = torch.as_tensor(values, dtype=torch.float32)

    def uniform(self, low, high, *shape):
        return low + (high - low) * self.values.view(len(self.values), *shape)

    normal = Draw.normal


def sides(count, height, width):
    return torch.full((count,), height), torch.full((count,), width)


# ---------------------------------------------------------------------- windows


def test_scaled_windows_are_squares_of_a_scaled_image():
    numbers = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    heights, widths = sides(4000, 300, 400)
    windows = augment.scaled_window(numbers, heights, widths, 224, 256, 480)
    left, top, across, down, _ = windows.T
    assert torch.equal(across, down)
    scales = 224 / across * 300  # the shorter side, scaled
    assert scales.round().unique().tolist() == list(range(256, 481))
    assert (left >= 0).all()
    assert (left + across <= 400.001).all()
    assert (top + down <= 300.001).all()
    assert (left / (400 - across)).mean().item() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="224"):
        augment.scaled_window(numbers, heights, widths, 224, 100, 480)


def test_windows_of_tensors_and_of_files_agree():
    y, x = np.mgrid[:96, :96]
    pixels = np.stack([x * 2, y * 2, (x + y)], 2).astype(np.uint8)  # smooth: scaling hardly matters
    Image.fromarray(pixels).save("smooth.png")
    window = torch.tensor([[10.0, 20.0, 60.0, 45.0, 1.0]])
    files = ImageFiles(["smooth.png"], 96, window=lambda *_: window, cut=32)
    from_file = files[0, [0.0] * 5].float()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    from_tensor = augment.cut_windows(tensor, window, 32)[0]
    assert from_file.shape == (3, 32, 32)
    assert (from_file - from_tensor).abs().max() < 3
    crop = tensor[0, :, 20:65, 10:70].float().flip(2)  # written out
    wanted = F.interpolate(crop[None], (32, 32), mode="bilinear", align_corners=False)[0]
    assert (from_tensor - wanted).abs()[:, 1:-1, 1:-1].max() < 3
    whole = torch.tensor([[0.0, 0.0, 96.0, 96.0, 0.0]])
    assert (augment.cut_windows(tensor, whole, 96) - tensor).abs().max() < 1e-3


def photographs(count=300, root="tree", size=(40, 30)):
    """An ImageFolder tree; the class shows in the colour."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = Path(root, "train" if i % 3 else "test", "ab"[i % 2], f"{i}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (*size, 3), dtype=np.uint8)
        pixels[..., i % 2] += 100
        Image.fromarray(pixels).save(path)
    return f"folder:{root}"


def window(numbers, height, width):
    """A third of each side, anywhere, half of them mirrored."""
    across, down = width / 3, height / 3
    x, y, _, _, side = numbers.unbind(1)
    return torch.stack([x * (width - across), y * (height - down), across, down, side.round()], 1)


@pytest.mark.parametrize("stream", [True, False])
def test_photographs_are_cut_in_training_and_from_the_middle_in_evaluation(stream):
    args = SimpleNamespace(
        data=photographs(30), data_dir="", val=0, limit=None, seed=0, stream=stream, workers=0
    )
    args.typed, args.chosen = [], []
    train, _, test = images.load_images(args, device(), 16, window=window)
    batches = train.batches(20)
    first = next(iter(batches))[0]
    assert first.shape == (20, 3, 16, 16)
    assert torch.equal(first, next(iter(batches))[0])  # a function of seed, epoch and step
    batches.seek(1, 0)
    assert not torch.equal(first, next(iter(batches))[0])
    (x, labels), (whole, _) = (next(iter(test.batches(99, margin=w))) for w in (False, True))
    assert x.shape == (10, 3, 16, 16)
    assert whole.shape == (10, 3, 19, 19)  # 8/7 of 16
    assert torch.equal(x, whole[:, :, 1:17, 1:17])
    assert torch.equal(test.examples(torch.arange(10))[0], x)
    assert torch.equal((x.mean((2, 3))[:, 1] > x.mean((2, 3))[:, 0]).long(), labels)


def test_streaming_draws_each_example_by_itself():
    """The windows of an example don't depend on what else is in its batch."""
    args = SimpleNamespace(
        data=photographs(60), data_dir="", val=0, limit=None, seed=0, stream=True, workers=0
    )
    args.typed, args.chosen = [], []
    sets = [images.load_images(args, device(accumulate=k), 16, window=window)[0] for k in (1, 2)]
    one = torch.cat([x for x, _ in sets[0].batches(8)])
    two = torch.cat([x for x, _ in sets[1].batches(8)])
    assert torch.equal(one, two)


def test_streaming_with_workers_equals_streaming_without():
    args = SimpleNamespace(
        data=photographs(400), data_dir="", val=0, limit=None, seed=0, stream=True, workers=0
    )
    args.typed, args.chosen = [], []
    sets = []
    for args.workers in (0, 2):
        train = images.load_images(args, device(), 16, window=window)[0]
        sets.append(torch.cat([x for x, _ in train.batches(64)]))
    assert torch.equal(*sets)


def test_grey_images_become_colour_and_it_is_said(capsys):
    photographs(12)
    for path in list(Path("tree").rglob("*.jpg"))[:5]:
        Image.open(path).convert("L").save(path)
    train, _, _ = load("folder:tree", size=8, channels=3, dev=device(quiet=False))
    assert train.images.pixels.shape[1] == 3
    assert "grey" in capsys.readouterr().out
    load("folder:tree", size=8, channels=1, dev=device(quiet=False))
    assert "grey" not in capsys.readouterr().out
    digits, _, _ = load("digits", size=8, channels=3, dev=device(quiet=False))
    assert torch.equal(digits.images.pixels[:, 0], digits.images.pixels[:, 2])
    assert "the images are grey" in capsys.readouterr().out


def test_colours_shift_along_the_principal_components():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.1]]).double()
    covariance = mixing @ mixing.T
    numbers = torch.rand(20000, 2, 3, generator=generator)
    pixels = torch.zeros(20000, 3, 1, 2, dtype=torch.uint8)
    shifted = augment.random_colour(pixels, Numbers(numbers), covariance)
    assert torch.equal(shifted[..., 0], shifted[..., 1])  # one shift for a whole image
    shift = shifted[:, :, 0, 0].double() / 255
    # alpha times eigenvalue along eigenvectors: the shifts' covariance is 0.1^2 times the square
    wanted = 0.01 * covariance @ covariance
    torch.testing.assert_close(shift.T.cov(), wanted, atol=3e-2 * wanted.max().item(), rtol=0)
    values, vectors = torch.linalg.eigh(covariance)
    u, v = numbers[0].double()
    alpha = 0.1 * (-2 * torch.log(1 - u)).sqrt() * torch.cos(2 * torch.pi * v)
    by_hand = sum(alpha[i] * values[i] * vectors[:, i] for i in range(3))
    torch.testing.assert_close(shift[0], by_hand, atol=1e-6, rtol=0)


def test_colour_covariance():
    train, _, _ = load("shapes", size=16, channels=3, limit=200)
    values = train.images.pixels.double().movedim(1, 0).flatten(1) / 255
    wanted = values.cov(correction=0)
    torch.testing.assert_close(images.colour_covariance(train), wanted, atol=1e-6, rtol=0)
    mean, std = images.statistics(train)
    torch.testing.assert_close(torch.tensor(mean), values.mean(1).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(std), wanted.diag().sqrt().float(), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- weights


def arguments(**changes):
    flags = dict(typed=["weights"], weights=None, freeze=False, evaluate=None, stored={})
    flags |= dict(model="resnet18", data="shapes", batch_size=4)
    return SimpleNamespace(**{**flags, **changes})


def start(net, **flags):
    facts = {"classes": list("abcde")}
    args, published = arguments(**flags), {"resnet18": "resnet18"}
    weights.check_weights(args, published)
    weights.start_from(net, args, device(), facts, ("fc",), published)
    return facts


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(1)
    return torchvision.models.resnet18()


def test_weights_of_a_file_with_another_head(published):
    torch.save(published.state_dict(), "tv.pth")
    model = torchvision.models.resnet18(num_classes=5)
    head = model.fc.weight.clone()
    facts = start(model, weights="tv.pth")
    assert torch.equal(model.fc.weight, head)  # swapped
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert "mean" not in facts  # those of the data hold
    whole = torchvision.models.resnet18()
    start(whole, weights="tv.pth")
    for key, value in published.state_dict().items():
        assert torch.equal(whole.state_dict()[key], value)


def test_a_checkpoint_of_ours_brings_its_own_mean(published):
    facts = {"classes": list("abcde"), "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    torch.save({"model": published.state_dict(), "dataset": facts, "config": {}}, "last.pt")
    assert start(torchvision.models.resnet18(), weights="last.pt")["std"] == [1.0, 2.0, 3.0]


def test_freezing_trains_only_the_head(published):
    torch.save(published.state_dict(), "tv.pth")
    model = torchvision.models.resnet18(num_classes=5)
    start(model, weights="tv.pth", freeze=True)
    assert [p.shape for p in weights.trained(model)] == [(5, 512), (5,)]
    model.train()
    weights.keep_frozen(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(weights.trained(model), 0.1)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.zeros(4).long()).backward()
    optimizer.step()
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["fc.weight", "fc.bias"]  # no batch norm's statistics either


def test_optional_layers_may_be_missing_on_either_side(published):
    with_head = published.state_dict()
    without = {key: value for key, value in with_head.items() if not key.startswith("fc.")}
    for state, net in ((without, published), (with_head, torchvision.models.resnet18())):
        if state is with_head:
            net.fc = nn.Identity()
        weights.load(net, state, arguments(weights="x"), (), ("fc",))
        assert torch.equal(net.conv1.weight, with_head["conv1.weight"])


def test_weights_that_cannot_be(published, refused):
    def line(**flags):
        return refused(lambda: start(torchvision.models.resnet18(num_classes=5), **flags))

    torch.save(torchvision.models.resnet34().state_dict(), "r34.pth")
    assert "another network than resnet18" in line(weights="r34.pth")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "squeeze.pth")
    assert "squeeze.pth is of another network" in line(weights="squeeze.pth")
    wide = published.state_dict() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    torch.save(wide, "wide.pth")
    assert "conv1.weight is [64, 3, 3, 3] and [64, 3, 7, 7]" in line(weights="wide.pth")
    assert "nothing.pth" in line(weights="nothing.pth")
    Path("noise.pth").write_bytes(b"noise" * 100)
    assert "noise.pth" in line(weights="noise.pth")
    torch.save([1, 2], "list.pth")
    assert "list.pth holds no weights" in line(weights="list.pth")
    assert "--weights" in line(freeze=True)
    assert "none for plain20, but for resnet18" in line(weights="imagenet", model="plain20")


def test_published_weights_come_from_torchvisions_cache(published, monkeypatch, refused):
    monkeypatch.setenv("TORCH_HOME", str(Path("cache").absolute()))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    line = refused(lambda: start(torchvision.models.resnet18(), weights="imagenet"))
    assert "resnet18-f37072fd.pth is not in" in line
    name = Path("cache/hub/checkpoints/resnet18-f37072fd.pth")
    name.parent.mkdir(parents=True, exist_ok=True)
    torch.save(published.state_dict(), name)
    model = torchvision.models.resnet18()
    assert start(model, weights="imagenet")["mean"] == weights.IMAGENET["mean"]
    assert torch.equal(model.fc.weight, published.fc.weight)


def no_network(*_, **__):
    raise OSError("no network")


def test_a_resumed_or_evaluated_run_reads_no_weights(refused):
    asked = dict(weights="weights.pth", evaluate="run/last.pt")  # typed now
    assert "--evaluate trains nothing" in refused(
        lambda: start(torchvision.models.resnet18(), **asked)
    )
    gone = dict(weights="gone.pth", typed=[])
    start(torchvision.models.resnet18(), **gone, stored={"model": {}})
    start(torchvision.models.resnet18(), **gone, evaluate="run/last.pt")


# ---------------------------------------------------------------------- images that don't fit


def test_images_too_small_are_refused(refused):
    dev = device()
    model = torchvision.models.alexnet()
    classify.check_images(model, arguments(model="alexnet"), dev, 9, 64)
    line = refused(classify.check_images, model, arguments(model="alexnet"), dev, 9, 32)
    assert "32x32 pixels are too small for alexnet" in line
    resnet = torchvision.models.resnet18()
    before = resnet.bn1.running_mean.clone()
    classify.check_images(resnet, arguments(), dev, 9, 32)
    assert torch.equal(resnet.bn1.running_mean, before)
    for count, flags, at in ((9, {"batch_size": 1}, dev), (1, {}, dev), (3, {}, device(2))):
        line = refused(classify.check_images, resnet, arguments(**flags), at, count, 32)
        assert "batch norm can't train on one image of 32 pixels" in line


def test_rows_of_the_confusion_matrix_are_the_true_classes(monkeypatch):
    class Images(list):
        part, facts = "test", {"classes": ["a", "b", "c"]}

    drawn = []
    monkeypatch.setattr("common.plot.confusion_matrix", lambda counts, *_: drawn.append(counts))
    tally = classify.Tally(Images(range(4)), device())
    tally.add(torch.tensor(4.0), torch.tensor([1, 1]), torch.tensor([0, 1]))
    tally.add(torch.tensor(2.0), torch.tensor([0, 2]), torch.tensor([0, 2]))
    assert tally.metrics(Path("confusion.png")) == {"test_loss": 1.5, "test_accuracy": 0.75}
    assert drawn[0].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_the_users_files_are_classified(capsys):
    photographs(6)
    Image.open("tree/train/a/2.jpg").convert("L").save("grey.png")

    class Red(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :2] * 10

    facts = {"classes": ["a", "b"], "mean": [0.0] * 3, "std": [1.0] * 3, "side": 18}
    files = classify.find_images([Path("tree"), Path("grey.png")])
    assert len(files) == 7
    found = classify.classify(files, Red(), facts, 16, device(), Path("out"))
    assert Path("out/predictions.jpg").exists()
    for path, answers in found.items():
        if "tree" in path:
            assert answers[0][0] == Path(path).parent.name
        assert sum(p for _, p in answers) == pytest.approx(1, abs=0.01)
    assert "grey.png (grey: made RGB)" in capsys.readouterr().out
    assert list(found) == [str(path) for path in files]


def test_files_that_cannot_be_classified(refused):
    Path("empty").mkdir()
    assert "empty holds no images" in refused(classify.find_images, [Path("empty")])
    assert "a b.png: there is no such file" in refused(classify.find_images, [Path("a b.png")])
    Path("text.png").write_text("no picture")
    facts = {"classes": ["a"], "mean": [0.0] * 3, "std": [1.0] * 3, "side": 8}
    call = (classify.classify, [Path("text.png")], nn.Identity(), facts, 8, device(), Path("out"))
    assert "text.png" in refused(*call)


@pytest.mark.parametrize("cut", [True, False])
def test_samples_see_what_evaluation_saw(cut):
    """Whole squares where training had no windows, else their middle 7/8."""
    data = photographs(12, size=(40, 40))
    args = dict(data=data, data_dir="", val=0, limit=None, seed=0, stream=False, workers=0, size=16)
    args = SimpleNamespace(**args, typed=[], chosen=[])
    _, _, test = images.load_images(args, device(), 16, window=window if cut else None)
    assert test.facts["side"] == (19 if cut else 16)
    seen = test.examples(torch.arange(len(test)))[0]
    shown = classify.load_parts(args, device(), test.facts)[2]
    assert torch.equal(seen, shown.examples(torch.arange(len(test)))[0])
    inputs = []

    class Spy(nn.Module):
        def forward(self, x):
            inputs.append(x)
            return x.mean((2, 3))[:, :2]

    files = classify.find_images([Path("tree/test")])
    classify.classify(files, Spy(), test.facts, 16, device(), Path("out"))
    assert torch.equal(torch.cat(inputs), seen)


# ---------------------------------------------------------------------- published weights


def tiny(num_classes=10):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))


def parse(argv):
    """As a train.py does, for two networks of which torchvision has the weights of one."""
    recipe = dict(model="tiny", data="shapes", epochs=1, batch_size=8, lr=0.1)
    parser = cli.Parser("toy", "", recipe, recipe, ["tiny", "large"], images.IMAGE_SETS)
    images.add_image_flags(parser)
    weights.add_weight_flags(parser)
    parser.add_argument("--size", type=cli.integer(8), default=64)
    parser.add_argument("--kind", choices=["a", "b"], default="a")
    args = parser.parse_args(argv)
    weights.check_weights(args, {"tiny": "inception_v3"})
    return args


def classified(*argv, **settings):
    """What a sample.py says that can take published weights."""
    kind = {"--kind": dict(choices=["a", "b"])}
    published = classify.Published({"tiny": "inception_v3"}, parse, kind, **settings)
    models, built = {"tiny": tiny}, []
    build = lambda flags, n: built.append((flags.kind, n)) or tiny(n)  # noqa: E731
    return classify.sample("toy", "", models, build, list(argv), published=published), built


def test_images_are_classified_by_published_weights(capsys):
    """With the classes, size and sides that torchvision says, in a new folder each time."""
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (342, 342, 3), dtype=np.uint8)  # inception_v3's: 299 of 342
    wide = np.zeros((342, 800, 3), np.uint8)
    wide[:, 229:571] = square
    for name, pixels in (("square.png", square), ("wide.png", wide)):
        Image.fromarray(pixels).save(name)
    model = tiny(1000)
    nn.init.normal_(model[2].weight)
    torch.save({"state_dict": {f"old.{k}": v for k, v in model.state_dict().items()}}, "w.pth")
    half = {"tiny": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    settings = dict(inputs=half, current_name=lambda name: name.removeprefix("old."))
    found, built = classified("--weights", "w.pth", "square.png", "wide.png", **settings)
    assert built == [("a", 1000)]
    x = (torch.from_numpy(square).permute(2, 0, 1)[:, 21:320, 21:320] / 255 - 0.5) / 0.25
    shares, places = model(x[None]).softmax(1)[0].topk(5)
    classes = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.meta["categories"]
    for answers in found.values():
        assert [name for name, _ in answers] == [classes[i] for i in places.tolist()]
        assert [p for _, p in answers] == pytest.approx(shares.tolist(), rel=1e-4)
    assert "tiny with the weights w.pth, 299 pixels" in capsys.readouterr().out
    again, built = classified("--weights", "w.pth", "--kind", "b", "square.png", **settings)
    assert built == [("b", 1000)]
    assert dict(again["square.png"]) == pytest.approx(dict(found["square.png"]))
    made = [str(path) for path in sorted(Path("runs").rglob("*.jpg"))]
    assert made == [f"runs/toy/{name}/predictions.jpg" for name in ("samples", "samples-2")]
    plain, _ = classified("--weights", "w.pth", "square.png", current_name=settings["current_name"])
    assert plain["square.png"] != found["square.png"]  # normalised as torchvision's usually are


def test_a_checkpoint_with_a_thousand_classes_brings_its_own_mean():
    facts = {"classes": list("abc"), "mean": [0.1] * 3, "std": [2.0] * 3}
    model = tiny(1000)
    torch.save({"model": model.state_dict(), "dataset": facts, "config": {}}, "last.pt")
    torch.save(model.state_dict(), "w.pth")
    Image.new("RGB", (350, 342), "orange").save("orange.png")
    own = {"tiny": {"mean": [0.1] * 3, "std": [2.0] * 3}}
    one, two = (
        classified("--weights", "last.pt", "orange.png"),
        classified("--weights", "w.pth", "orange.png", inputs=own),
    )
    assert one[0] == two[0]


def test_published_weights_that_cannot_be(refused):
    def line(*argv):
        return refused(classified, *argv)

    Image.new("RGB", (40, 40)).save("x.png")
    torch.save(tiny(7).state_dict(), "seven.pth")
    torch.save(tiny(1000).state_dict(), "w.pth")
    weights_of = ("--weights", "w.pth")
    assert "seven.pth doesn't fit tiny: 2.weight is [7, 48] and" in line(
        "--weights", "seven.pth", "x.png"
    )
    assert "gone.pth: there is no such file (or write imagenet)" in line(
        "--weights", "gone.pth", "x.png"
    )
    assert "name image files" in line(*weights_of)
    assert "choose one" in line(*weights_of, "--checkpoint", "last.pt", "x.png")
    assert "--model goes with --weights: a checkpoint knows its own" in line("--model", "tiny")
    assert "--kind goes with --weights" in line("--kind", "b", "x.png")
    assert "unknown model 'large'" in line(*weights_of, "--model", "large", "x.png")
    assert "gone.png" in line(*weights_of, "gone.png")
    Path("empty").mkdir()
    assert "empty holds no images" in line(*weights_of, "empty")
    assert not Path("runs").exists()


# ---------------------------------------------------------------------- files as others write them


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "ema", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_as_others_save_them(published, key, prefix):
    state = {prefix + k: v for k, v in published.state_dict().items()}
    torch.save({key: state, "epoch": 3, "args": "x"} if key else state, "theirs.pth")
    model = torchvision.models.resnet18()
    start(model, weights="theirs.pth")
    assert torch.equal(model.fc.weight, published.fc.weight)


def test_safetensors_are_read(published):
    from safetensors.torch import save_file

    save_file(published.state_dict(), "theirs.safetensors")
    model = torchvision.models.resnet18()
    start(model, weights="theirs.safetensors")
    assert torch.equal(model.fc.weight, published.fc.weight)


def test_other_files_are_called_what_they_are(published, refused):
    def line():
        return refused(lambda: start(torchvision.models.resnet18(), weights="file"))

    torch.jit.script(nn.Linear(2, 2)).save("file")
    assert "TorchScript" in line()
    torch.save(published, "file")
    assert "more than tensors" in line()
    Path("file").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    assert "damaged" in line()
    torch.save(published.state_dict(), "file")
    with open("file", "r+b") as file:
        file.truncate(5000)
    assert "damaged" in line()
