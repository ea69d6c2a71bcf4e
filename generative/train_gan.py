"""Trains the two players of a GAN in turn (Goodfellow et al. 2014, Algorithm 1, with k = 1).

    python generative/train_gan.py                                     # digits
    python generative/train_gan.py --model dcgan --data mnist --data-dir PATH
    python generative/train_gan.py --conditional --saturating

The flags are those of train.py, which calls this script when its --model is `gan` or `dcgan`.
"""

import torch

from common import cli, fail
from common.checkpoint import gathered
from common.data.augment import random_flip
from common.device import Device
from common.run import Run
from generative.data import load
from generative.evaluate import sample_quality
from generative.gan import discriminator_loss, generator_loss
from generative.options import GANS, build, parse, start_from

QUICK = PAPER = dict(model="gan")


def parse_args(argv: list[str] | None = None) -> cli.Flags:
    """The flags; see --help."""
    return parse(__doc__, QUICK, PAPER, argv)


def train_gan(args: cli.Flags) -> dict[str, float]:
    """Trains, or evaluates a checkpoint; returns the training and test metrics."""
    dev = Device(args)
    train, _, test = load(args, dev)
    model, judge = build(args, train.facts), build(args, train.facts).to(dev.device)
    start_from(model, args)
    generator, discriminator = dev.wrap(model.generator), dev.wrap(model.discriminator)
    betas = (0.5, 0.999)  # 0.9 made DCGAN's training swing (its Sec. 4)
    opt_g = torch.optim.Adam(model.generator.parameters(), args.lr, betas)
    opt_d = torch.optim.Adam(model.discriminator.parameters(), args.lr, betas)
    run = Run(args, dev, model=model, optimizer=opt_g, optimizer_d=opt_d, dataset=train.facts)

    def measure() -> dict[str, float]:
        if not args.samples:
            return {}
        judge.load_state_dict({name: gathered(value) for name, value in model.state_dict().items()})
        return sample_quality(judge, train, test, args, dev, run.folder)

    if args.evaluate:
        return run.finish(**measure())
    augment = random_flip if args.flip else None
    for epoch in run.epochs():
        model.train()
        parts = []
        for real, labels in run.progress(train.batches(args.batch_size, augment=augment)):
            labels = labels if args.conditional else None
            with dev.autocast():
                with torch.no_grad():
                    fake = generator(model.draw_codes(len(real)), labels)
                on_real, on_fake = discriminator([real, fake], labels)
                loss = discriminator_loss(on_real, on_fake)
            dev.step(loss, opt_d)
            run.add(train_discriminator_loss=loss)
            run.add(train_real_output=on_real.sigmoid().mean())
            run.add(train_fake_output=on_fake.sigmoid().mean())
            parts.append((len(real), labels))
            if len(parts) < dev.accumulate:  # the discriminator has yet to move
                continue
            for count, labels in parts:
                with dev.autocast():
                    fake = generator(model.draw_codes(count), labels)  # of new noise
                    (on_fake,) = discriminator([fake], labels)
                    loss = generator_loss(on_fake, args.saturating)
                dev.step(loss, opt_g)
                run.add(train_generator_loss=loss)
            parts = []
        run.log(epoch, **run.means())
        run.save(every=10)
    return run.finish(**run.means(), **measure())


@cli.command
def main(argv: list[str] | None = None) -> dict[str, float]:
    """As in train.py, for the two GANs."""
    args = parse_args(argv)
    if args.model not in GANS:
        fail(f"{args.model} has one loss: train it with generative/train.py")
    return train_gan(args)


if __name__ == "__main__":
    main()
