"""Image sets, their batches and augmentation."""

import itertools
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import torch
import torchvision
import toy
from conftest import ROOT
from helpers import make_tree, weights
from PIL import Image

from common import seed_of
from common.data import augment, files, images, sources
from common.data.batches import Batches, Draw
from common.device import Device

REAL = ROOT.parent / "shared" / "data"  # the project's real data, where this checkout has it


def device(world=1, rank=0, **changes):
    dev = Device(processes.device_args(**changes))
    dev.world, dev.rank = world, rank
    return dev


def load(data, size=8, channels=1, dev=None, pad=0, **flags):
    args = dict(
        data=data,
        data_dir="data",
        val=0,
        limit=None,
        seed=0,
        stream=None,
        workers=0,
        typed=[],
        chosen=["val"],
    )
    args = SimpleNamespace(**{**args, **flags})
    return images.load_images(args, dev or device(), size=size, channels=channels, pad=pad)


def parts(size, batch_size, dev, epoch=0, first=0, shuffle=True):
    batches = Batches(size, batch_size, dev, shuffle, lambda parts, draws, epoch: parts)
    batches.seek(epoch, first)
    return [part.tolist() for part in batches]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


# ---------------------------------------------------------------------- steps and parts


def test_a_short_last_step_is_dropped_in_training_never_in_evaluation():
    assert [len(p) for p in parts(10, 4, device())] == [4, 4]
    assert flat(parts(10, 4, device(), shuffle=False)) == list(range(10))


