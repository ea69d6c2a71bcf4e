"""How much noise there is at each time, and ways from noise to latents.

    schedule = Schedule()
    sampler = DPMSolver(schedule, 20)
    for place, time in enumerate(sampler.times):
        x = sampler.step(x, answer_of_the_network, place)

- DDPM (Ho et al. 2020, arXiv:2006.11239, Algorithm 2): the mean of a step back, and noise;
- DDIM (Song et al. 2020, arXiv:2010.02502, Eq. 12, sigma 0): no noise on the way;
- DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, Algorithm 2): as DDIM, but with a line through
  the last two estimates in place of the last one.

Euler's method on the noise's std (Karras et al. 2022, arXiv:2206.00364), which libraries have
as a fourth, is DDIM in other coordinates: x / signal moves along the estimated noise.

Shapes: B batch, C channels, H and W. x = signal * latents + noise * N(0, 1), signal² + noise² = 1.
Times are 0 to T - 1; -1 is the end. Steps are few scalars here: the tables are float64 on the CPU.
"""

import math

import torch
from torch import Tensor

KINDS = ("scaled_linear", "linear")
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("trailing", "leading", "linspace")


class Schedule:
    """The chain's noise (App. B): betas whose roots are evenly spaced ("scaled_linear").

    `prediction` is what the network answers with: "epsilon", the noise, or "v_prediction", the
    velocity signal * noise - noise's share * latents (Salimans, Ho 2022, arXiv:2202.00512).

    `spacing` says which times n steps visit: "trailing" from T - 1 down, so that sampling begins at
    the most noise there is; "leading" multiples of T // n, and `offset`, as the published models'
    settings have it; "linspace" evenly from T - 1. The end is latents without noise, or with
    `clean_end=False` with what they have at time 0.
    """

    def __init__(
        self,
        num_times: int = 1000,
        start: float = 0.00085,
        end: float = 0.012,
        kind: str = "scaled_linear",
        prediction: str = "epsilon",
        spacing: str = "trailing",
        offset: int = 0,
        clean_end: bool = True,
    ):
        if kind not in KINDS:
            raise ValueError(f"a schedule {kind!r}: there are {', '.join(KINDS)}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"a prediction {prediction!r}: there are {', '.join(PREDICTIONS)}")
        if spacing not in SPACINGS:
            raise ValueError(f"a spacing {spacing!r}: there are {', '.join(SPACINGS)}")
        self.settings = dict(
            num_times=num_times,
            start=start,
            end=end,
            kind=kind,
            prediction=prediction,
            spacing=spacing,
            offset=offset,
            clean_end=clean_end,
        )
        self.num_times, self.prediction = num_times, prediction
        self.spacing, self.offset, self.clean_end = spacing, offset, clean_end
        exact = dict(dtype=torch.float64, device="cpu")  # not all devices have float64
        if kind == "scaled_linear":
            self.beta = torch.linspace(start**0.5, end**0.5, num_times, **exact).square()
        else:
            self.beta = torch.linspace(start, end, num_times, **exact)
        self.kept = (1 - self.beta).cumprod(0)  # alpha bar: the share of the signal's variance

    def share(self, time: int) -> float:
        """Alpha bar at a time; at the end, -1, it is 1, or that of time 0."""
        if time < 0:
            return 1.0 if self.clean_end else float(self.kept[0])
        return float(self.kept[time])

    def scales(self, time: int) -> tuple[float, float]:
        """What latents and noise are multiplied by at a time."""
        return self.share(time) ** 0.5, (1 - self.share(time)) ** 0.5

    def times(self, steps: int) -> list[int]:
        """The times that so many steps visit, the noisiest first.

        Raises ValueError for more steps than times.
        """
        if not 1 <= steps <= self.num_times:
            raise ValueError(f"{steps} steps: the chain has 1 to {self.num_times}")
        if self.spacing == "trailing":
            return [round(self.num_times * (1 - k / steps)) - 1 for k in range(steps)]
        if self.spacing == "leading":
            ratio = self.num_times // steps
            return [k * ratio + self.offset for k in range(steps - 1, -1, -1)]
        last = self.num_times - 1
        return [round(last * k / max(1, steps - 1)) for k in range(steps - 1, -1, -1)]

    def split(self, x: Tensor, answer: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """The latents and the noise that the network's answer means for x (B, C, H, W)."""
        signal, noise = self.scales(time)
        if self.prediction == "v_prediction":
            return signal * x - noise * answer, signal * answer + noise * x
        return (x - noise * answer) / signal, answer


class Sampler:
    """So many steps along a schedule; `step` makes one."""

    def __init__(self, schedule: Schedule, steps: int):
        self.schedule, self.times = schedule, schedule.times(steps)

    def span(self, place: int) -> tuple[int, int]:
        """The time of a step, and the one it leads to (-1 from the last)."""
        return self.times[place], [*self.times, -1][place + 1]


class DDPM(Sampler):
    """The chain itself, with noise at each step; of fewer than T steps the chain of the times
    that are visited. The variance is the posterior's (Eq. 7)."""

    def step(self, x: Tensor, answer: Tensor, place: int, draw=torch.randn_like) -> Tensor:
        """x (B, C, H, W) at the next time; `draw(x)` is N(0, 1) of its shape."""
        now, then = self.span(place)
        clean, _ = self.schedule.split(x, answer, now)
        kept, before = self.schedule.share(now), self.schedule.share(then) if then >= 0 else 1.0
        beta = 1 - kept / before
        mean = before**0.5 * beta / (1 - kept) * clean
        mean = mean + (kept / before) ** 0.5 * (1 - before) / (1 - kept) * x
        variance = beta * (1 - before) / (1 - kept)
        return mean + variance**0.5 * draw(x) if then >= 0 else mean


class DDIM(Sampler):
    """The same estimate of the noise, at the next time's strength."""

    def step(self, x: Tensor, answer: Tensor, place: int, draw=torch.randn_like) -> Tensor:
        """x (B, C, H, W) at the next time; nothing is drawn."""
        now, then = self.span(place)
        clean, noise = self.schedule.split(x, answer, now)
        signal, strength = self.schedule.scales(then)
        return signal * clean + strength * noise


class DPMSolver(Sampler):
    """Second order in the logarithm of signal over noise; first order first and last."""

    def __init__(self, schedule: Schedule, steps: int):
        super().__init__(schedule, steps)
        self.before: tuple[Tensor, float] | None = None  # the last estimate, and where it was

    def step(self, x: Tensor, answer: Tensor, place: int, draw=torch.randn_like) -> Tensor:
        """x (B, C, H, W) at the next time; nothing is drawn."""
        now, then = self.span(place)
        clean, _ = self.schedule.split(x, answer, now)
        here, before = self.log_ratio(now), self.before
        self.before = clean, here
        if then < 0:
            return clean
        signal, strength = self.schedule.scales(then)
        width = self.log_ratio(then) - here
        if before is not None:
            ratio = (here - before[1]) / width
            clean = clean + (clean - before[0]) / (2 * ratio)
        share = strength / self.schedule.scales(now)[1]
        return share * x - signal * math.expm1(-width) * clean

    def log_ratio(self, time: int) -> float:
        """The paper's lambda: log(signal / noise)."""
        signal, noise = self.schedule.scales(time)
        return math.log(signal / noise)


SAMPLERS = {"ddpm": DDPM, "ddim": DDIM, "dpm": DPMSolver}
