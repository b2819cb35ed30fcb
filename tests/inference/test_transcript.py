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
  assert transcript.as_ctm(FOUND).splitlines()[0] == "a_b/talk_one.wav 1 0.040 0.360 hello 0.9000"


def test_subtitles():
  assert transcript.as_srt(FOUND) == (
    "1\n00:00:00,040 --> 00:00:01,040\nhello ‹world›\n\n2\n01:02:03,500 --> 01:02:04,500\nlater\n\n"
  )
  assert transcript.as_vtt(FOUND) == (
    "WEBVTT\n\n00:00:00.040 --> 00:00:01.040\nhello &lt;world&gt;\n\n"
    "01:02:03.500 --> 01:02:04.500\nlater\n\n"
  )


def test_subtitles_are_short():
  words = tuple(Word("word", 0.5 * i, 0.5 * i + 0.4, 1.0) for i in range(100))
  cues = transcript._cues(Transcript("", words, 50.0))
  assert " ".join(text.replace("\n", " ") for _, _, text in cues) == " ".join(["word"] * 100)
  for start, end, text in cues:
    assert max(map(len, text.split("\n"))) <= 42 and end - start <= 7
  fast = tuple(Word("syllables", 0.1 * i, 0.1 * i + 0.1, 1.0) for i in range(100))
  texts = [text for _, _, text in transcript._cues(Transcript("", fast, 10.0))]
  assert max(len(line) for text in texts for line in text.split("\n")) <= 42
  assert {text.count("\n") for text in texts[:-1]} == {1}


def test_a_long_subtitle_is_cut_near_its_middle():
  text = "a subtitle of more than a line is cut near its middle"
  words = tuple(Word(word, 0.1 * i, 0.1 * i + 0.1, 1.0) for i, word in enumerate(text.split()))
  for write in (transcript.as_srt, transcript.as_vtt):
    found = write(Transcript("", words, 2.0))
    assert "a subtitle of more than a\nline is cut near its middle\n\n" in found
  endless = Transcript("", (Word(60 * "x", 0.0, 1.0, 1.0), Word("y", 1.0, 2.0, 1.0)), 2.0)
  assert [text for _, _, text in transcript._cues(endless)] == [60 * "x", "y"]


def test_subtitles_of_a_frame_can_be_read():
  """They stay for a second, or until the next one or the end; other formats say what was heard."""
  starts = (1.0, 5.0, 5.9, 9.5)
  words = tuple(Word("yes", start, start + 0.04, 1.0) for start in starts)
  found = Transcript("x", words, 10.0)
  times = [(start, end) for start, end, _ in transcript._cues(found)]
  assert times == [(1.0, 2.0), (5.0, 5.9), (5.9, 6.9), (9.5, 10.0)]
  assert "00:00:01,000 --> 00:00:02,000" in transcript.as_srt(found)
  assert "00:00:01.000 --> 00:00:02.000" in transcript.as_vtt(found)
  assert json.loads(transcript.as_json(found))["words"][0]["end"] == 1.04
  assert transcript.as_ctm(found).startswith("x 1 1.000 0.040 yes")
  beyond = Transcript("x", (Word("yes", 9.97, 10.01, 1.0),), 10.0)
  assert [end for _, end, _ in transcript._cues(beyond)] == [10.01]
