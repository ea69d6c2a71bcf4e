"""Pictures of what a trained generator makes, and of what it makes of your images.

python generative/sample.py                            # of the newest run: samples and more
python generative/sample.py digit.png photos/          # autoencoders, VAEs, flows: your own images
python generative/sample.py --checkpoint runs/generative/ddpm_small-digits/last.pt --sample-steps 10

With no input every model draws samples and goes from one image to another in its codes.
Autoencoders and VAEs rebuild test images, show their codes in two dimensions and the surface that
these decode to; diffusion shows noise becoming images as denoising.gif; realnvp2d its warped grid.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli, fail
from common.classify import find_images
from common.data.files import ImageFiles
from common.device import Device
from generative.evaluate import draw_samples, forked
from generative.model import MODELS
from generative.options import CODES, GANS, NOISES, VAES, build, load

FRAMES, SIDE = 16, 4  # of the animation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("generative", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    add("--count", type=cli.whole(1), default=64, help="how many samples (default: 64)")
    add("--seed", type=cli.whole(0), default=0, help="of the noise (default: 0)")
    add("--sample-steps", type=cli.whole(1), help="diffusion: of 1000 (default: as in training)")
    return parser.parse_args(argv)


def restore(checkpoint: dict, device: str, data_dir: str | None, steps: int | None = None) -> tuple:
    """The model of a checkpoint, with averaged weights if it has them; flags, facts, device."""
    flags = argparse.Namespace(**checkpoint["config"]["flags"])
    flags.device, flags.quiet, flags.fsdp, flags.typed = device, True, False, []
    flags.data_dir, flags.accumulate = data_dir or flags.data_dir, 1
    if steps and flags.model not in NOISES:
        fail(f"--sample-steps is for {', '.join(NOISES)}, not for {flags.model}")
    if steps and steps > 1000:
        fail(f"--sample-steps {steps}: the chain has 1000")
    flags.sample_steps = steps or flags.sample_steps
    dev = Device(flags)
    try:
        model = build(flags, checkpoint["dataset"])
        averaged = checkpoint["ema"] if flags.ema else {}
        model.load_state_dict(checkpoint["model"] | averaged)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        fail(f"the checkpoint is no whole {flags.model} ({str(error).strip().splitlines()[-1]})")
    return model.to(dev.device).eval(), flags, checkpoint["dataset"], dev


def read_images(files: list[Path], facts: dict, size: int) -> Tensor:
    """The middle squares of files, as the model takes them: (N, C, size, size), from 0 to 1."""
    images = list(ImageFiles([str(path) for path in files], size, facts["channels"]))
    for image in images:
        if isinstance(image, str):
            fail(image)
    return torch.stack(images).float() / 255


def codes_of(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """What a model with codes makes of images."""
    if name in CODES:
        return model.encoder(x)
    return model.encode(x if name in VAES else (255 * x + 0.5) / 256)[0]


def decode(model: nn.Module, codes: Tensor, name: str) -> Tensor:
    """Codes, or noise, to images."""
    if name in GANS:
        labels = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        return model.generator(codes, labels if model.num_classes else None)
    if name in NOISES:
        *_, last = model.denoise(codes.view(-1, *model.shape))
        return model.to_pixels(last)
    return model.decoder(codes) if name in CODES else model.decode(codes)


def between(first: Tensor, second: Tensor, share: float, straight: bool) -> Tensor:
    """A point on the way from one code (D,) to another: straight, or for noise on the sphere."""
    if straight:
        return first.lerp(second, share)
    angle = torch.acos((first @ second / (first.norm() * second.norm())).clamp(-1, 1))
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (weights[0] * first + weights[1] * second) / torch.sin(angle)


def interpolate(model: nn.Module, test, name: str, out: Path, rows: int = 6) -> None:
    """Writes interpolation.png: from one test image, or noise, to another, a row for each pair."""
    from common.plot import sheet

    if name in GANS:
        codes = model.noise(2 * rows)
    elif name in NOISES:
        codes = torch.randn(2 * rows, math.prod(model.shape), device=model.signal.device)
    else:
        rows = min(rows, len(test) // 2)
        codes = codes_of(model, test.examples(torch.arange(2 * rows))[0], name)
    if not rows:
        return
    straight, shares = name not in GANS + NOISES, [k / 8 for k in range(9)]
    path = [between(a, b, s, straight) for a, b in codes.view(rows, 2, -1) for s in shares]
    images = decode(model, torch.stack(path), name).float()
    sheet(images, out / "interpolation.png", columns=9)


def rebuild(model: nn.Module, x: Tensor, noise: float | None, out: Path) -> Tensor:
    """Writes reconstructions.png: images, with --noise spoilt ones, and what is rebuilt of them."""
    from common.plot import sheet

    seen = x + noise * torch.randn_like(x) if noise else x
    rebuilt = model.reconstruct(seen)
    rows = [x, seen.clamp(0, 1), rebuilt] if noise else [x, rebuilt]
    sheet(torch.cat(rows), out / "reconstructions.png", columns=len(x))
    return (rebuilt - x).square().flatten(1).sum(1)


def show_codes(model: nn.Module, flags: argparse.Namespace, parts: tuple, out: Path) -> None:
    """Writes codes.png, the test images' codes in two dimensions beside their two principal
    components, and manifold.png, what codes on a grid decode to (Fig. 4 of the VAE's paper)."""
    from common.plot import scatter, sheet

    train, _, test = parts
    x, labels = test.examples(torch.arange(min(len(test), 2000)))
    some = train.examples(torch.arange(min(len(train), 10_000)))[0].flatten(1)
    axes = torch.linalg.svd(some - some.mean(0), full_matrices=False)[2][:2]
    codes = codes_of(model, x, flags.model)
    panels = {flags.model: codes, "principal components": (x.flatten(1) - some.mean(0)) @ axes.T}
    scatter(panels, labels, test.facts["classes"], out / "codes.png", size=4)
    places = torch.special.ndtri(torch.linspace(0.03, 0.97, 15))  # equal shares of the prior
    grid = torch.cartesian_prod(-places, places).flip(1).to(codes)
    if flags.model in CODES:  # it has no prior: take the range of its codes
        grid = codes.mean(0) + grid * codes.std(0)
    images = decode(model, grid, flags.model).float()
    sheet(images, out / "manifold.png", columns=15, pixels=28)


def animate(model: nn.Module, out: Path) -> None:
    """Writes denoising.gif, from noise to images."""
    from PIL import Image

    noise = torch.randn(SIDE**2, *model.shape, device=model.signal.device)
    steps = [noise, *model.denoise(noise)]
    places = torch.linspace(0, len(steps) - 1, min(FRAMES, len(steps))).round().long().tolist()
    frames = []
    for place in places:
        images = model.to_pixels(steps[place]).view(SIDE, SIDE, *model.shape)
        sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (H, W, C)
        sheet = (255 * sheet).byte().cpu().numpy()
        frame = Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet)
        scale = max(1, 160 // frame.width)
        frame = frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST)
        frames.append(frame.quantize(16))  # shades: noise hardly compresses
    waits = [120] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(
        out / "denoising.gif", save_all=True, append_images=frames[1:], duration=waits, loop=0
    )


