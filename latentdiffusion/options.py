"""The recipes by model and data, the flags that both stages share, and how a model is built."""

import argparse
import re
from pathlib import Path

import torch
from torch import nn

from common import cli, fail
from common.checkpoint import read_checkpoint
from common.data.captions import CaptionSet, add_scene_flags
from common.data.images import add_image_flags
from common.data.tokens import FEWEST
from common.device import Device
from common.folder import as_spelt_now, read_flags
from latentdiffusion.autoencoder import KINDS, SIZES, make_autoencoder, small_settings
from latentdiffusion.data import DATA, learn_words, name_of, usual_size
from latentdiffusion.diffusion import SD1, LatentDiffusion, assemble
from latentdiffusion.diffusion import small_settings as small_model
from latentdiffusion.evaluate import JUDGED
from latentdiffusion.model import MODELS
from latentdiffusion.published import Found, is_published, read_autoencoder, read_published
from latentdiffusion.schedulers import PREDICTIONS, SAMPLERS

AUTOENCODERS = ("kl_f4", "kl_f8", "vq_f4", "vq_f8", "kl_small", "vq_small")
FACTORS = (1, 2, 4, 8)
FIXED = (  # by a checkpoint
    *("size", "factor", "latent_channels", "width", "ae_width", "regulariser", "num_codes"),
    *("conditioning", "vocab_size", "weights", "autoencoder", "dropout", "prediction", "objects"),
)

# Flags of one stage only, with what they are by default; the others say why they mean nothing.
FIRST = dict(kl_weight=1e-6, adversarial=0.5, adversarial_from=50_001, error="absolute")
SECOND = dict(
    autoencoder=None,
    weights=None,
    ae_steps=1200,
    ae_batch_size=16,
    ae_width=32,
    regulariser="kl",
    conditioning="attention",
    prediction="epsilon",
    vocab_size=1024,
    drop=0.1,
    guidance=3.0,
    sampler="dpm",
    sample_steps=20,
    ema=0.999,
    dropout=0.0,
    samples=200,
    judged="test",
    frechet=False,
)
FIRST_STAGE = ("ae_steps", "ae_batch_size", "ae_width", "regulariser", "factor", "latent_channels")
SMALL = dict(steps=1200, batch_size=16, lr=2e-3, warmup=50, decay=True)
LARGE = dict(steps=200_000, batch_size=4, lr=2e-5, warmup=0, decay=False)  # 4.5e-6 an example


def recipe(
    model: str,
    data: str | None,
    paper: bool,
    weights: str | None = None,
    autoencoder: str | None = None,
    **given,
) -> tuple[dict, dict[str, str]]:
    """A model's own defaults, and the flags that mean nothing for it."""
    own, nothing = {}, {}
    if weights and not given.get("model_chosen"):
        own["model"] = model = model_of(weights)
    small = model.endswith("_small")
    data = data or ("captions:data/laion.csv" if paper else "shapes")
    own |= dict(data=data, size=usual_size(model, data))
    if model in AUTOENCODERS:
        own |= FIRST | (SMALL if small else LARGE)
        own |= dict(val=0 if paper else 500, width=32, factor=int(model[-1]) if not small else 4)
        if small:
            own |= dict(kl_weight=1e-3, adversarial=0.0, adversarial_from=0, error="squared")
        nothing |= dict.fromkeys(SECOND, "it is of the second stage, and this model is a first one")
        nothing["fsdp"] = "the first stage is small enough for each process to hold it whole"
        if model[:2] == "kl":
            nothing["num_codes"] = "a KL autoencoder has no codebook"
        else:
            nothing["kl_weight"] = "a VQ autoencoder has a codebook in its place"
    else:
        nothing |= dict.fromkeys(FIRST, "it is of the first stage: see --model kl_small")
        own |= {k: v for k, v in SECOND.items() if k not in ("autoencoder", "weights")}
        own |= dict(prediction="v_prediction") if small else {}
        nothing["num_codes"] = "it is of the first stage: see --model vq_small"
    if model == "stable_diffusion":
        own |= dict(steps=1000, batch_size=4, lr=1e-5 if weights else 1e-4, warmup=0, decay=False)
        own |= dict(vocab_size=49_408, ema=0.9999, guidance=7.5, sample_steps=50, sampler="ddim")
        own |= dict(size=512 if weights else own["size"], ae_steps=20_000, ae_batch_size=4, val=100)
        if paper:  # of the card of version 1-1, but for its data
            own |= dict(steps=237_000, batch_size=2048, lr=1e-4, warmup=10_000, size=256, val=0)
    if not small:
        reason = f"{model} has its own"
        sizes = ("factor", "latent_channels", "width", "ae_width", "regulariser", "conditioning")
        nothing |= dict.fromkeys((*sizes, "prediction", "dropout", "num_codes"), reason)
    if weights:
        reason = "the weights have theirs"
        own_too = ("autoencoder", "width", "conditioning", "prediction", "dropout", "vocab_size")
        nothing |= dict.fromkeys((*FIRST_STAGE, *own_too), reason)
    elif autoencoder:
        nothing |= dict.fromkeys(FIRST_STAGE, "--autoencoder names one that is trained")
    elif given.get("factor") == 1 and model == "ldm_small":
        reason = "with --factor 1 there is no autoencoder: pixels are denoised"
        nothing |= {flag: reason for flag in FIRST_STAGE if flag != "factor"}
    own["objects"] = 1 if name_of(data) == "shapes" and small else 3
    if name_of(data) != "shapes":
        nothing["objects"] = "only scenes of shapes have a number of objects that is known"
    if known := flags_of(weights or autoencoder):  # images as those have seen them
        own |= {k: known[k] for k in ("size", "objects") if k in known and k not in nothing}
    if name_of(data) != "shapes" and model not in AUTOENCODERS:
        own["samples"] = 0
        reason = "what images show is measured in the world of shapes alone"
        nothing |= dict.fromkeys(("judged", "frechet"), reason)
        if given.get("samples"):
            nothing["samples"] = reason
    elif given.get("samples") == 0:
        nothing |= dict.fromkeys(("judged", "frechet"), "with --samples 0 no images are measured")
    if not data.startswith("shapes") and small:
        own |= dict(steps=3000, lr=1e-3)
    return own, nothing


