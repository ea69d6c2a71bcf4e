"""Sound as a network takes it: WAV files, log-mel features, SpecAugment's masks.

A recording becomes a picture of its sound: every 10 ms the loudness, in decibels, of some bands
of frequencies that are as wide as the ear hears them (log-mel features).
"""

import re
import warnings
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from common import counted, fail
from common.data.batches import Draw

WINDOW, HOP = 0.025, 0.010  # seconds
DEEPEST = 80.0  # decibels below the loudest place of a recording: what is softer is as soft
NUM_MASKS, MOST_MASKED = 2, 0.2  # Park et al. 2019, Table 1: SM, SS (Switchboard)


def read_wav(path: Path) -> tuple[Tensor, int]:
    """The samples (N,), float32 from -1 to 1, stereo made mono, and how many a second has.

    Whole numbers of 8, 16, 24 and 32 bits, or floats, of which larger ones are brought to 1. A file
    that is none, of another coding, that is cut short or holds no sound ends in one line that names
    it.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rate, data = wavfile.read(path)
        except OSError as error:
            fail(f"can't read {path}: {error.strerror or error}")
        except Exception as error:  # scipy has no kind of its own for what is no WAV
            text = str(error)
            known = text.startswith(("Unknown wave file format", "Unsupported bit depth"))
            why = text if known else "it is of another kind, or damaged"
            fail(f"{path} is not a WAV file that can be read ({why})")
    for warning in caught:  # a file written into a pipe says that it is endless
        cut = re.search(r"finished at (\d+) bytes, expected (\d+)", str(warning.message))
        if cut and int(cut[2]) < 2**32 - 1:
            fail(f"{path} is cut short: it has {cut[1]} of {cut[2]} bytes")
    if data.dtype.kind == "f" and data.size and (peak := abs(data).max()) > 1:
        data = data / peak
    samples = torch.from_numpy(data.astype("float32"))
    if data.dtype.kind == "u":
        samples = samples / 128 - 1
    elif data.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * data.dtype.itemsize - 1)
    samples = samples.mean(1) if samples.dim() > 1 else samples
    if not len(samples) or rate < 1:
        fail(f"{path} holds no sound: {counted(len(samples), 'sample')} at {rate} Hz")
    if not samples.isfinite().all():
        fail(f"{path} holds samples that are not finite numbers")
    return samples, rate


def log_mel(samples: Tensor, rate: int, facts: dict) -> Tensor:
    """Samples (N,) at `rate` as features (T, F), not normalised yet: decibels about their mean.

    So it doesn't matter how loud a recording is; silence is zero everywhere.
    """
    from torchaudio.functional import resample

    new = facts["sample_rate"]
    samples = samples[: int(facts["max_seconds"] * rate) + 1]
    ratio = Fraction(new, rate).limit_denominator(1000)  # keeps the filter's table small
    if ratio != 1:
        samples = resample(samples, ratio.denominator, max(1, ratio.numerator))
    to_mel = mel_transform(new, facts["mels"])
    short = to_mel.n_fft - len(samples)
    power = to_mel(torch.nn.functional.pad(samples, (0, max(0, short)))).T  # (T, F)
    level = 10 * power.clamp(min=1e-30).log10()
    level = level.clamp(min=level.max() - DEEPEST)
    return level - level.mean()


TRANSFORMS: dict[tuple[int, int], torch.nn.Module] = {}  # made once a rate


def mel_transform(rate: int, mels: int) -> torch.nn.Module:
    """Power of mel bands by the short-time Fourier transform."""
    from torchaudio.transforms import MelSpectrogram

    if (rate, mels) not in TRANSFORMS:
        window = max(2, round(WINDOW * rate))
        n_fft = 2 ** (window - 1).bit_length() * 2
        if mels > n_fft // 8:
            fail(f"--mels {mels}: at {rate:,} samples a second there are {n_fft // 8} at most")
        kind = dict(win_length=window, hop_length=max(1, round(HOP * rate)), n_mels=mels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bands narrower than the transform's lines
            TRANSFORMS[rate, mels] = MelSpectrogram(rate, n_fft, **kind, f_min=20.0)
    return TRANSFORMS[rate, mels]


def normalise(features: Tensor, facts: dict) -> Tensor:
    """Features (T, F) with mean 0 and std 1 in each band, as over the training set."""
    return (features - torch.tensor(facts["mean"])) / torch.tensor(facts["std"])


def spec_augment(
    freq_mask: int, time_mask: int, features: Tensor, lengths: Tensor, draw: Draw
) -> Tensor:
    """Covers bands and moments of features (B, T, F) with zeros, which are their mean (Park et al.
    2019, Sec. 2): twice 0 to `freq_mask` bands, and 0 to `time_mask` moments. Time isn't warped,
    which mattered least there (Sec. 5.1)."""
    batch, steps, bands = features.shape
    f, f0, t, t0 = draw.uniform(0, 1, 4, NUM_MASKS).cpu().unbind(1)  # (B, NUM_MASKS)
    longest = (lengths * MOST_MASKED).floor().clamp(max=time_mask)[:, None]
    for share, begin, most, size in (
        (f, f0, torch.tensor(min(freq_mask, bands)), torch.full((batch, 1), bands)),
        (t, t0, longest, lengths[:, None]),
    ):
        width = (share * (most + 1)).floor()
        first = (begin * (size - width + 1)).floor()[..., None]  # (B, NUM_MASKS, 1)
        along = bands if most.dim() == 0 else steps
        places = torch.arange(along)
        covered = ((places >= first) & (places < first + width[..., None])).any(1)
        covered = covered[:, None, :] if most.dim() == 0 else covered[:, :, None]
        features = features.masked_fill(covered.to(features.device), 0.0)
    return features