def test_a_batch_larger_than_the_set_shrinks_to_it():
    assert [len(p) for p in parts(10, 64, device())] == [10]
    assert [len(p) for p in parts(10, 64, device(world=2, accumulate=2))] == [2, 2]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_the_same_steps_equally(world, accumulate):
    whole = parts(50, 8, device(), epoch=3)
    ranks = [parts(50, 8, device(world, r, accumulate=accumulate), epoch=3) for r in range(world)]
    for step, wanted in enumerate(whole):
        here = [r[step * accumulate : (step + 1) * accumulate] for r in ranks]
        pieces = [piece for rank in here for piece in rank]
        assert {len(piece) for piece in pieces} == {8 // (world * accumulate)}
        assert sorted(flat(pieces)) == sorted(wanted)


def test_all_ranks_evaluate_as_many_parts_and_no_example_twice():
    for size, world in ((10, 2), (9, 4), (1003, 4)):
        ranks = [parts(size, 4, device(world, r), shuffle=False) for r in range(world)]
        assert len({len(r) for r in ranks}) == 1
        assert sorted(flat(map(flat, ranks))) == list(range(size))
        assert all(len(p) > 0 for r in ranks for p in r)


def test_order_is_a_function_of_seed_and_epoch():
    assert parts(50, 8, device(), epoch=1) == parts(50, 8, device(), epoch=1)
    assert parts(50, 8, device(), epoch=1) != parts(50, 8, device(), epoch=2)
    assert parts(50, 8, device(seed=1), epoch=1) != parts(50, 8, device(), epoch=1)
    assert parts(50, 8, device(), epoch=1, first=4) == parts(50, 8, device(), epoch=1)[4:]


def test_a_batch_that_cannot_be_cut_is_refused(refused):
    assert "multiple of 4" in refused(parts, 50, 6, device(world=2, accumulate=2))
    assert "3 examples" in refused(parts, 3, 4, device(accumulate=4))


def test_draws_are_cut_from_those_of_the_whole_step():
    key = [("step", 0, 0, 0)]
    cpu = torch.device("cpu")
    whole = Draw(key, 8, slice(0, 8), cpu)
    cut = Draw(key, 8, slice(2, 5), cpu)
    for _ in range(2):
        assert torch.equal(whole.uniform(-1, 2, 3)[2:5], cut.uniform(-1, 2, 3))
        assert torch.equal(whole.integers(0, 4)[2:5], cut.integers(0, 4))
    numbers = Draw(key, 5000, slice(0, 5000), cpu).integers(0, 4)
    assert torch.bincount(numbers).min() > 900


def test_seeds_of_near_keys_differ():
    assert len({seed_of(a, b) for a in range(50) for b in range(50)}) == 2500
    assert 0 <= seed_of("x") < 2**63


# ---------------------------------------------------------------------- image sets


def test_digits_are_split_80_20_and_normalised():
    train, val, test = load("digits", val=100)
    assert (len(train), len(val), len(test)) == (1338, 100, 359)
    assert [s.part for s in (train, val, test)] == ["train", "val", "test"]
    everything = torch.cat([x for x, _ in train.batches(100, shuffle=False)])
    assert abs(everything.mean()) < 1e-5
    assert abs(everything.std() - 1) < 1e-2
    assert train.facts["classes"] == [str(i) for i in range(10)]


def test_parts_never_overlap_and_the_test_part_never_changes():
    def rows(part):
        return {row.numpy().tobytes() for row in part.images.pixels}

    first, second = load("digits", val=200), load("digits", val=300, seed=5)
    assert not rows(first[0]) & rows(first[1])
    assert not rows(first[0]) & rows(first[2])
    assert torch.equal(first[2].images.pixels, second[2].images.pixels)
    assert rows(first[1]) != rows(second[1])


def test_limit_keeps_a_seeded_sample_of_the_training_part():
    few, more = load("digits", limit=64)[0], load("digits", limit=64, seed=1)[0]
    assert len(few) == 64
    assert torch.equal(few.images.pixels, load("digits", limit=64)[0].images.pixels)
    assert not torch.equal(few.images.pixels, more.images.pixels)
    assert len(load("digits", limit=64, val=100)[1]) == 100


def test_too_large_a_validation_part_is_refused(refused):
    assert "--val 1438" in refused(lambda: load("digits", val=1438))


def test_sizes_channels_and_padding():
    train, _, _ = load("digits", size=28, channels=3, pad=2)
    assert train.images.pixels.shape[1:] == (3, 32, 32)
    assert train.images.pixels.dtype == torch.uint8
    assert train.images.pixels[:, :, :2].max() == 0
    x, labels = next(iter(train.batches(16)))
    assert x.shape == (16, 3, 32, 32)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_images_stay_with_their_labels():
    train, _, _ = load("digits")
    table = {
        p.numpy().tobytes(): int(label)
        for p, label in zip(train.images.pixels, train.labels, strict=True)
    }
    batches = train.batches(32)
    batches.seek(2, 5)
    for x, labels in batches:
        scaled = x * torch.tensor(train.facts["std"]) + torch.tensor(train.facts["mean"])
        pixels = (scaled * 255).round().byte()
        assert [table[p.numpy().tobytes()] for p in pixels] == labels.tolist()


def test_augmented_parts_equal_the_augmented_whole():
    def batch(dev, skip=0):
        train, _, _ = load("digits", dev=dev)
        shift = lambda x, draw: augment.random_flip(augment.random_crop(x, draw, 2), draw)  # noqa: E731
        batches = train.batches(8, augment=shift)
        batches.seek(1, 3)
        return next(iter(batches))[0]

    whole = batch(device())
    halves = [batch(device(world=2, rank=rank)) for rank in range(2)]
    torch.testing.assert_close(torch.cat(halves), whole)


# ---------------------------------------------------------------------- folders of images


def test_folder_alone_is_split_and_said_so(capsys):
    make_tree("tree")
    dev = device()
    dev.quiet = False
    train, _, test = load("folder:tree", channels=3, dev=dev)
    assert (len(train), len(test)) == (10, 2)
    assert train.facts["classes"] == ["cat", "dog"]
    assert "fifth" in capsys.readouterr().out


def test_folder_with_parts(capsys):
    make_tree("two", names=("train", "val"))
    train, val, test = load("folder:two", val=4)
    assert (len(train), len(val), len(test)) == (8, 4, 12)  # val/ is the test set
    make_tree("three", names=("train", "val", "test"))
    train, val, test = load("folder:three", val=4)
    assert (len(train), len(val), len(test)) == (12, 12, 12)
    assert load("folder:three")[1] is None


def test_validation_parts_of_small_folders(refused):
    make_tree("small", count=20)
    make_tree("own", names=("train", "val", "test"))
    assert len(load("folder:small", val=137, chosen=[])[1]) == 3  # a default shrinks
    assert "--val 137" in refused(lambda: load("folder:small", val=137))
    assert "validation set of its own, of 12" in refused(
        lambda: load("folder:own", val=5, typed=["val"])
    )
    make_tree("one", classes=("a",), count=1)
    assert "one image" in refused(lambda: load("folder:one"))


def test_classes_of_the_parts_are_matched_by_name(refused):
    make_tree("tree/train", classes=("a", "b", "c"))
    make_tree("tree/test", classes=("c",))
    assert set(load("folder:tree")[2].labels.tolist()) == {2}
    make_tree("tree/val", classes=("z",))
    assert "'z'" in refused(lambda: load("folder:tree", val=1))


def test_streaming_equals_memory():
    make_tree("tree", count=20)
    for workers in (0, 2):
        loaded = load("folder:tree", channels=3)[0]
        streamed = load("folder:tree", channels=3, stream=True, workers=workers)[0]
        assert isinstance(streamed.images, images.Streamed)
        assert streamed.facts["mean"] == pytest.approx(loaded.facts["mean"], rel=1e-5)
        for a, b in zip(loaded.batches(8), streamed.batches(8), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(
            loaded.examples(torch.tensor([3, 1])), streamed.examples(torch.tensor([3, 1]))
        )


def test_large_folders_are_streamed(monkeypatch):
    make_tree("tree")
    monkeypatch.setattr(images, "STREAM_BYTES", 100)
    assert isinstance(load("folder:tree")[0].images, images.Streamed)
    assert isinstance(load("folder:tree", stream=False)[0].images, images.Held)


def test_streamed_examples_have_their_own_seeds():
    """Whatever the batch: an example is augmented by (seed, epoch, index)."""
    make_tree("tree", count=20)
    train = load("folder:tree", stream=True)[0]
    seen = {}
    for batch_size in (4, 8):
        batches = train.batches(batch_size, augment=lambda x, draw: augment.random_crop(x, draw, 2))
        batches.seek(1, 0)
        order = [i for step in batches.steps() for i in step.tolist()]
        seen[batch_size] = dict(zip(order, torch.cat([x for x, _ in batches]), strict=True))
    for index in seen[4]:
        assert torch.equal(seen[4][index], seen[8][index])


def test_streamed_training_resumes_exactly():
    make_tree("tree", count=20)
    flags = ["--quiet", "--data", "folder:tree", "--stream", "--workers", "0", "--val", "0"]
    flags += ["--batch-size", "8", "--dropout", "0.3", "--model", "conv"]
    toy.main([*flags, "--run-dir", "a"])
    toy.main([*flags, "--run-dir", "b", "--max-steps", "5"])
    toy.main(["--quiet", "--resume", "--run-dir", "b"])
    a, b = (weights(f) for f in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(refused, workers):
    make_tree("tree", count=130 if workers else 4)  # workers read sets of over 256 files
    Path("tree/dog/2.png").write_bytes(b"no image")
    for stream in (True, False):

        def read(stream=stream):
            train, _, test = load("folder:tree", stream=stream, workers=workers)
            return list(train.batches(2)), list(test.batches(2))

        line = refused(read)
        assert "tree/dog/2.png" in line


def test_folders_without_classes_or_images(refused):
    assert "nowhere" in refused(lambda: load("folder:nowhere"))
    Path("empty").mkdir()
    assert "empty" in refused(lambda: load("folder:empty"))
    Path("empty/cat").mkdir()
    assert "empty" in refused(lambda: load("folder:empty"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_image_mode_is_read(mode):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = (
            Image.fromarray(ramp)
            .convert("L")
            .convert("RGB" if mode == "CMYK" else "L")
            .convert(mode)
        )
    image.save("image.tif")
    pixels = np.asarray(files.open_image("image.tif").convert("L"), dtype=float)
    assert pixels[:, -4:].mean() > pixels[:, :4].mean() + 100


def test_transparency_becomes_the_contrasting_ground():
    for ink, ground in ((0, 255), (255, 0)):
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[2:6, 2:6] = [ink, ink, ink, 255]
        Image.fromarray(pixels).save("image.png")
        read = np.asarray(files.open_image("image.png").convert("L"))
        assert read[0, 0] == ground
        assert read[3, 3] == ink


# ---------------------------------------------------------------------- downloaded sets


def write_idx(folder, name, array, cut=0):
    Path(folder).mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    Path(folder, name).write_bytes(content[: len(content) - cut])


def make_mnist(folder="data/MNIST/raw", count=20):
    random = np.random.default_rng(0)
    for name in sources.IDX_FILES:
        shape = (count, 28, 28) if "idx3" in name else (count,)
        write_idx(folder, name, random.integers(0, 10, shape))


@pytest.mark.parametrize(("data", "folder"), sources.IDX_SETS.items())
def test_idx_sets(data, folder):
    make_mnist(f"data/{folder}/raw")
    train, _, test = load(data, size=28)
    assert (len(train), len(test)) == (20, 20)
    assert len(train.facts["classes"]) == 10


@pytest.mark.parametrize("name", sources.IDX_FILES)
def test_a_truncated_idx_file_is_named(refused, name):
    make_mnist()
    path = Path("data/MNIST/raw", name)
    content = path.read_bytes()
    for damaged in (content[:-3], content[:5], b"", b"garbage" + content):
        path.write_bytes(damaged)
        assert name in refused(lambda: load("mnist"))


def test_no_copy_and_no_network(refused, monkeypatch):
    def offline(*_, **__):
        raise torchvision.datasets.utils.URLError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", offline)
    for data, name in (
        ("mnist", "train-images"),
        ("cifar10", "data_batch_1"),
        ("cifar100", "train"),
    ):
        line = refused(lambda d=data: load(d))
        assert name in line
        assert "data" in line
        assert "--data digits" in line
        assert not list(Path().iterdir())  # nothing is left behind
    Path("data/MNIST/raw").mkdir(parents=True)
    Path("data/MNIST/raw/mine").touch()
    refused(lambda: load("mnist"))
    assert Path("data/MNIST/raw/mine").exists()


def make_cifar(monkeypatch, batches=(1, 2, 3, 4, 5)):
    """CIFAR-10 as it is stored, of 4 images a batch, with its checksums."""
    import hashlib

    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name, content):
        path = folder / name
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    def batch():
        return {"data": random.integers(0, 256, (4, 3072)).astype(np.uint8), "labels": [0, 1, 2, 3]}

    kind = torchvision.datasets.CIFAR10
    lists = [write(f"data_batch_{i}", batch()) for i in range(1, 6)]
    monkeypatch.setattr(kind, "train_list", lists)
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch())])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(kind, "meta", meta)
    for i in {1, 2, 3, 4, 5} - set(batches):
        (folder / f"data_batch_{i}").unlink()
    return folder


def test_cifar_whole_and_in_part(monkeypatch, capsys, refused):
    folder = make_cifar(monkeypatch)
    dev = device()
    dev.quiet = False
    train, _, test = load("cifar10", size=32, channels=3, dev=dev)
    assert (len(train), len(test)) == (20, 4)
    assert "a part" not in capsys.readouterr().out
    for number in (2, 3, 4, 5):
        (folder / f"data_batch_{number}").unlink()
    train, _, _ = load("cifar10", size=32, channels=3, dev=dev)
    assert len(train) == 4
    assert train.facts["classes"] == list("abcdefghij")
    assert "a part: 1 of 5" in capsys.readouterr().out
    path = folder / "data_batch_1"
    path.write_bytes(path.read_bytes() + b"x")
    assert "data_batch_1" in refused(lambda: load("cifar10"))


@pytest.mark.skipif(not REAL.exists(), reason="the real data sets are not beside this checkout")
def test_the_real_data():
    train, _, test = load("mnist", size=28, data_dir=str(REAL))
    assert (len(train), len(test)) == (60000, 10000)
    assert train.facts["mean"] == pytest.approx([0.1307], abs=1e-4)
    assert train.facts["std"] == pytest.approx([0.3081], abs=1e-4)
    train, _, test = load("cifar10", size=32, channels=3, data_dir=str(REAL))
    assert (len(train), len(test)) == (10000, 10000)


# ---------------------------------------------------------------------- augmentation


def draw(count, key=0):
    return Draw([("test", key)], count, slice(0, count), torch.device("cpu"))


def test_random_crop_shifts_each_image_by_its_own_amount():
    x = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    out = augment.random_crop(x, draw(200), 2)
    padded = torch.nn.functional.pad(x[0, 0], [2] * 4)
    windows = {padded[i : i + 8, j : j + 8].numpy().tobytes() for i in range(5) for j in range(5)}
    assert {o[0].numpy().tobytes() for o in out} == windows
    colour = torch.stack([x[:, 0], x[:, 0] + 64, x[:, 0] + 128], 1)
    shifted = augment.random_crop(colour, draw(200), 2)
    assert torch.equal(shifted[:, :1], out)  # all channels of an image move together
    assert torch.equal(shifted[:, 2] != 0, out[:, 0] != 0)


def test_random_flip_mirrors_about_half():
    x = torch.arange(4.0).view(1, 1, 1, 4).repeat(1000, 1, 1, 1)
    flipped = (augment.random_flip(x, draw(1000))[:, 0, 0, 0] == 3).float().mean()
    assert 0.4 < flipped < 0.6


def test_crops_and_flips():
    draw = Draw([("a", 0)], 40, slice(None), torch.device("cpu"))
    plain = torch.arange(1, 33.0).repeat(40, 3, 32, 1)  # each column has its number
    images = augment.crop_and_flip(plain, draw)
    assert images.shape == plain.shape
    firsts = images[:, 0, 16, 0]  # 0 is padding
    assert ((firsts <= 5) | (firsts >= 28)).all()  # shifted by up to four, or mirrored
    assert len(firsts.unique()) > 5


def test_resized_windows_are_inceptions():
    numbers = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    height, width = torch.full((4000,), 120), torch.full((4000,), 160)
    left, top, across, down, mirrored = augment.resized_window(numbers, height, width).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + across <= 160.001).all()
    assert (top + down <= 120.001).all()
    share, ratio = across * down / (120 * 160), across / down
    assert share.min() >= 0.079
    assert share.max() <= 1.0001
    inside = (across < 159.9) & (down < 119.9)
    assert ratio[inside].min() >= 0.75 - 1e-4
    assert ratio[inside].max() <= 4 / 3 + 1e-4
    assert ratio[inside & (share < 0.5)].log().mean().abs() < 0.02  # as many wide as tall
    assert share[inside & (share < 0.5)].mean().item() == pytest.approx(0.29, abs=0.02)
    assert set(mirrored.tolist()) == {0.0, 1.0}
    assert mirrored.mean().item() == pytest.approx(0.5, abs=0.03)


