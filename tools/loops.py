"""Loops that a file holds: suppression of boxes, writing the likeliest tokens, drawing from noise.

They are loops of the formats (torch.while_loop): a file is as long for a thousand steps as for one.
What a loop carries keeps its shape: tokens not yet written have their places from the start.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from tools.trained import part_of


class Refused(Exception):
    """Why a network can't be held by the formats that are traced."""


class Detector(nn.Module):
    """YOLO's candidates, and those that are left of them by non-maximal suppression.

    Boxes are shares of the image: left, top, right, bottom. What is left stands first, the surest
    before the others; what fills up the rest has a score of 0.
    """

    def __init__(self, model: nn.Module, decoded: Callable, predictors: int, most: int = 100):
        super().__init__()
        self.model, self.decoded = model, decoded
        self.predictors, self.most, self.overlap = predictors, most, 0.5

    def forward(self, pixels: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, S, S) and the least score that counts (1,)."""
        candidates, scores = self.decoded(self.model(pixels), self.predictors)  # (B, N, 4 and K)
        classes = scores.shape[2]
        count = min(1000, scores.shape[1] * classes)
        chosen, order = scores.flatten(1).topk(count)  # (B, P)
        box = candidates.gather(1, (order // classes)[:, :, None].expand(-1, -1, 4))
        label = order % classes
        corner = torch.maximum(box[:, :, None, :2], box[:, None, :, :2])
        shared = (torch.minimum(box[:, :, None, 2:], box[:, None, :, 2:]) - corner).clamp(min=0)
        shared = shared[..., 0] * shared[..., 1]  # (B, P, P)
        area = (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])
        overlap = shared / (area[:, :, None] + area[:, None] - shared)
        places = torch.arange(count)
        rival = (overlap > self.overlap) & (label[:, :, None] == label[:, None])
        rival = (rival & (places[:, None] < places)).float()  # (B, P, P): rows beat columns
        real = (chosen > threshold).float()

        def more(kept: Tensor, changed: Tensor) -> Tensor:
            return changed > 0

        def suppress(kept: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
            """Those that nobody who is kept beats; in as many rounds as rivals follow on rivals
            that is what going through them one by one keeps."""
            beaten = (kept[:, None] @ rival)[:, 0] > 0
            new = real * (~beaten).float()
            return new, (new != kept).sum()

        kept, _ = while_loop(more, suppress, (real.clone(), torch.ones((), dtype=torch.int64)))
        best = chosen * kept
        score, first = best.topk(min(self.most, count))
        found = box.gather(1, first[:, :, None].expand(-1, -1, 4)), label.gather(1, first)
        left = score > 0
        found = found[0] * left[:, :, None], found[1] * left
        return found[0], score, found[1], left.long().sum(1), candidates, scores


class Greedy(nn.Module):
    """Writes the likeliest token, step by step, until all rows have ended or there are `most`.

    A network says in `begin(*inputs)` what stays as it is and what moves, of which the logits (B,
    V) of the first token come first; in `step(new, number, written, stays, moves)` what has moved
    after the tokens `new` (B,). Answers what is written (B, most), `end` behind the end, and its
    log-probability (B,). Tokens of `never` aren't written.
    """

    def __init__(self, model: nn.Module, most: int, end: int, size: int, never: tuple = ()):
        super().__init__()
        self.model, self.most, self.end = model, most, end
        self.never = tuple(never)
        bans = torch.zeros(size)
        bans[list(never)] = -torch.inf
        self.register_buffer("bans", bans)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens written (B, most) and their log-probabilities (B,)."""
        stays, moves = self.begin(*inputs)
        rows, places = moves[0].shape[0], torch.arange(self.most)

        def go_on(number: Tensor, done: Tensor, *_: Tensor) -> Tensor:
            return (number < self.most) & (done.sum() < rows)

        def write(number, done, score, written, *moves):
            odds = (moves[0] + self.bans).log_softmax(1)
            best, new = odds.max(1)
            new = torch.where(done > 0, self.end, new)
            score = score + best * (1 - done)
            written = torch.where(places == number, new[:, None], written)
            done = torch.maximum(done, (new == self.end).long())
            moves = map(plain, self.step(new, number, written, stays, moves))
            return number + 1, done, score, written, *moves

        zero = torch.zeros(rows, dtype=torch.int64)
        written = torch.full((rows, self.most), self.end)
        number = torch.zeros((), dtype=torch.int64)
        begin = number, zero, torch.zeros(rows), written, *map(plain, moves)
        _, _, score, written, *_ = while_loop(go_on, write, begin)
        return written, score

    def truth(self, found: list[list[int]], logits: Callable[[Tensor], Tensor]) -> tuple:
        """What the checkpoint's own search wrote, and its log-probability: `logits(written)` are
        (B, most, V) where the tokens before are those."""
        written = torch.full((len(found), self.most), self.end)
        for row, tokens in zip(written, found, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        odds = (logits(written) + self.bans).log_softmax(2)
        each = odds.gather(2, written.clamp(min=0)[:, :, None])[:, :, 0]
        counts = torch.tensor([min(len(row) + (self.end >= 0), self.most) for row in found])
        return written, (each * (torch.arange(self.most) < counts[:, None])).sum(1)

    def banned(self, step: Callable) -> Callable:
        """A step of common/decode.py that never writes what may not be."""

        def without(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
            logits, state = step(tokens, state)
            return logits.float() + self.bans, state

        return without


def plain(x: Tensor) -> Tensor:
    """A copy that lies in memory as its shape says: all a loop carries has to lie alike."""
    return x.clone(memory_format=torch.contiguous_format)


class GreedyGPT(Greedy):
    """A prompt (B, T), which is read anew at each step with what was written."""

    def begin(self, prompt: Tensor) -> tuple[tuple, tuple]:
        """The prompt stays."""
        return (prompt,), (self.after(prompt, prompt.shape[1] - 1),)

    def after(self, tokens: Tensor, place: Any) -> Tensor:
        """The logits of what follows a place."""
        x = self.model.features(tokens)
        place = place[None] if isinstance(place, Tensor) else torch.tensor([place])
        return F.linear(x.index_select(1, place)[:, 0], self.model.wte.weight)

    def step(self, new, number, written, stays, moves):
        """Logits of the next."""
        (prompt,) = stays
        return (self.after(torch.cat([prompt, written.clamp(min=0)], 1), prompt.shape[1] + number),)


class GreedyFlamingo(Greedy):
    """A prompt (B, T) with marks and their images (B, M, 3, S, S), which are looked at once."""

    def forward(self, prompt: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `Greedy` answers, and the logits of what follows each token of the prompt."""
        latents = self.model.resample(self.model.look(pixels))
        pairs = [layer.keys(latents) for layer in self.model.gated]
        media = [plain(pair[name]) for pair in pairs for name in ("key", "value")]
        return *super().forward(prompt, *media), self.after(prompt, media)

    def after(self, tokens: Tensor, media: Sequence[Tensor]) -> Tensor:
        """The logits (B, T, V) of what follows tokens, by the keys and values of all layers."""
        pairs = zip(media[::2], media[1::2], strict=True)
        media = [{"key": key, "value": value} for key, value in pairs]
        return F.linear(self.model.read(tokens, media), self.model.lang_encoder.wte.weight)

    def begin(self, prompt: Tensor, *media: Tensor) -> tuple[tuple, tuple]:
        """All stays."""
        return (prompt, *media), (self.after(prompt, media)[:, -1],)

    def step(self, new, number, written, stays, moves):
        """Logits of the next."""
        prompt, *media = stays
        logits = self.after(torch.cat([prompt, written], 1), media)
        return (logits.index_select(1, (prompt.shape[1] + number)[None])[:, 0],)


class GreedyRNN(Greedy):
    """A prompt (B, T), and the state that it leaves."""

    def begin(self, prompt: Tensor) -> tuple[tuple, tuple]:
        """The state moves."""
        logits, state = self.model(prompt)
        return (), (logits[:, -1], *state)

    def step(self, new, number, written, stays, moves):
        """One token more."""
        logits, state = self.model(new.clamp(min=0)[:, None], None, tuple(moves[1:]))
        return (logits[:, -1], *state)


class GreedyTransformer(Greedy):
    """A source (B, S), which an encoder reads once; the target is read anew at each step."""

    start = 1

    def encode(self, source: Tensor) -> tuple:
        """The memory and its mask."""
        return self.model.encode(source)

    def answer(self, x: Tensor) -> Tensor:
        """Features to logits."""
        return F.linear(x, self.model.embedding.weight)

    def begin(self, source: Tensor) -> tuple[tuple, tuple]:
        """The memory stays."""
        stays = self.encode(source)
        first = torch.full_like(source[:, :1], self.start)
        return stays, (self.answer(self.model.decode(first, *stays)[:, -1]),)

    def step(self, new, number, written, stays, moves):
        """Logits of the next: position 0 has the start, token n stands at n + 1."""
        target = F.pad(written, (1, 0), value=self.start)
        x = self.model.decode(target, *stays).index_select(1, (number + 1)[None])
        return (self.answer(x[:, 0]),)


class GreedyT5(GreedyTransformer):
    """The same with T5's ends of a text, and its last layer."""

    start = 0

    def answer(self, x: Tensor) -> Tensor:
        """Features to logits."""
        return self.model.logits(x)


class GreedySeq2Seq(Greedy):
    """A source (B, S), and a state that changes from token to token."""

    def split(self, state: tuple, new: tuple) -> list[bool]:
        """Which parts of a state move."""
        return [old is not there for old, there in zip(state, new, strict=True)]

    def begin(self, source: Tensor) -> tuple[tuple, tuple]:
        """What a step leaves as it is stays."""
        state = self.model.encode(source)
        self.kind = type(state)
        logits, new = self.model.step(torch.full_like(source[:, 0], 1), state)
        self.moving = self.split(state, new)
        stays = [part for part, moves in zip(new, self.moving, strict=True) if not moves]
        moves = [part for part, moves in zip(new, self.moving, strict=True) if moves]
        return tuple(stays), (logits, *moves)

    def step(self, new, number, written, stays, moves):
        """One token more."""
        stay, move = iter(stays), iter(moves[1:])
        state = self.kind(*(next(move) if moving else next(stay) for moving in self.moving))
        logits, state = self.model.step(new, state)
        parts = zip(state, self.moving, strict=True)
        return (logits, *(part for part, moving in parts if moving))


class Denoising(nn.Module):
    """DDPM's way from noise to images in few steps, without noise on the way (DDIM)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, steps = model, model.sample_steps
        if steps == model.num_times:
            raise Refused(f"the chain of {steps} steps draws noise at each, which no file repeats: "
                          "train with --sample-steps 50, whose way has none")  # fmt: skip
        visits = model.times_of(steps)
        signal = torch.cat([model.signal, torch.ones(1)])  # of time -1: no noise is left
        noise = torch.cat([model.noise, torch.zeros(1)])
        for name, times in (("now", visits), ("then", [*visits[1:], -1])):
            self.register_buffer(name, torch.tensor(times))
            self.register_buffer(f"signal_{name}", signal[times])
            self.register_buffer(f"noise_{name}", noise[times])

    def forward(self, codes: Tensor) -> Tensor:
        """Noise (B, D) to images (B, C, H, W)."""
        steps = self.now.shape[0]

        def more(number: Tensor, x: Tensor) -> Tensor:
            return number < steps

        def step(number: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            tables = self.signal_now, self.noise_now, self.signal_then, self.noise_then
            signal, noise, then, strength = (t.index_select(0, number[None]) for t in tables)
            times = self.now.index_select(0, number[None]).expand(x.shape[0])
            _, clean = self.model.predict(x, times)
            apart = (x - signal * clean) / noise
            return number + 1, then * clean + strength * apart

        begin = torch.zeros((), dtype=torch.int64), codes.reshape(-1, *self.model.shape).clone()
        return self.model.to_pixels(while_loop(more, step, begin)[1])


class Drawing(nn.Module):
    """DALL-E's codes one by one, each the likeliest after `noise` was added to its logits.

    With Gumbel noise, -log(-log(u)), that is a draw from their softmax; with none the likeliest.
    """

    def __init__(self, model: nn.ModuleDict):
        super().__init__()
        self.dvae, self.stream = model["dvae"], model["stream"]

    def forward(self, text: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, T) and noise (B, N, K) to codes (B, h, w) and images (B, 3, H, W)."""
        layout = self.stream.layout
        count, places = layout.height * layout.width, torch.arange(layout.height * layout.width)

        def more(number: Tensor, codes: Tensor) -> Tensor:
            return number < count

        def draw(number: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
            grid = codes.unflatten(1, (layout.height, layout.width))
            logits = self.stream(text, grid)[1] + noise
            new = logits.index_select(1, number[None])[:, 0].argmax(1)
            return number + 1, torch.where(places == number, new[:, None], codes)

        begin = torch.zeros((), dtype=torch.int64), torch.zeros_like(noise[:, :, 0]).long()
        codes = while_loop(more, draw, begin)[1].unflatten(1, (layout.height, layout.width))
        return codes, self.dvae.decode(codes)


class Latent(nn.Module):
    """Latent diffusion's way from noise and a text to an image.

    Each step of the sampler is a sum: what x, the network's answer and the last step's clean
    latents are multiplied by is found by trying it on ones and zeros.
    """

    def __init__(self, model: nn.Module, sampler: str, steps: int, guidance: float):
        super().__init__()
        SAMPLERS = part_of("latentdiffusion.schedulers", "SAMPLERS")
        if sampler == "ddpm":
            raise Refused("the sampler ddpm draws noise at each step, which no file repeats: draw "
                          "with another, --sampler ddim, in training")  # fmt: skip
        self.model, self.guidance = model, guidance
        one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1)
        rows, clean, times = [], [], []
        way = SAMPLERS[sampler](model.schedule, steps)
        for place in range(steps):
            now, row, known = way.span(place)[0], [], []
            for x, answer, before in ((one, zero, zero), (zero, one, zero), (zero, zero, one)):
                if hasattr(way, "before"):
                    there = way.log_ratio(way.span(place - 1)[0]) if place else None
                    way.before = (before, there) if place else None
                row.append(float(way.step(x.double(), answer.double(), place)))
                known.append(float(model.schedule.split(x, answer, now)[0]))
            rows.append(row)
            clean.append(known)
            times.append(now)
        self.register_buffer("rows", torch.tensor(rows))
        self.register_buffer("clean", torch.tensor(clean))
        self.register_buffer("times", torch.tensor(times))

    def forward(self, noise: Tensor, tokens: Tensor, without: Tensor) -> Tensor:
        """Noise (B, C, h, w), texts (B, S) and what to lead away from (B, S) to images."""
        steps = self.times.shape[0]
        told = torch.cat([self.model.text(tokens), self.model.text(without)])

        def more(number: Tensor, x: Tensor, before: Tensor) -> Tensor:
            return number < steps

        def step(number: Tensor, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = self.times.index_select(0, number[None]).expand(2 * x.shape[0])
            both = self.model.unet(torch.cat([x, x]), at, told).unflatten(0, (2, x.shape[0]))
            asked, other = both.unbind(0)
            answer = other + self.guidance * (asked - other)
            a, b, c = self.rows.index_select(0, number[None])[0].unbind()
            e, f, _ = self.clean.index_select(0, number[None])[0].unbind()
            return number + 1, a * x + b * answer + c * before, e * x + f * answer

        begin = torch.zeros((), dtype=torch.int64), noise.clone(), torch.zeros_like(noise)
        z = while_loop(more, step, begin)[1]
        images = self.model.autoencoder.decode(z / self.model.scale)
        return ((images + 1) / 2).clamp(0, 1)
