"""The claims of dalle/README.md as experiments, on the world of shapes.

    python dalle/claims.py codes       # the number of codes: how many are used, what is rebuilt
    python dalle/claims.py sparse      # row, column and square attention against dense
    python dalle/claims.py rerank      # the best of 1, 8 and 64 draws by CLIP (Fig. 6)
    python dalle/claims.py captions    # plain, descriptive and mixed captions (DALL-E 3)

`sparse` and `captions` train their transformers on the codes of one dVAE for each seed, which
`codes` trains too; `rerank` draws with the one that `sparse` trains, and trains CLIP by
clip/train.py. Each transformer is judged on --prompts unseen captions.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from common import cli
from common.claims import (
    arm_folder,
    finished,
    history,
    plus_minus,
    run_arms,
    run_script,
    write_summary,
)
from common.folder import make_folder
from common.scenes import one_object, ready, wanted
from dalle.data import Words
from dalle.evaluate import draw
from dalle.rerank import best_of, read_clip
from dalle.sample import open_models
from dalle.train import QUICK
from dalle.train import main as train

CLIP = Path(__file__).parents[1] / "clip" / "train.py"
NUMBERS = (8, 32, 128, 512)  # of `codes`
BEST_OF = (1, 8, 64)  # of `rerank`
CODES, SPARSE = "512 codes", "sparse"  # the arms that others build on
SHOWN = {
    "codes": ("used", "perplexity", "psnr"),
    "sparse": ("image_loss", "right"),
    "rerank": ("right",),
    "captions": ("right", "plain_right", "image_loss"),
}
Results = dict[str, list[dict[str, float]]]
Found = tuple[Results, dict[str, str], dict[str, list[Path]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.claims_parser("dalle", __doc__, RUN, epochs=QUICK["epochs"])
    add, count = parser.add_argument, dict(type=cli.integer(1), metavar="N")
    add("--codes-epochs", **count, default=2, help="of each dVAE (default: 2)")
    text = "unseen captions to draw for, with each transformer (default: 200)"
    add("--prompts", **count, default=200, help=text)
    add("--clip-epochs", **count, default=4, help="of CLIP, for rerank (default: 4)")
    text = "end each run after N steps, to see how it works"
    add("--max-steps", **count, help=text)
    return parser.parse_args(argv)


def shared_flags(args: argparse.Namespace, epochs: int) -> list[str]:
    """What all runs of a claim have in common."""
    more = ["--max-steps", str(args.max_steps)] if args.max_steps else []
    return ["--epochs", str(epochs), "--quiet", *more]


def run_codes(args: argparse.Namespace, numbers: tuple[int, ...] = (512,)) -> Found:
    """dVAEs of so many codes."""
    arms = {f"{k} codes": ["--num-codes", str(k)] for k in numbers}
    shared = ["--model", "dvae_small", *shared_flags(args, args.codes_epochs)]
    return run_arms("dalle", train, arms, shared, args)


def run_streams(args: argparse.Namespace, arms: dict[str, list[str]]) -> Found:
    """Transformers of several kinds on the codes of one dVAE for each seed."""
    shared = [*shared_flags(args, args.epochs), "--prompts", str(args.prompts)]
    whole: Found = ({arm: [] for arm in arms}, {}, {arm: [] for arm in arms})
    for seed in args.seeds:
        one = argparse.Namespace(**vars(args) | {"seeds": [seed]})
        codes = ["--codes", str(run_codes(one)[2][CODES][0])]
        found = run_arms("dalle", train, {arm: [*flags, *codes] for arm, flags in arms.items()},
                         shared, one)  # fmt: skip
        for arm in arms:
            whole[0][arm] += found[0][arm]
            whole[1].setdefault(arm, found[1][arm])
            whole[2][arm] += found[2][arm]
    return whole


# ---------------------------------------------------------------------- the claims


def compare_codes(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Codebooks of several sizes: how many codes are in use, and how near what is rebuilt comes."""
    results, commands, _ = run_codes(args, NUMBERS)
    from common.plot import bars

    panels = {
        "codes in use (%)": ("test_used", 100),
        "perplexity of the codes": ("test_perplexity", 1),
        "rebuilt images: PSNR (dB)": ("test_psnr", 1),
    }
    bars({title: {arm: [scale * run[key] for run in runs] for arm, runs in results.items()}
          for title, (key, scale) in panels.items()}, args.out / "claim_codes.png")  # fmt: skip
    return results, commands


