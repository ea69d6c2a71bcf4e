"""Trains the image encoder of CLIP alone, to predict: what CLIP is compared with (Fig. 2 and 13).

python clip/predict.py                      # the words of the caption, as a bag
python clip/predict.py --target labels      # the class, as a supervised network
python clip/predict.py --data flickr8k --data-dir PATH

One linear layer on the features gives a score to each token of the vocabulary, and the loss is the
cross-entropy with those of the caption, all alike (Joulin et al. 2016); or to each class. A class
is named without its label by the tokens of its prompts.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.evaluation import match
from clip.model import CLIP, CONTEXT, MODELS
from clip.pairs import say_cuts, square_window
from clip.prompts import fill, templates_of
from clip.recipes import FIXED, add_own_flags, recipe
from clip.train import PAPER, QUICK, make_optimizer, sizes_of, step_size
from common import cli, fail
from common.classify import check_images
from common.data.captions import CAPTION_SETS, CaptionSet, load_captions
from common.data.images import add_image_flags
from common.data.tokens import Tokens, train_tokenizer
from common.device import Device
from common.run import Run


class Predictor(nn.Module):
    """CLIP's image encoder and a linear layer: images (B, 3, H, W) to scores (B, V) or (B, K)."""

    def __init__(self, sizes: dict, outputs: int):
        super().__init__()
        whole = CLIP(**sizes)
        self.visual, self.image_size = whole.visual, whole.image_size
        self.head = nn.Linear(sizes["embed_dim"], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to scores of words (B, V) or of classes (B, K)."""
        return self.head(self.visual(images))


def own_recipe(
    model: str, data: str | None, paper: bool, target: str | None = None, **given
) -> tuple[dict, dict]:
    """CLIP's recipe; what belongs to its text encoder means nothing here."""
    own, nothing = recipe(model, data, paper, **given)
    text = ("text_rate", "text_width", "text_layers")
    nothing |= dict.fromkeys(text, "there is no text encoder here, whose rate or size it would be")
    if target == "labels":
        nothing["vocab_size"] = "labels are predicted, no words"
    return own, nothing


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    fixed = ["target", *(name for name in FIXED if name not in ("weights", "freeze"))]
    parser = cli.Parser(
        "clip", __doc__, QUICK, PAPER, MODELS, CAPTION_SETS, own_recipe, fixed, "predict.py"
    )
    add_image_flags(parser)
    text = "what is predicted: the caption's words, or the class"
    parser.add_argument("--target", choices=["words", "labels"], default="words", help=text)
    add_own_flags(parser)
    args = parser.parse_args(argv)
    if args.target == "labels" and not args.data.startswith("shapes"):
        fail(f"--target labels: {args.data} has captions and no classes; take --data shapes")
    try:
        with torch.device("meta"):  # before any work is done
            CLIP(**sizes_of(args))
    except ValueError as error:
        fail(f"--model {args.model}: {error}")
    return args


def bags(texts: Sequence[str], tokens: Tokens) -> Tensor:
    """Targets (B, V): each different token of a text, without the marks of its ends, alike."""
    rows, _ = tokens.encode(texts, CONTEXT)
    bag = torch.zeros(len(rows), tokens.size).scatter_(1, rows, 1.0)
    bag[:, [tokens.start, tokens.end]] = 0
    return bag / bag.sum(1, keepdim=True).clamp(min=1)


@torch.inference_mode()
def measure(
    model: Predictor, part: CaptionSet, tokens: Tokens, dev: Device, args: argparse.Namespace
) -> dict[str, float]:
    """Of words the metrics `match` and `zero_shot` of clip/evaluation.py, by the mean score of a
    sentence's words; of labels the accuracy."""
    model.eval()
    found = []
    for images, places in part.images.batches(250):
        with dev.autocast():
            found.append((places.cpu(), model(images).float().log_softmax(1).cpu()))
    shares = [pair for share in dev.gather(found) for pair in share]
    places, scores = (torch.cat(some) for some in zip(*shares, strict=True))
    scores = scores[places.argsort()]
    if args.target == "labels":
        return {f"{part.part}_accuracy": float((scores.argmax(1) == part.labels).float().mean())}
    texts, owned = part.texts()
    metrics = {"match": match(scores, bags(texts, tokens), owned)}
    if part.labels is not None:
        templates, classes = templates_of(args.data), part.facts["classes"]
        words = [bags([fill(text, name) for text in templates], tokens).mean(0) for name in classes]
        right = (scores @ torch.stack(words).T).argmax(1) == part.labels
        metrics["zero_shot"] = float(right.float().mean())
    return {f"{part.part}_{key}": value for key, value in metrics.items()}


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    args = parse_args(argv)
    dev = Device(args, auto_precision="fp32" if args.model == "clip_small" else "bf16")
    known = args.stored.get("dataset")
    train, val, test = load_captions(args, dev, args.size, known, square_window)
    facts = train.facts
    text = known["words"] if known else train_tokenizer(train.texts()[0], args.vocab_size)
    facts["words"] = dev.gather(text)[0]
    tokens = Tokens(facts["words"])
    outputs = tokens.size if args.target == "words" else len(facts["classes"])
    if args.target == "words":
        say_cuts((train, val, test), tokens, CONTEXT, dev)
    model = Predictor(sizes_of(args), outputs)
    check_images(model, args, dev, len(train), args.size)
    net = dev.wrap(model)
    optimizer, batches = make_optimizer(args, model), train.batches(args.batch_size)
    share = partial(step_size, args.epochs * len(batches), args.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    monitor = ("val_accuracy" if args.target == "labels" else "val_match", max)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule, dataset=facts)
    run = Run(args, dev, monitor, **parts)
    if args.evaluate:
        return run.finish(**measure(model, test, tokens, dev, args))
    for epoch in run.epochs():
        model.train()
        for images, texts, labels in run.progress(batches):
            with dev.autocast():
                scores = net(images)
            target = bags(texts, tokens).to(dev.device) if args.target == "words" else labels
            loss = F.cross_entropy(scores.float(), target)
            run.add(train_loss=loss)
            if dev.step(loss, optimizer):
                schedule.step()
        run.log(epoch, **run.means(), **(measure(model, val, tokens, dev, args) if val else {}))
        run.save()
    return run.finish(**run.means(), **measure(model, test, tokens, dev, args))


if __name__ == "__main__":
    main()
