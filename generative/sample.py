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
from common.data.files import ImageFiles, find_images
from common.data.images import ImageSet
from common.device import Device, forked
from common.folder import make_folder, open_run
from generative.data import PointSet, load
from generative.evaluate import draw_samples
from generative.model import MODELS
from generative.options import ROWS, build, check_steps

FRAMES, SIDE = 16, 4  # of the animation
MADE = ("samples.png", "interpolation.png", "reconstructions.png", "codes.png", "manifold.png")
MADE += ("denoising.gif", "grid.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("generative", __doc__)
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="image files, or folders of them")
    text = "how many samples (default: 64)"
    add("--count", type=cli.integer(1), metavar="N", default=64, help=text)
    add("--seed", type=cli.integer(0), metavar="N", default=0, help="of the noise (default: 0)")
    text = "diffusion: of 1000 (default: as in training)"
    add("--sample-steps", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


def open_model(args: argparse.Namespace) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained model, with averaged weights if it has them; the flags of its training, facts
    of its data, a device, and the folder for what is made."""
    checkpoint, flags, dev, out = open_run(args, "generative", MODELS)
    if args.sample_steps:
        having = [name for name, row in ROWS.items() if "sample_steps" in row.network]
        if flags.model not in having:
            fail(f"--sample-steps is for {', '.join(having)}, not for {flags.model}")
        check_steps(args.sample_steps)
        flags = flags.but(sample_steps=args.sample_steps)
    try:
        model = build(flags, checkpoint["dataset"])
        averaged = checkpoint["ema"] if flags.ema else {}
        model.load_state_dict(checkpoint["model"] | averaged)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        fail(f"the checkpoint is no whole {flags.model} ({str(error).strip().splitlines()[-1]})")
    return model.to(dev.device).eval(), flags, checkpoint["dataset"], dev, out


def read_images(files: list[Path], facts: dict, size: int) -> Tensor:
    """The middle squares of files, as the model takes them: (N, C, size, size), from 0 to 1."""
    paths, channels = [str(path) for path in files], len(facts["mean"])
    images = list(ImageFiles(paths, size, channels, top=facts.get("top")))
    for image in images:
        if isinstance(image, str):
            fail(image)
    return torch.stack(images).float() / 255


def between(first: Tensor, second: Tensor, share: float, straight: bool) -> Tensor:
    """A point on the way from one code (D,) to another: straight, or for noise on the sphere."""
    if straight:
        return first.lerp(second, share)
    angle = torch.acos((first @ second / (first.norm() * second.norm())).clamp(-1, 1))
    weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (weights[0] * first + weights[1] * second) / torch.sin(angle)


def interpolate(model: nn.Module, test: ImageSet | None, out: Path, rows: int = 6) -> None:
    """Writes interpolation.png: from one test image, or noise, to another, a row for each pair."""
    from common.plot import sheet

    if model.infers:
        rows = min(rows, len(test) // 2)
        if not rows:
            print("there is one test image: none to go to from there")
            return
        codes = model.to_codes(test.examples(torch.arange(2 * rows))[0])
    else:
        codes = model.draw_codes(2 * rows)
    shares = [k / 8 for k in range(9)]
    path = [between(a, b, s, model.straight) for a, b in codes.view(rows, 2, -1) for s in shares]
    sheet(model.from_codes(torch.stack(path)).float(), out / "interpolation.png", columns=9)


def rebuild(model: nn.Module, x: Tensor, out: Path) -> Tensor:
    """Writes reconstructions.png: images, with --noise spoilt ones, and what is rebuilt of them.

    Returns the squared error of each (N,).
    """
    from common.plot import sheet

    noisy = bool(getattr(model, "noise", 0))
    seen = model.spoil(x) if noisy else x
    rebuilt = model.reconstruct(seen)
    rows = [x, seen.clamp(0, 1), rebuilt] if noisy else [x, rebuilt]
    sheet(torch.cat(rows), out / "reconstructions.png", columns=len(x))
    return (rebuilt - x).square().flatten(1).sum(1)


def show_codes(model: nn.Module, name: str, train: ImageSet, test: ImageSet, out: Path) -> None:
    """Writes codes.png, the test images' codes in two dimensions beside their two principal
    components, and manifold.png, what codes on a grid decode to (Fig. 4 of the VAE's paper)."""
    from common.plot import scatter, sheet

    x, labels = test.examples(torch.arange(min(len(test), 2000)))
    some = train.examples(torch.arange(min(len(train), 10_000)))[0].flatten(1)
    axes = torch.linalg.svd(some - some.mean(0), full_matrices=False)[2][:2]
    codes = model.to_codes(x)
    panels = {name: codes}
    if len(axes) == 2:  # more than one training image
        panels["principal components"] = (x.flatten(1) - some.mean(0)) @ axes.T
    scatter(panels, labels, test.facts["classes"], out / "codes.png", size=4)
    places = torch.special.ndtri(torch.linspace(0.03, 0.97, 15))  # equal shares of the prior
    grid = torch.cartesian_prod(-places, places).flip(1).to(codes)
    if not model.prior and len(codes) > 1:  # take the range of its codes
        grid = codes.mean(0) + grid * codes.std(0)
    sheet(model.from_codes(grid).float(), out / "manifold.png", columns=15, pixels=28)


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


def show_plane(model: nn.Module, test: PointSet, out: Path, count: int) -> None:
    """Writes grid.png: points and samples, points as noise, and the warped grid of the noise."""
    from matplotlib.figure import Figure

    from common.plot import save

    x = test.points[:count]
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    data, noise, grid = figure.subplots(1, 3)
    data.scatter(*x.T.cpu(), s=2, label="test points")
    data.scatter(*model.sample(len(x)).T.cpu(), s=2, label="samples")
    data.legend()
    noise.scatter(*model.to_codes(x).T.cpu(), s=2, c=test.labels[: len(x)].cpu(), cmap="tab10")
    noise.set_title("the test points as noise", fontsize=10)
    line, places = torch.linspace(-3, 3, 400), torch.linspace(-3, 3, 25)
    for place in places:
        for points in ([line, place.expand(400)], [place.expand(400), line]):
            warped = model.from_codes(torch.stack(points, 1).to(x)).cpu()
            grid.plot(*warped.T, color="tab:blue", linewidth=0.5)
    grid.set_title("a straight grid of noise, decoded", fontsize=10)
    save(figure, out / "grid.png")


@cli.command
@torch.inference_mode()
def main(argv: list[str] | None = None) -> dict:
    """Draws the pictures; returns what it wrote, and of inputs what the model says of each."""
    args = parse_args(argv)
    files = find_images(args.inputs)
    model, flags, facts, dev, out = open_model(args)
    points = flags.data == "moons"
    if files and (points or not model.infers):
        made = "points" if points else "images"
        fail(f"{flags.model} makes {made}, it has nothing to say of given ones: "
             "leave the inputs away")  # fmt: skip
    x = read_images(files, facts, flags.size).to(dev.device) if files else None
    train, _, test = load(flags, dev) if model.infers and not files else (None, None, None)
    with forked(f"sample {args.seed}", dev):
        if files:
            return inputs(model, files, x, out)
        make_folder(out, *MADE)
        if points:
            show_plane(model, test, out, 30 * args.count)
        else:
            show(model, flags, train, test, dev, args, out)
    written = say_written(out)
    return {"written": written}


def say_written(out: Path) -> list[str]:
    """Prints what is in a folder of results; returns the names."""
    written = sorted(path.name for path in out.iterdir())
    print(f"{out} holds {', '.join(written)}")
    return written


def inputs(model: nn.Module, files: list[Path], x: Tensor, out: Path) -> dict[str, float]:
    """Rebuilds the user's images, or measures them with a flow; a number for each file."""
    rebuilds = hasattr(model, "reconstruct")
    if rebuilds:
        make_folder(out, "reconstructions.png")
        values, what = rebuild(model, x, out), "squared error"
    else:
        values, what = model.measures(x)["bits"], "bits a dimension"
    found = dict(zip(map(str, files), values.tolist(), strict=True))
    for path, value in found.items():
        print(f"{path}: {what} {value:.4g}")
    if rebuilds:
        say_written(out)
    return found


def show(
    model: nn.Module,
    flags: cli.Flags,
    train: ImageSet | None,
    test: ImageSet | None,
    dev: Device,
    args: argparse.Namespace,
    out: Path,
) -> None:
    """Writes all pictures that the model has without inputs."""
    from common.plot import sheet

    columns = math.isqrt(args.count - 1) + 1
    samples = draw_samples(model, args.count, dev, f"samples {args.seed}")
    if flags.conditional:  # a column a class
        columns = model.num_classes
        labels = torch.arange(args.count, device=dev.device) % columns
        samples = model.sample(args.count, labels)
    sheet(samples, out / "samples.png", columns)
    interpolate(model, test, out)
    if hasattr(model, "denoise"):
        animate(model, out)
    if hasattr(model, "reconstruct"):
        rebuild(model, test.examples(torch.arange(min(12, len(test))))[0], out)
        if model.latent == 2:
            show_codes(model, flags.model, train, test, out)


if __name__ == "__main__":
    main()
