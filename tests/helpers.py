"""What the tests of several milestones use; no milestone has to be there."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


def count(module: nn.Module) -> int:
    """The number of learnt parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def perturb(model: nn.Module) -> nn.Module:
    """Norms, biases and what begins at zero made random, so that none hides a wrong wire."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() == 1:
                scale = "weight" in name or "var" in name
                tensor.copy_(noise + 0.5 if scale else noise - 0.5)
            elif tensor.is_floating_point() and not tensor.any():
                tensor.copy_(noise / 5 - 0.1)
    return model


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The model of a run's last checkpoint."""
    return torch.load(Path(folder, "last.pt"))["model"]


def check_published(sample, theirs, entry, argv=(), inputs=None):
    """A sample.py answers with the weights of a file as `theirs` does, of which they are.

    The image has the size that `entry`, torchvision's published weights, says; `inputs` are the
    mean and deviation for `theirs`, if they aren't those of `entry`. Returns what sample.py found.
    """
    cut, random = entry.transforms(), torch.Generator().manual_seed(1)
    (side,), (size,) = cut.resize_size, cut.crop_size
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=random)
    Image.fromarray(pixels.numpy()).save("noise.png")
    torch.save(theirs.state_dict(), "theirs.pth")
    argv = ["--weights", "theirs.pth", *argv, "noise.png", "--out", "out"]
    found = sample.main(argv)["noise.png"]
    begin = (side - size) // 2
    middle = pixels.permute(2, 0, 1)[:, begin : begin + size, begin : begin + size] / 255
    mean, std = inputs or (cut.mean, cut.std)
    x = (middle - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        shares, places = theirs.eval()(x[None]).softmax(1)[0].topk(5)
    assert [name for name, _ in found] == [entry.meta["categories"][i] for i in places.tolist()]
    torch.testing.assert_close(torch.tensor([p for _, p in found]), shares, rtol=1e-3, atol=1e-6)
    assert Path("out/predictions.jpg").exists()
    return found


def make_tree(root="tree", classes=("cat", "dog"), count=6, names=("",), sizes=((20, 14, 3),)):
    """Images of noise, brighter from class to class: ROOT/NAME/CLASS/NUMBER.png.

    `sizes` are taken in turn: (H, W, 3) in colour, (H, W) in grey.
    """
    random = np.random.default_rng(0)
    for name in names:
        for number, label in enumerate(classes):
            folder = Path(root, name, label)
            folder.mkdir(parents=True)
            low = 127 * number // max(1, len(classes) - 1)
            for i in range(count):
                pixels = random.integers(low, low + 128, sizes[i % len(sizes)])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
