"""Log-mel features against float64, Kaldi's own code, and their own properties."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import reference
from jaxkd.models.features import LogMel, frame_len, log_mel

LENGTHS = (8000, 3200, 1605, 400, 399, 160, 1, 0)
KINDS = ("logmel", "kaldi", "sherpa", "nemo", "lasr", "granite")
compute = functools.partial(jax.jit, static_argnums=2)(log_mel)


def make_audio(lengths=LENGTHS, seed=0):
  """i16[B, S] of noise and tones, 0 in the padding, and i32[B]."""
  rng = np.random.default_rng(seed)
  audio = np.zeros((len(lengths), max(lengths)), np.int16)
  for row, samples in zip(audio, lengths, strict=True):
    seconds = np.arange(samples) / 16_000
    hz = rng.uniform(100, 7000, (3, 1))
    wave = np.sin(2 * np.pi * hz * seconds).sum(0) + 0.3 * rng.normal(size=samples)
    row[:samples] = 3000 * wave
  return audio, np.array(lengths, np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_counts_and_finite_rows(kind):
  audio, lengths = make_audio()
  features, mask = compute(audio, lengths, LogMel(kind, mels=23))
  assert features.shape == (8, 50, 23) and features.dtype == np.float32
  counts = {
    "logmel": [50, 20, 11, 3, 3, 1, 1, 0],
    "kaldi": [48, 18, 8, 1, 0, 0, 0, 0],
    "sherpa": [50, 20, 10, 3, 2, 1, 0, 0],
    "nemo": [50, 20, 10, 2, 2, 1, 0, 0],
    "lasr": [48, 18, 8, 1, 0, 0, 0, 0],
    "granite": [50, 20, 10, 2, 2, 0, 0, 0],
  }[kind]
  np.testing.assert_array_equal(mask.sum(1), counts)
  np.testing.assert_array_equal(frame_len(lengths, kind), counts)
  assert [int(frame_len(int(n), kind)) for n in lengths] == counts
  np.testing.assert_array_equal(mask, np.arange(50) < np.array(counts)[:, None])
  assert np.isfinite(features).all() and not features[~mask].any()


@pytest.mark.parametrize("normalise", ["none", "utterance"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_read(kind, normalise):
  settings = LogMel(kind, mels=23, normalise=normalise)
  audio, lengths = make_audio()
  features, mask = compute(audio, lengths, settings)
  real = np.arange(audio.shape[1]) < lengths[:, None]
  garbage = np.random.default_rng(1).integers(-(2**15), 2**15, audio.shape).astype(np.int16)
  dirty, dirty_mask = compute(np.where(real, audio, garbage), lengths, settings)
  np.testing.assert_array_equal(dirty, features)
  np.testing.assert_array_equal(dirty_mask, mask)
  longer = np.pad(audio / np.float32(32768), ((0, 0), (0, 777)), constant_values=np.nan)
  longer[:, : audio.shape[1]][~real] = np.nan
  dirty, dirty_mask = compute(longer, lengths, settings)
  assert dirty.shape[1] == 55 + (kind == "granite")
  assert not dirty[:, 50:].any() and not dirty_mask[:, 50:].any()
  np.testing.assert_allclose(dirty[:, :50], features, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_utterance_alone_equals_its_row(kind):
  settings = LogMel(kind, mels=23, normalise="utterance")
  audio, lengths = make_audio((5000, 2400, 1605))
  features, mask = compute(audio, lengths, settings)
  for row, samples in enumerate(lengths):
    alone, alone_mask = compute(audio[row : row + 1, :samples], lengths[row : row + 1], settings)
    np.testing.assert_allclose(alone[alone_mask], features[row][mask[row]], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_int16_equals_float(kind):
  audio, lengths = make_audio()
  settings = LogMel(kind, mels=23)
  features, _ = compute(audio, lengths, settings)
  floats, _ = compute(audio / np.float32(32768), lengths, settings)
  np.testing.assert_array_equal(floats, features)


def test_gain_changes_nothing_but_kaldi():
  audio, lengths = make_audio((4000, 1605))
  audio = audio / np.float32(32768)
  gain = np.array([[0.01], [2.7]], np.float32)
  quiet, full = (compute(x, lengths, LogMel(mels=23))[0] for x in (gain * audio, audio))
  np.testing.assert_allclose(quiet, full, atol=1e-3)
  kaldi, kaldi_mask = compute(audio, lengths, LogMel("kaldi", mels=23))
  moved, _ = compute(gain * audio, lengths, LogMel("kaldi", mels=23))
  expected = np.broadcast_to(2 * np.log(gain)[..., None], kaldi.shape)
  np.testing.assert_allclose((moved - kaldi)[kaldi_mask], expected[kaldi_mask], atol=1e-3)


@pytest.mark.parametrize("settings", [LogMel(), LogMel(mels=23, low_hz=0.0, high_hz=8000.0)])
def test_equals_float64(settings):
  audio, lengths = make_audio((2500, 1605, 161, 1))
  features, mask = compute(audio, lengths, settings)
  for row, samples in enumerate(lengths):
    expected = reference.log_mel(
      audio[row, :samples] / 32768, settings.mels, settings.low_hz, settings.high_hz
    )
    np.testing.assert_allclose(features[row][mask[row]], expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["logmel", "kaldi", "sherpa"])
@pytest.mark.parametrize("filter_id", [25, 40, 60, 78])
def test_pure_tone_lands_in_its_filter(kind, filter_id):
  settings = LogMel(kind)
  low, high = map(reference.mel, settings.band_hz)
  hz = 700 * (np.exp((low + (filter_id + 1) * (high - low) / 81) / 1127) - 1)
  tone = np.sin(2 * np.pi * hz * np.arange(4800) / 16_000).astype(np.float32)
  features, _ = compute(tone[None], np.array([4800]), settings)
  # Frames at the edges hold a step, which is in every filter.
  np.testing.assert_array_equal(features[0, 2:26].argmax(-1), filter_id)


def test_click_lands_in_its_frames():
  audio = np.zeros((1, 3200), np.float32)
  audio[0, 1680] = 1  # The middle of frame 10.
  features, _ = compute(audio, np.array([3200]), LogMel(mels=23))
  loud = np.flatnonzero(np.asarray(features)[0].mean(-1) > np.log(1e-9))
  np.testing.assert_array_equal(loud, [9, 10, 11])
  assert features[0].mean(-1).argmax() == 10


@pytest.mark.parametrize("mels, low_hz, high_hz", [(80, 60.0, 7600.0), (40, 20.0, 8000.0)])
def test_equals_kaldi(mels, low_hz, high_hz):
  knf = pytest.importorskip("kaldi_native_fbank")
  options = knf.FbankOptions()
  options.frame_opts.dither = 0
  options.frame_opts.snip_edges = True
  options.frame_opts.window_type = "povey"
  options.mel_opts.num_bins = mels
  options.mel_opts.low_freq, options.mel_opts.high_freq = low_hz, high_hz
  options.use_energy = False
  audio, lengths = make_audio()
  features, mask = compute(audio, lengths, LogMel("kaldi", mels, low_hz, high_hz))
  for row, samples in enumerate(lengths):
    fbank = knf.OnlineFbank(options)
    if samples:
      fbank.accept_waveform(16_000, audio[row, :samples].astype(np.float32).tolist())
    fbank.input_finished()
    assert int(mask[row].sum()) == fbank.num_frames_ready
    for frame in range(fbank.num_frames_ready):
      np.testing.assert_allclose(features[row, frame], fbank.get_frame(frame), atol=1e-3)


def test_equals_what_sherpa_computes():
  """The reference has sherpa-onnx's settings, and its own scale: it gives floats in [-1, 1]."""
  knf = pytest.importorskip("kaldi_native_fbank")
  options = knf.FbankOptions()
  options.frame_opts.dither = 0
  options.frame_opts.snip_edges = False
  options.frame_opts.samp_freq = 16_000
  options.mel_opts.num_bins = 80
  options.mel_opts.low_freq, options.mel_opts.high_freq = 20, -400
  audio, lengths = make_audio()
  features, mask = compute(audio, lengths, LogMel("sherpa"))
  for row, samples in enumerate(lengths[:6]):
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16_000, (audio[row, :samples] / np.float32(32768)).tolist())
    fbank.input_finished()
    assert int(mask[row].sum()) == fbank.num_frames_ready
    for frame in range(fbank.num_frames_ready):
      np.testing.assert_allclose(features[row, frame], fbank.get_frame(frame), atol=1e-3)


