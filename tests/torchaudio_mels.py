"""The two parts of torchaudio that Granite Speech 5's front-end in transformers calls.

torchaudio has no release for every torch; these are its formulas, in torch and float32. Whoever
imports this is skipped where torch or transformers is not installed.
"""

import math
import types

import pytest

from hf_models import torch

granite = pytest.importorskip(
  "transformers.models.granite_speech5.feature_extraction_granite_speech5"
)


class MelSpectrogram(torch.nn.Module):
  """Power of centred frames under a Hann window, through triangles in Hz at HTK's mels."""

  def __init__(self, sample_rate, n_fft, win_length, hop_length, n_mels):
    super().__init__()
    self.sizes = dict(n_fft=n_fft, win_length=win_length, hop_length=hop_length)
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    points = 700.0 * (10.0 ** (torch.linspace(0.0, top, n_mels + 2) / 2595.0) - 1.0)
    bins = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    apart, slopes = points[1:] - points[:-1], points[None] - bins[:, None]
    triangles = torch.minimum(-slopes[:, :-2] / apart[:-1], slopes[:, 2:] / apart[1:])
    self.bank = triangles.clamp(min=0)

  def forward(self, audio):
    window = torch.hann_window(self.sizes["win_length"])
    spectrum = torch.stft(audio, **self.sizes, window=window, center=True, return_complex=True)
    return (spectrum.abs() ** 2).swapaxes(1, 2).matmul(self.bank).swapaxes(1, 2)


def compute_deltas(x, win_length):
  """Half of what lies between the next frame and the last one; the ends stand for themselves."""
  assert win_length == 3
  padded = torch.nn.functional.pad(x, (1, 1), mode="replicate")
  return (padded[..., 2:] - padded[..., :-2]) / 2


granite.torchaudio = types.SimpleNamespace(
  transforms=types.SimpleNamespace(MelSpectrogram=MelSpectrogram),
  functional=types.SimpleNamespace(compute_deltas=compute_deltas),
)
FeatureExtractor = granite.GraniteSpeech5FeatureExtractor
