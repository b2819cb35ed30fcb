"""Which transcripts can be taught."""

import pytest
import soundfile

from corpus import tone, write_manifest
from jaxkd.data import sources, texts
from jaxkd.data.corpora import Options
from jaxkd.errors import UserError
from jaxkd.labels import characters

LABELS = characters(" abc")
FRAMES = lambda samples: -(-samples // 640)


def source_of(folder, *given: str | None, seconds: float = 0.2) -> sources.Source:
  soundfile.write(str(folder / "x.wav"), tone("a", seconds=seconds), 16_000)
  rows = [{"audio_filepath": "x.wav", "text": text} for text in given]
  return sources.open_source(str(write_manifest(folder / "m.jsonl", rows)), Options())


def test_texts_must_be_there(tmp_path):
  with pytest.raises(UserError, match="no utterance has a transcript.*x.wav.*kd.scale=1.0"):
    texts.transcripts(source_of(tmp_path, None, None), all_needed=False)


@pytest.mark.parametrize("all_needed", [True, False])
def test_rows_without_transcript(tmp_path, caplog, all_needed):
  source = source_of(tmp_path, "a", None, "b")
  left, found = texts.transcripts(source, all_needed=all_needed)
  assert found == ["a", "b"] and len(left) == (2 if all_needed else 3)
  assert [name for name, _ in left.skipped] == ["x.wav#2"] * all_needed
  said = "are left out" if all_needed else "carry distillation alone"
  assert f"1 of 3 utterances have no transcript: they {said}" in caplog.text


def test_empty_transcripts_are_said(tmp_path, caplog):
  texts.transcripts(source_of(tmp_path, "", " "), all_needed=True)
  assert "every transcript is empty" in caplog.text


def test_texts_must_have_classes(tmp_path):
  source = source_of(tmp_path, "a b", "c")
  assert texts.check_texts(source, LABELS, FRAMES) is source
  with pytest.raises(UserError, match="the text 'c' has 'c'.*alphabet"):
    texts.check_texts(source, characters(" ab"), FRAMES)


def test_what_does_not_fit_its_audio_is_left_out_by_name(tmp_path, caplog):
  """0.2 s are five frames; a blank must part equal labels."""
  source = source_of(tmp_path, "abcab", "aab", "aabbc", "abcabc", "aaa", None, "aaaa")
  left = texts.check_texts(source, LABELS, FRAMES)
  assert left.texts == ["abcab", "aab", "aaa", None]
  assert dict(left.skipped) == {
    "x.wav#3": "its transcript needs 7 frames, and its audio has 5",
    "x.wav#4": "its transcript needs 6 frames, and its audio has 5",
    "x.wav#7": "its transcript needs 7 frames, and its audio has 5",
  }
  assert "3 of 7 utterances are left out: x.wav#3: its transcript needs" in caplog.text


def test_nothing_fits(tmp_path):
  with pytest.raises(UserError, match="no transcript fits its audio; the first: x.wav: .*needs 6"):
    texts.check_texts(source_of(tmp_path, "abcabc", "aaaa", None), LABELS, FRAMES)