@pytest.mark.parametrize("mels", [80, 128])
def test_equals_what_nemo_computes(mels):
  """The reference is onnx-asr's, which it gives to exported models of NeMo."""
  preprocessors = pytest.importorskip("onnx_asr.preprocessors.numpy_preprocessor")
  audio, lengths = make_audio((8000, 3200, 1605, 480))
  waveforms = audio / np.float32(32768)
  expected, counts = preprocessors.NemoPreprocessorNumpy(f"nemo{mels}")(
    waveforms, lengths.astype(np.int64)
  )
  features, mask = compute(audio, lengths, LogMel("nemo", mels))
  np.testing.assert_array_equal(mask.sum(1), counts)
  expected = np.where(mask[..., None], expected.transpose(0, 2, 1)[:, :50], 0)
  np.testing.assert_allclose(features, expected, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_utterances_have_no_mean_and_unit_variance(kind):
  audio, lengths = make_audio()
  settings = LogMel(kind, mels=23)
  raw, _ = compute(audio, lengths, settings)
  features, mask = compute(audio, lengths, dataclasses.replace(settings, normalise="utterance"))
  assert np.isfinite(features).all() and not features[~mask].any()
  for row in range(3):
    real, plain = (np.asarray(x)[row][mask[row]] for x in (features, raw))
    np.testing.assert_allclose(real.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(real.std(0), 1, atol=1e-2)
    # No more than a shift and a scale of each filter.
    np.testing.assert_allclose(real * plain.std(0) + plain.mean(0), plain, atol=1e-2)


@pytest.mark.parametrize("normalise", ["none", "utterance"])
@pytest.mark.parametrize("kind", KINDS)
def test_silence_is_finite(kind, normalise):
  settings = LogMel(kind, mels=23, normalise=normalise)
  features, _ = compute(np.zeros((3, 800), np.int16), np.array([800, 1, 0]), settings)
  assert np.isfinite(features).all()


@pytest.mark.parametrize(
  ("settings", "line"),
  [
    ({"kind": "Kaldi"}, "kind is 'Kaldi'; it must be one of logmel, kaldi, sherpa, nemo"),
    ({"normalise": "speaker"}, "normalise is 'speaker'; it must be one of none, utterance"),
    ({"mels": 0}, "mels is 0; it must be a whole number, 1 or more"),
    ({"mels": 2.5}, "mels is 2.5"),
    ({"low_hz": 100.0, "high_hz": 100.0}, "low_hz is 100.0 and high_hz 100.0; .* from 0 to 8000"),
    ({"low_hz": -1.0}, "low_hz is -1.0"),
    ({"high_hz": 9000.0}, "high_hz 9000.0"),
    ({"low_hz": float("nan")}, "low_hz is nan"),
  ],
)
def test_settings_that_cannot_be(settings, line):
  with pytest.raises(ValueError, match=line):
    LogMel(**settings)


def test_frames_of_an_unknown_kind():
  with pytest.raises(
    ValueError, match="kind is 'Kaldi'; it must be one of logmel, kaldi, sherpa, nemo"
  ):
    frame_len(16_000, "Kaldi")