def show_plane(model: nn.Module, test, out: Path, count: int) -> None:
    """Writes grid.png: points and samples, points as noise, and the warped grid of the noise."""
    from matplotlib.figure import Figure

    from common.plot import save

    x = test.points[:count]
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    data, noise, grid = figure.subplots(1, 3)
    data.scatter(*x.T.cpu(), s=2, label="test points")
    data.scatter(*model.sample(len(x)).T.cpu(), s=2, label="samples")
    data.legend()
    noise.scatter(*model.encode(x)[0].T.cpu(), s=2, c=test.labels[: len(x)].cpu(), cmap="tab10")
    noise.set_title("the test points as noise", fontsize=10)
    line, places = torch.linspace(-3, 3, 400), torch.linspace(-3, 3, 25)
    for place in places:
        for points in ([line, place.expand(400)], [place.expand(400), line]):
            warped = model.decode(torch.stack(points, 1).to(x)).cpu()
            grid.plot(*warped.T, color="tab:blue", linewidth=0.5)
    grid.set_title("a straight grid of noise, decoded", fontsize=10)
    save(figure, out / "grid.png")


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> dict:
    """Draws the pictures; returns what it wrote, and of inputs what the model says of each."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    checkpoint = cli.open_checkpoint(args, "generative", MODELS)
    model, flags, facts, dev = restore(checkpoint, args.device, args.data_dir, args.sample_steps)
    name = flags.model
    print(f"{name} trained on {flags.data}, from {args.checkpoint}")
    if files and (name in GANS + NOISES or flags.data == "moons"):
        fail(f"{name} makes images, it has nothing to say of given ones: leave the inputs away")
    x = read_images(files, facts, flags.size).to(dev.device) if files else None
    parts = None if files or name in GANS + NOISES else load(flags, dev)
    cli.make_folder(args.out)
    dev.seed = args.seed
    with forked(f"sample {args.seed}", dev):
        if files:
            found = inputs(model, files, x, flags, args.out)
        else:
            show(model, flags, parts, dev, args)
            found = {}
    written = sorted(path.name for path in args.out.iterdir())
    print(f"{args.out} holds {', '.join(written)}")
    return found or {"written": written}


def inputs(
    model: nn.Module, files: list[Path], x: Tensor, flags: argparse.Namespace, out: Path
) -> dict[str, float]:
    """Rebuilds the user's images, or measures them with a flow; a number for each file."""
    if flags.model in CODES + VAES:
        noise = flags.noise if flags.model in CODES else None
        values, what = rebuild(model, x, noise, out), "squared error"
    else:
        values, what = model.measures(x)["bits"], "bits a dimension"
    found = dict(zip(map(str, files), values.tolist(), strict=True))
    for path, value in found.items():
        print(f"{path}: {what} {value:.4g}")
    return found


def show(
    model: nn.Module,
    flags: argparse.Namespace,
    parts: tuple | None,
    dev: Device,
    args: argparse.Namespace,
) -> None:
    """All pictures that the model has without inputs."""
    from common.plot import sheet

    name, out = flags.model, args.out
    if flags.data == "moons":
        return show_plane(model, parts[2], out, 30 * args.count)
    columns = math.isqrt(args.count - 1) + 1
    samples = draw_samples(model, args.count, dev, f"samples {args.seed}")
    if flags.conditional:  # a column a class
        columns = model.num_classes
        labels = torch.arange(args.count, device=dev.device) % columns
        samples = model.sample(args.count, labels)
    sheet(samples, out / "samples.png", columns)
    interpolate(model, parts and parts[2], name, out)
    if name in NOISES:
        animate(model, out)
    if name in CODES + VAES:
        x = parts[2].examples(torch.arange(min(12, len(parts[2]))))[0]
        rebuild(model, x, flags.noise if name in CODES else None, out)
        if model.latent == 2:
            show_codes(model, flags, parts, out)


if __name__ == "__main__":
    main()
