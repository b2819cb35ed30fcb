"""What was said, with times and confidences, and how subtitles and tables write it."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Word:
  """A word that was heard.

  Attributes:
    text: normalised.
    start_s, end_s: seconds from the start of the recording, from its first frame to its last.
    confidence: in [0, 1]; see `recogniser.frame_confidence`.
  """

  text: str
  start_s: float
  end_s: float
  confidence: float

  def later(self, seconds: float) -> "Word":
    """The same word, so much later."""
    return dataclasses.replace(self, start_s=self.start_s + seconds, end_s=self.end_s + seconds)


@dataclasses.dataclass(frozen=True)
class Transcript:
  """What was heard in a recording.

  Attributes:
    name: of the recording; "" where samples were given.
    words: in their order.
    seconds: of audio.
  """

  name: str
  words: tuple[Word, ...]
  seconds: float

  @property
  def text(self) -> str:
    """The words with spaces between."""
    return " ".join(word.text for word in self.words)

  @property
  def confidence(self) -> float:
    """The mean of the words' confidences; 0 of nothing."""
    return sum(word.confidence for word in self.words) / max(len(self.words), 1)


def as_txt(found: Transcript) -> str:
  """The text alone."""
  return f"{found.text}\n"


def as_json(found: Transcript) -> str:
  """Text, confidence, and every word with its times."""
  words = [
    {
      "text": word.text,
      "start": round(word.start_s, 3),
      "end": round(word.end_s, 3),
      "confidence": round(word.confidence, 4),
    }
    for word in found.words
  ]
  value = {
    "audio": found.name,
    "seconds": round(found.seconds, 3),
    "text": found.text,
    "confidence": round(found.confidence, 4),
    "words": words,
  }
  return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def as_ctm(found: Transcript) -> str:
  """NIST's CTM: recording, channel, start, duration, word, confidence."""
  name = "_".join(found.name.split()) or "audio"
  return "".join(
    f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} "
    f"{word.confidence:.4f}\n"
    for word in found.words
  )


def as_srt(found: Transcript) -> str:
  """SubRip's subtitles; players take what is in <> for tags, and know no way to escape it."""
  cues = enumerate(_cues(found), 1)
  clock = lambda seconds: _clock(seconds, ",")
  shown = lambda text: text.translate(_NO_TAGS)
  return "".join(f"{n}\n{clock(a)} --> {clock(b)}\n{shown(text)}\n\n" for n, (a, b, text) in cues)


def as_vtt(found: Transcript) -> str:
  """WebVTT's subtitles."""
  clock = lambda seconds: _clock(seconds, ".")
  cues = (f"{clock(a)} --> {clock(b)}\n{_escaped(text)}\n\n" for a, b, text in _cues(found))
  return "WEBVTT\n\n" + "".join(cues)


FORMATS = {"txt": as_txt, "json": as_json, "srt": as_srt, "vtt": as_vtt, "ctm": as_ctm}

# A subtitle is two lines of 42 characters at most, stays for 7 s at most, and ends in a pause.
_LINE_CHARACTERS, _CUE_SECONDS, _PAUSE_SECONDS = 42, 7.0, 0.8
# A word of one label lasts a frame, which nobody reads.
_SHORTEST_SECONDS = 1.0
_NO_TAGS = str.maketrans("<>", "‹›")


def _cues(found: Transcript) -> list[tuple[float, float, str]]:
  """(start, end, text) of subtitles; a short one stays on until the next, or the audio's end."""
  groups: list[list[Word]] = []
  for word in found.words:
    if groups and _belongs(groups[-1], word):
      groups[-1].append(word)
    else:
      groups.append([word])
  cues, until = [], found.seconds
  for group in reversed(groups):
    start = group[0].start_s
    end = max(group[-1].end_s, min(start + _SHORTEST_SECONDS, until))
    cues.append((start, end, "\n".join(_lines(group))))
    until = start
  return cues[::-1]


def _belongs(group: list[Word], word: Word) -> bool:
  return (
    max(map(len, _lines([*group, word]))) <= _LINE_CHARACTERS
    and word.end_s - group[0].start_s <= _CUE_SECONDS
    and word.start_s - group[-1].end_s <= _PAUSE_SECONDS
  )


def _lines(words: list[Word]) -> list[str]:
  """The text of words in one line, or in two whose longer one is as short as can be."""
  texts = [word.text for word in words]
  text = " ".join(texts)
  if len(text) <= _LINE_CHARACTERS or len(texts) == 1:
    return [text]
  halves = ([" ".join(texts[:n]), " ".join(texts[n:])] for n in range(1, len(texts)))
  return min(halves, key=lambda both: max(map(len, both)))


def _clock(seconds: float, mark: str) -> str:
  thousandths = round(1000 * seconds)
  minutes, rest = divmod(thousandths, 60_000)
  return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _escaped(text: str) -> str:
  return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