def flags_of(name: str | None) -> dict:
    """The flags of a run that --weights or --autoencoder names; none of a published folder."""
    path = Path(name or "").expanduser()
    return as_spelt_now(read_flags(path.parent if path.is_file() else path)) if name else {}


def model_of(weights: str) -> str:
    """The name of our model that weights are for: that of a run, or Stable Diffusion."""
    name = flags_of(weights).get("model", "stable_diffusion")
    return name if name in MODELS and name not in AUTOENCODERS else "stable_diffusion"


def a_factor(text: str) -> int:
    """A parser of the factors that there are."""
    if text not in map(str, FACTORS):
        raise argparse.ArgumentTypeError(f"needs 1, 2, 4 or 8, not {text!r}")
    return int(text)


def add_flags(parser: cli.Parser) -> None:
    """All flags beside the shared ones."""
    add_image_flags(parser)
    add_scene_flags(parser)
    add, switch = parser.add_argument, parser.add_switch
    count, amount, whole = cli.integer(1), cli.not_negative, cli.integer(0)
    add("--size", type=cli.integer(8), metavar="S", group="data", help="pixels of an image's side")
    text = "at most so many tokens of a vocabulary that is trained on the captions"
    add(
        "--vocab-size", type=cli.integer(FEWEST), metavar="N", default=1024, group="data", help=text
    )
    add("--warmup", type=whole, metavar="N", group="training", help="steps in which the rate rises")
    switch("--decay", group="training", help="let the rate fall to zero, along a cosine")
    text = "start from published weights (Stable Diffusion's, in diffusers' layout) or from a run"
    add("--weights", metavar="NAME|PATH", none="no", group="training", help=text)
    text = "average the weights with this decay (0: don't)"
    add("--ema", type=cli.share, metavar="DECAY", default=0.0, group="training", help=text)
    text = "take this one in place of training one: a run, or a published folder or name"
    add("--autoencoder", metavar="NAME|PATH", none="train one first", help=text)
    add("--ae-steps", type=count, metavar="N", default=1200, help="of the first stage's training")
    text = "images of a step of the first stage's training"
    add("--ae-batch-size", type=count, metavar="N", default=16, help=text)
    add("--ae-width", type=count, metavar="C", default=32, help="channels of the autoencoder")
    text = "how many times shorter a side of the latents is (1: no autoencoder)"
    add("--factor", type=a_factor, metavar="F", default=4, help=text)
    add("--latent-channels", type=count, metavar="C", default=8, help="of the latents")
    add("--regulariser", choices=list(KINDS), default="kl", help="of the latents")
    add("--num-codes", type=cli.integer(2), metavar="N", default=512, help="of the codebook")
    text = "of the KL, where pixels' errors are summed too"
    add("--kl-weight", type=amount, metavar="X", default=1e-6, help=text)
    text = "of pixels, in the loss"
    add("--error", choices=["absolute", "squared"], default="absolute", help=text)
    text = "of the patch discriminator, on top of the balance of both (0: none)"
    add("--adversarial", type=amount, metavar="X", default=0.0, help=text)
    text = "the step it begins at"
    add("--adversarial-from", type=whole, metavar="N", default=0, help=text)
    add("--width", type=count, metavar="C", default=64, help="channels, see the model's file")
    text = "by cross-attention, or by a pooled vector added to the time"
    add("--conditioning", choices=["attention", "pooled"], default="attention", help=text)
    text = "what the U-Net answers with: the noise, or the velocity of Salimans and Ho (2022)"
    add("--prediction", choices=list(PREDICTIONS), default="epsilon", help=text)
    add("--dropout", type=cli.share, metavar="P", default=0.0, help="in the U-Net")
    text = "share of captions that are left out in training"
    add("--drop", type=cli.share, metavar="P", default=0.1, help=text)
    add_drawing(parser)
    text = "images for captions of one object that are measured (0: none)"
    add("--samples", type=whole, metavar="N", default=0, help=text)
    text = "whose captions those are: of the test set, or of scenes to choose flags by"
    add("--judged", choices=list(JUDGED), default="test", help=text)
    switch("--frechet", help="measure the Fréchet distance, too, of --samples images more")


