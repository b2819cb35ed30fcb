"""How transcripts are written."""

import json

from jaxkd.inference import transcript
from jaxkd.inference.transcript import Transcript, Word

FOUND = Transcript(
  "a b/talk one.wav",
  (
    Word("hello", 0.04, 0.4, 0.9),
    Word("<world>", 0.44, 1.0, 0.5),
    Word("later", 3723.5, 3724.0006, 0.1),
  ),
  4000.0,
)


def test_text_and_confidence():
  assert FOUND.text == "hello <world> later" and FOUND.confidence == 0.5
  assert transcript.as_txt(FOUND) == "hello <world> later\n"
  nothing = Transcript("x", (), 1.0)
  assert (nothing.text, nothing.confidence) == ("", 0.0)
  for write in transcript.FORMATS.values():
    assert isinstance(write(nothing), str)


def test_json():
  found = json.loads(transcript.as_json(FOUND))
  assert found["text"] == FOUND.text and found["audio"] == FOUND.name
  assert found["words"][0] == {"text": "hello", "start": 0.04, "end": 0.4, "confidence": 0.9}


def test_ctm():
  assert transcript.as_ctm(FOUND).splitlines()[0] == "talk_one.wav 1 0.040 0.360 hello 0.9000"


def test_subtitles():
  assert transcript.as_srt(FOUND) == (
    "1\n00:00:00,040 --> 00:00:01,000\nhello <world>\n\n2\n01:02:03,500 --> 01:02:04,001\nlater\n\n"
  )
  assert transcript.as_vtt(FOUND) == (
    "WEBVTT\n\n00:00:00.040 --> 00:00:01.000\nhello &lt;world&gt;\n\n"
    "01:02:03.500 --> 01:02:04.001\nlater\n\n"
  )


def test_subtitles_are_short():
  words = tuple(Word("word", 0.5 * i, 0.5 * i + 0.4, 1.0) for i in range(100))
  cues = transcript._cues(words)
  assert " ".join(text for _, _, text in cues) == Transcript("", words, 50.0).text
  for start, end, text in cues:
    assert len(text) <= 84 and end - start <= 7
  fast = tuple(Word("syllables", 0.1 * i, 0.1 * i + 0.1, 1.0) for i in range(100))
  assert all(len(text) <= 84 for _, _, text in transcript._cues(fast))
