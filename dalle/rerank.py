"""Re-ranking drawn images by CLIP (Ramesh et al. 2021, Sec. 2.6): how well each fits its caption.

    clip = read_clip("runs/clip/clip_small-shapes", dev)
    best = clip.scores(images, captions).argmax(1)     # of (N, n, 3, S, S), for each caption

CLIP is one of ours, of the folder clip: a run of its train.py.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import fail
from common.checkpoint import read_checkpoint
from common.data.text import read_tokenizer
from common.device import Device

ENDS = ("<|startoftext|>", "<|endoftext|>")  # of a text, in CLIP's vocabulary


class Scorer:
    """A CLIP `model`, with the facts of its training: vocabulary, pixels, mean and std."""

    def __init__(self, model: nn.Module, facts: dict, dev: Device):
        self.model, self.dev = model.to(dev.device).eval().requires_grad_(False), dev
        self.tokenizer = read_tokenizer(facts["tokenizer"])
        self.size, self.context = self.model.image_size, self.model.context
        mean, std = (torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.mean, self.std = mean.to(dev.device), std.to(dev.device)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Captions as tokens (N, T) with their ends; the last token fills what remains."""
        start, end = map(self.tokenizer.token_to_id, ENDS)
        encoded = self.tokenizer.encode_batch(list(captions), add_special_tokens=False)
        rows = [[start, *e.ids[: self.context - 2], end] for e in encoded]
        longest = max(map(len, rows))
        return torch.tensor([row + [end] * (longest - len(row)) for row in rows])

    @torch.inference_mode()
    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosines (N, n) of captions with n images each (N, n, 3, S, S), from 0 to 1."""
        flat = images.flatten(0, 1).to(self.dev.device)
        found = []
        for part in flat.split(250):
            if part.shape[-1] != self.size:
                size = (self.size, self.size)
                part = F.interpolate(part, size, mode="bilinear", antialias=True)
            found.append(self.model.encode_image((part - self.mean) / self.std).float())
        texts = self.model.encode_text(self.tokens(captions).to(self.dev.device)).float()
        features = torch.cat(found).unflatten(0, images.shape[:2])  # (N, n, E)
        return (F.normalize(features, dim=2) @ F.normalize(texts, dim=1)[:, :, None])[..., 0]


def read_clip(name: str | Path, dev: Device) -> Scorer:
    """The CLIP of a run's folder or checkpoint; what isn't one ends in one line."""
    path = Path(name).expanduser()
    if not path.exists():
        fail(f"there is no run of clip at {path}: train one, python clip/train.py")
    path = path / "last.pt" if path.is_dir() else path
    checkpoint = read_checkpoint(path)
    if checkpoint["config"]["flags"].get("milestone") != "clip":
        fail(f"{path} is no checkpoint of clip: train one, python clip/train.py")
    try:
        from clip.model import CLIP
    except ImportError:
        fail("to re-rank by CLIP the folder clip is needed, which isn't in this tree")
    facts = checkpoint["dataset"]
    if "network" not in facts or "tokenizer" not in facts:
        fail(f"{path} has no text encoder: name a run of clip/train.py")
    model = CLIP(**facts["network"])
    model.load_state_dict(checkpoint["model"])
    return Scorer(model, facts, dev)


def best_of(scores: Tensor, right: Tensor, n: int) -> float:
    """The share of captions whose image is right (N, m), bool, if it is the one with the highest
    score (N, m) of n: a mean over the m / n groups of each."""
    groups = scores.shape[1] // n
    scores, right = (x[:, : groups * n].unflatten(1, (groups, n)) for x in (scores, right))
    chosen = scores.argmax(2, keepdim=True)
    return float(right.gather(2, chosen).double().mean())