def add_drawing(parser, **more) -> None:
    """How images are drawn; for sample.py, too."""
    text = "how much more an image is to show its text than none (1: no guidance)"
    kind = cli.number(lambda x: 0 <= x <= 1000, "a guidance scale from 0 to 1000")
    parser.add_argument("--guidance", type=kind, metavar="S", help=text, **more)
    text = "how noise becomes images"
    parser.add_argument("--sampler", choices=list(SAMPLERS), help=text, **more)
    text = "of those that the chain has"
    parser.add_argument("--sample-steps", type=cli.integer(1), metavar="N", help=text, **more)


def check(args: cli.Flags) -> None:
    """Ends in one line if flags don't fit together; nothing is loaded or written yet."""
    if args.weights and args.paper:
        fail("--paper trains from the beginning: leave --weights out")
    if args.samples == 1:
        fail("--samples 1: one image has no distribution to measure")
    if args.model in AUTOENCODERS:
        try:
            with torch.device("meta"):
                factor = make_autoencoder(**autoencoder_settings(args)).factor
        except ValueError as error:
            fail(f"--model {args.model}: {error}")
        if args.factor == 1:
            fail("--factor 1 is no autoencoder: give --model ldm_small --factor 1 for pixels")
        check_size(args.size, factor)
        if args.adversarial and args.size < 24:
            fail(f"--adversarial needs images of at least 24 pixels, not --size {args.size}")
        return
    if args.weights or args.autoencoder:
        return  # what it has decides
    try:
        with torch.device("meta"):
            model = assemble(settings_of(args, autoencoder_settings(args)))
    except ValueError as error:
        fail(f"--model {args.model}: {error}")
    check_size(args.size, model.factor)
    check_steps(args.sample_steps, model.schedule.num_times)


def check_size(size: int, factor: int) -> None:
    """Ends in one line for a side that the networks can't halve as often as they do."""
    if size % factor:
        fail(f"--size {size}: images are halved until {factor} pixels are one place, so their "
             f"sides have to be multiples of {factor}")  # fmt: skip


def check_steps(steps: int, most: int) -> None:
    """Ends in one line for more steps of sampling than the chain has."""
    if steps > most:
        fail(f"--sample-steps {steps}: the chain has {most}")


def autoencoder_settings(args: cli.Flags) -> dict:
    """The autoencoder that the flags ask for. Raises ValueError for one that can't be."""
    if args.model in SIZES:
        return SIZES[args.model]
    if args.model == "stable_diffusion":
        return SD1["autoencoder"]
    kind = args.model[:2] if args.model in AUTOENCODERS else args.regulariser
    width = args.width if args.model in AUTOENCODERS else args.ae_width
    return small_settings(kind, args.factor, args.latent_channels, width, args.num_codes)


def settings_of(args: cli.Flags, autoencoder: dict, words: dict | None = None) -> dict:
    """The whole model that the flags ask for, around an autoencoder."""
    if args.model == "stable_diffusion":
        return SD1 | dict(autoencoder=autoencoder)
    more = dict(vocab_size=words["size"], context=words["context"]) if words else {}
    pooled = args.conditioning == "pooled"
    channels = autoencoder.get("latent_channels", 3)
    sizes = dict(width=args.width, dropout=args.dropout, pooled=pooled, prediction=args.prediction)
    return small_model(autoencoder, channels, **sizes, **more)


# ---------------------------------------------------------------------- building


def start(args: cli.Flags, dev: Device) -> Found | None:
    """The weights to start from; none where the run goes on with a checkpoint."""
    if args.stored:
        return None
    for name, flag in ((args.weights, "weights"), (args.autoencoder, "autoencoder")):
        if name and not (Path(name).expanduser().exists() or is_published(name)):
            fail(f"--{flag} {name}: there is no such file or folder")
    if not args.weights:
        return None
    if is_published(args.weights):
        found = read_published(args.weights, dev.say)
    else:
        found = from_run(args.weights)
    return found