# ---------------------------------------------------------------------- other people's folders


def say(data, capsys, **flags):
    """Loads a data set; returns its parts and the line that was printed."""
    dev = device()
    dev.quiet = False
    found = load(data, channels=3, dev=dev, **flags)
    return found, capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("Training", "Testing"), (12, 0, 12)),
        (("Train", "valid"), (12, 0, 12)),
        (("TRAIN", "Validation", "TEST"), (12, 12, 12)),
        (("train", "dev", "test"), (12, 12, 12)),
    ],
)
def test_parts_have_many_names(names, wanted):
    make_tree("tree", names=names)
    parts = load("folder:tree", val=wanted[1])
    assert tuple(len(part) if part else 0 for part in parts) == wanted
    assert parts[0].facts["classes"] == ["cat", "dog"]


def test_hidden_folders_are_no_classes(capsys):
    make_tree("tree")
    make_tree("tree/cat", classes=(".ipynb_checkpoints",), count=3)
    for name in (".ipynb_checkpoints", "__MACOSX", ".git"):
        Path("tree", name).mkdir()
    Path("tree/cat/.hidden.png").write_bytes(b"")
    (train, _, test), line = say("folder:tree", capsys)
    assert len(train) + len(test) == 12
    assert "2 classes (cat, dog)" in line