def compare_attention(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """The paper's mixture of sparse layers, rows alone, and dense attention, by epochs."""
    arms = {SPARSE: [], "rows alone": ["--attention", "row"], "dense": ["--attention", "dense"]}
    results, commands, folders = run_streams(args, arms)
    from common.plot import spread

    curves = {}
    for arm, places in folders.items():
        runs = [history(folder, "val_image_loss") for folder in places]
        epochs = [epoch for epoch in runs[0] if all(epoch in run for run in runs)]
        curves[arm] = {epoch: [run[epoch] for run in runs] for epoch in epochs}
    path = args.out / "claim_sparse.png"
    spread(curves, path, x="epoch", y="nats an image token, validation")
    return results, commands


def open_run_of(folder: Path, args: argparse.Namespace) -> tuple:
    """What `open_models` of sample.py returns, of a run."""
    place = dict(checkpoint=folder / "last.pt", out=args.out, data_dir=args.data_dir)
    more = dict(device=args.device, sentences=["draws"], rerank=None)
    return open_models(argparse.Namespace(**place, **more))


@torch.inference_mode()
def drawn_for(folder: Path, args: argparse.Namespace, seed: int) -> tuple[Tensor, list[str]]:
    """Draws (N, 64, 3, S, S) for --prompts unseen captions, at temperature 1, and the captions."""
    dvae, model, facts, flags, dev, _ = open_run_of(folder, args)
    asked = one_object(args.prompts, flags.size)
    words, n = Words(facts), max(BEST_OF)
    text = words.encode(asked.captions).repeat_interleave(n, 0)
    images = draw(model, dvae, text, dev, seed=seed, temperature=1.0)
    return images.unflatten(0, (args.prompts, n)), asked.captions


def compare_best_of(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Of several draws the one that CLIP finds nearest to its caption."""
    _, commands, folders = run_streams(args, {SPARSE: []})
    results: Results = {f"best of {n}": [] for n in BEST_OF}
    for seed, folder in zip(args.seeds, folders[SPARSE], strict=True):
        flags = [*shared_flags(args, args.clip_epochs), "--seed", str(seed)]
        place = arm_folder("dalle", "clip", flags)
        if not finished(place):
            where = ["--run-dir", str(place), "--data-dir", args.data_dir, "--device", args.device]
            run_script(CLIP, [*flags, *where, "--resume"])
        images, captions = drawn_for(folder, args, seed)
        dev = open_run_of(folder, args)[4]
        scores = read_clip(place, dev).scores(images, captions).cpu()
        shapes, colours = wanted(captions)
        right = (
            ready(dev)
            .right(
                images.flatten(0, 1),
                shapes.repeat_interleave(images.shape[1]),
                colours.repeat_interleave(images.shape[1]),
            )
            .unflatten(0, images.shape[:2])
        )
        for n in BEST_OF:
            results[f"best of {n}"].append({"test_right": best_of(scores, right, n)})
    from common.plot import spread

    points = {n: [100 * run["test_right"] for run in results[f"best of {n}"]] for n in BEST_OF}
    path = args.out / "claim_rerank.png"
    spread({"the best by CLIP": points}, path, x="draws", y="shape and colour right (%)", log=True)
    return results, dict.fromkeys(results, commands[SPARSE])


def compare_captions(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Transformers that learnt from plain captions, from descriptive ones, and from a mixture."""
    arms = {"plain": ["--captions", "plain"], "descriptive": [], "mixed": ["--captions", "mixed"]}
    results, commands, _ = run_streams(args, arms)
    from common.plot import bars

    panels = {
        "descriptive prompts: shape and colour right (%)": "test_right",
        "plain prompts: shape right (%)": "test_plain_right",
    }
    bars({title: {arm: [100 * run[key] for run in runs] for arm, runs in results.items()}
          for title, key in panels.items()}, args.out / "claim_captions.png")  # fmt: skip
    return results, commands


RUN = {
    "codes": compare_codes,
    "sparse": compare_attention,
    "rerank": compare_best_of,
    "captions": compare_captions,
}


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Runs what isn't done yet; writes claim_NAME.json and .png; returns the summary."""
    args = parse_args(argv)
    make_folder(args.out)
    begun = time.monotonic()
    results, commands = RUN[args.claim](args)
    path = args.out / f"claim_{args.claim}.json"
    summary = write_summary(path, results, commands)
    width = max(map(len, summary))
    for arm, runs in results.items():
        words = []
        for key in SHOWN[args.claim]:
            values = [run[f"test_{key}"] for run in runs if f"test_{key}" in run]
            percent = key in ("used", "right", "plain_right")
            how = {} if percent else dict(scale=1, digits=2, unit="")
            words += [f"{key} {plus_minus(values, **how)}"] if values else []
        print(f"{arm:>{width}}: {', '.join(words)}")
    print(f"wrote {path} and {path.with_suffix('.png')} in {time.monotonic() - begun:.0f} s")
    return summary


if __name__ == "__main__":
    main()