def run_file(name: str, flag: str) -> Path:
    """The checkpoint that a name means: a file, or a run's folder with its last."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "last.pt").is_file():
        fail(f"--{flag} {name}: the folder holds no last.pt of a run, and no vae and unet of a "
             "published model")  # fmt: skip
    return path / "last.pt" if path.is_dir() else path


def from_run(name: str) -> Found:
    """The weights of a run of train.py, with the averaged ones where there are any."""
    path = run_file(name, "weights")
    content = read_checkpoint(path)
    flags = content["config"]["flags"]
    if flags.get("milestone") != "latentdiffusion" or flags.get("model") in AUTOENCODERS:
        kind = flags.get("model", flags.get("milestone"))
        fail(f"--weights {name} is a checkpoint of {kind}: name one of a whole latent diffusion "
             "model, or give a first stage with --autoencoder")  # fmt: skip
    facts = content["dataset"]
    state = content["model"] | content.get("ema", {})
    return Found(name, facts["network"], state, facts["words"], flags["size"])


def read_first(args: cli.Flags) -> tuple[dict, nn.Module]:
    """The autoencoder that --autoencoder names: its settings and itself."""
    name = args.autoencoder
    if is_published(name):
        settings, module, _ = read_autoencoder(name)
        if args.model == "stable_diffusion":
            check_stable(settings, name)
        return settings, module
    path = run_file(name, "autoencoder")
    content = read_checkpoint(path)
    flags = content["config"]["flags"]
    milestone, model = flags.get("milestone"), flags.get("model")
    if milestone != "latentdiffusion":
        fail(f"--autoencoder {name} is a checkpoint of {milestone}: its codes aren't those of "
             "latentdiffusion's autoencoders")  # fmt: skip
    settings = content["dataset"]["network"]
    if model not in AUTOENCODERS:  # a whole model has one
        settings = settings["autoencoder"]
    state = {k.removeprefix("autoencoder."): v for k, v in content["model"].items()
             if model in AUTOENCODERS or k.startswith("autoencoder.")}  # fmt: skip
    if args.model == "stable_diffusion":
        check_stable(settings, name)
    module = make_autoencoder(**settings)
    module.load_state_dict(state)
    return settings, module


def make(
    args: cli.Flags, train: CaptionSet, found: Found | None, first: tuple | None, dev: Device
) -> LatentDiffusion:
    """The model of the checkpoint, of the weights, or that the flags ask for, around the `first`
    stage; what it is, and its vocabulary, go into the facts of the data."""
    facts, stored = train.facts, args.stored
    if stored:
        facts |= {key: stored["dataset"][key] for key in ("network", "words")}
        model = assemble(facts["network"])
        try:
            model.load_state_dict(stored["model"])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fail(f"the checkpoint doesn't fit {args.model}: its model differs ({reason})")
    elif found:
        facts |= dict(network=found.settings, words=found.words)
        model = found.build()
    else:
        settings, autoencoder = first
        facts["words"] = learn_words(train, args.vocab_size, dev)
        facts["network"] = settings_of(args, settings, facts["words"])
        model = assemble(facts["network"])
        model.autoencoder = autoencoder
    check_size(args.size, model.factor)
    check_steps(args.sample_steps, model.schedule.num_times)
    model.autoencoder.requires_grad_(False)
    if args.model == "stable_diffusion" and args.weights:
        model.text.requires_grad_(False)  # CLIP's stays as it is
    return model


def check_stable(settings: dict, name: str) -> None:
    """Ends in one line if Stable Diffusion's U-Net can't denoise these latents."""
    if settings.get("latent_channels") != SD1["unet"]["channels"]:
        fail(f"--autoencoder {name} has {settings.get('latent_channels')} channels of latents, "
             f"stable_diffusion's U-Net {SD1['unet']['channels']}")  # fmt: skip


def as_argv(args: cli.Flags, **changed) -> list[str]:
    """Flags of train.py that say what `args` says of data and machine, and `changed` ones."""
    same = ("data", "data_dir", "limit", "val", "seed", "device", "precision", "max_steps", "size")
    same += ("accumulate", "compile", "save_minutes")
    same += ("objects",) if name_of(args.data) == "shapes" else ()
    values = {name: getattr(args, name) for name in same} | changed
    if "val" not in args.chosen:
        values.pop("val")
    given = [(f"--{re.sub('_', '-', k)}", v) for k, v in values.items() if v not in (None, False)]
    return [word for k, v in given for word in ((k,) if v is True else (k, str(v)))]


def parse(doc: str, quick: dict, paper: dict, argv: list[str] | None) -> cli.Flags:
    """The flags of train.py."""
    parser = cli.Parser("latentdiffusion", doc, quick, paper, MODELS, DATA, recipe, FIXED)
    add_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args