def test_a_class_may_be_called_train(capsys):
    make_tree("tree", classes=("bus", "train", "car"))
    (train, _, _), line = say("folder:tree", capsys)
    assert train.facts["classes"] == ["bus", "car", "train"]
    assert "3 classes (bus, car, train)" in line


def test_what_lies_beside_the_parts_is_named(capsys):
    make_tree("tree", names=("train", "test", "more"))
    (train, _, test), line = say("folder:tree", capsys)
    assert (len(train), len(test)) == (12, 12)
    assert "more beside train/ is left out" in line


def test_two_folders_for_one_part_are_refused(refused):
    make_tree("tree", names=("train", "val", "valid"))
    assert "val/ and valid/ are both the val set" in refused(lambda: load("folder:tree"))
    make_tree("alone", names=("test",))
    assert "no train/" in refused(lambda: load("folder:alone"))


def test_every_suffix_subfolders_and_links_are_read():
    image = Image.new("RGB", (8, 8))
    for number, suffix in enumerate(sorted(files.SUFFIXES)):
        path = Path("real/deep", f"{number}{suffix.upper() if number % 2 else suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".pgm": "PPM"}.get(suffix)
        image.save(path, kind)
    Path("tree").mkdir()
    for name in ("a", "b"):
        Path("tree", name).symlink_to(Path("real").absolute())
    Path("real/deep/back").symlink_to(Path("real").absolute())  # leads back
    train, _, test = load("folder:tree")
    assert len(train) + len(test) == 2 * len(files.SUFFIXES)
    assert len(files.find_images([Path("tree")])) == 2 * len(files.SUFFIXES)


@pytest.mark.parametrize(
    ("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)]
)
def test_deep_grey_has_one_scale_for_a_set(bits, top, capsys):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for number, light in enumerate((0.25, 0.5, 1.0) * 4):  # of the range
        path = Path("tree", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.round(ramp * (top * light / 63)).astype(np.uint16)
        Image.fromarray(values).save(path)
    (train, _, test), line = say("folder:tree", capsys)
    assert train.facts["top"] == top
    assert f"{top} is white in all of them" in line
    pixels = torch.cat([train.images.pixels, test.images.pixels])
    peaks = pixels.amax((1, 2, 3)).sort().values
    assert peaks.tolist() == [64] * 4 + [128] * 4 + [255] * 4  # the sets' brightness is kept
    assert len(pixels[peaks.argmax()].unique()) == min(64, 2**bits)


def test_further_pages_are_counted(capsys):
    make_tree("tree")
    pages = [Image.new("L", (8, 8), shade) for shade in (0, 90, 200)]
    pages[0].save("tree/cat/stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save("tree/cat/film.gif", save_all=True, append_images=pages[1:])
    _, line = say("folder:tree", capsys)
    assert "2 files have further pages: the first is read" in line


def test_one_class_and_one_image_are_said(capsys, refused):
    make_tree("tree", classes=("only",))
    _, line = say("folder:tree", capsys)
    assert "1 class (only)" in line
    assert "every answer is right" in line
    make_tree("two", classes=("a",), count=2)
    (train, val, _), line = say("folder:two", capsys, val=100, chosen=[])
    assert (len(train), val) == (1, None)  # nobody asked for a validation set
    assert "too small for a validation set" in line
    assert "--val 1" in refused(lambda: load("folder:two", val=1, typed=["val"]))


def test_too_few_examples_for_the_processes_are_found_before_training(refused):
    make_tree("tree", names=("train", "test"), count=3)
    line = refused(lambda: load("folder:tree", dev=device(world=8)))
    assert "the train set of folder:tree has 6 examples, which 8 processes" in line
    assert "val set" in refused(lambda: load("folder:tree", val=1, dev=device(world=2)))


def test_a_class_whose_name_is_no_utf8(capsys):
    import os

    make_tree("tree")
    os.rename(b"tree/cat", b"tree/c\xe9")
    (train, _, _), line = say("folder:tree", capsys)
    assert train.facts["classes"] == ["c\ufffd", "dog"]
    assert "c\ufffd" in line


def test_damaged_exif_and_webp_are_read_or_named(refused):
    exif = Image.Exif()
    exif[282] = (1, 0)  # a resolution with denominator zero
    exif[274] = 6
    image = Image.new("RGB", (8, 4), "red")
    image.save("exif.jpg", exif=exif.tobytes())
    assert files.open_image("exif.jpg").size in ((4, 8), (8, 4))

    def broken(_):
        raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:  # what an older Pillow does
        patch.setattr(files.ImageOps, "exif_transpose", broken)
        assert files.open_image("exif.jpg").size == (8, 4)  # as it is stored
    make_tree("tree")
    Image.new("RGB", (8, 8)).save("tree/cat/0.webp")
    content = Path("tree/cat/0.webp").read_bytes()
    Path("tree/cat/0.webp").write_bytes(content[:21])
    assert "0.webp is not a readable image" in refused(lambda: load("folder:tree"))

    def cut(_):
        raise struct.error("unpack requires a buffer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.Image, "open", cut)
        assert "is not a readable image" in files.ImageFiles(["a.webp"], 8)[0]


# ---------------------------------------------------------------------- other systems


def test_normal_numbers_are_float32_where_there_is_no_float64():
    class Metal(Draw):
        def uniform(self, low, high, *shape):
            drawn = super().uniform(low, high, *shape)
            return SimpleNamespace(cpu=lambda: drawn, device=SimpleNamespace(type="mps"))

    numbers = draw(50).normal(3)
    assert numbers.dtype == torch.float64
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda t, _device, kind=None: made.append(kind) or t)
        Metal([("test", 0)], 50, slice(0, 50), torch.device("cpu")).normal(3)
    assert made[-1] == torch.float32


def test_border_padding_without_the_devices_help():
    """MPS has no such padding: clamped places give the same pixels."""
    images = torch.rand(3, 2, 9, 7)
    grid = torch.rand(3, 5, 5, 2) * 4 - 2
    wanted = torch.nn.functional.grid_sample(images, grid, padding_mode="border")
    size = torch.tensor([7, 9])
    clamped = augment.clamped(grid, size)
    found = torch.nn.functional.grid_sample(images, clamped, align_corners=False)
    torch.testing.assert_close(found, wanted)


def test_a_default_validation_part_is_the_same_after_resuming():
    """Nobody typed --val: the default of 100, cut to a tenth, is so again."""
    make_tree("tree", count=30)
    flags = ["--quiet", "--data", "folder:tree", "--batch-size", "8"]
    toy.main([*flags, "--run-dir", "run", "--max-steps", "2"])
    toy.main(["--quiet", "--resume", "--run-dir", "run"])
    assert toy.main(["--quiet", "--evaluate", "run/last.pt"])["test_count"] == 12
    dev = device()
    args = toy.parse_args(["--resume", "--run-dir", "run"])
    assert "val" not in args.chosen
    assert len(images.load_images(args, dev, 8, 1)[1]) == 4
