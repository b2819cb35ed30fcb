"""Search with a lexicon and a language model, and the command that tunes it on a finished run."""

import dataclasses
import itertools
import json
import pathlib
import sys

import numpy as np
import pytest

import corpus
import drawn_run
import reference
from jaxkd import config as config_lib
from jaxkd import console
from jaxkd.commands import evaluate as evaluate_lib
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.data import corpora
from jaxkd.data.sources import open_source
from jaxkd.errors import UserError
from jaxkd.inference.search import ngram
from jaxkd.inference.search.lexicon import LexiconSearch, Options, open_lm, read_words, spell
from jaxkd.inference.search.split import SplitFrames
from jaxkd.labels import UnknownSymbol, characters

WIDE = Options(beam=100_000, token_beam=100, threshold=1e6)


@dataclasses.dataclass(frozen=True)
class Spelled:
  """Classes, and words with their spellings."""

  symbols: tuple[str, ...]
  words: dict[str, list[tuple[int, ...]]]
  space: str = " "

  @property
  def blank_id(self) -> int:
    return len(self.symbols) - 1

  def spellings(self, word: str):
    if word not in self.words:
      raise UnknownSymbol(word)
    return self.words[word]


# Characters, words with the space behind them; a double letter needs a blank.
LETTERS = Spelled(
  (" ", "a", "b", "_"),
  {"a": [(1, 0)], "ab": [(1, 2, 0)], "bb": [(2, 2, 0)], "aab": [(1, 1, 2, 0)]},
)
# Phonemes of which some end words; two words that sound alike; a word with two pronunciations.
SOUNDS = Spelled(
  ("A", "B", "A#", "B#", "_"),
  {"bar": [(1, 2), (0, 2)], "baa": [(1, 2)], "aab": [(0, 0, 3)], "abb": [(0, 1, 3)]},
)
TEXTS = {
  "letters": ["a ab bb", "ab a", "aab bb a"],
  "sounds": ["bar abb", "baa bar", "aab bar bar"],
}


def log_probs(seed: int, frames: int, classes: int, scale: float = 3.0) -> np.ndarray:
  logits = scale * np.random.default_rng(seed).normal(size=(frames, classes))
  return np.array([reference.log_softmax(frame) for frame in logits], np.float32)


def spoken(labels: Spelled, symbols: str, sure: float = 8.0) -> np.ndarray:
  """Log probabilities of frames that say these symbols almost surely."""
  logits = np.zeros((len(symbols), len(labels.symbols)))
  logits[np.arange(len(symbols)), [labels.symbols.index(s) for s in symbols]] = sure
  return np.array([reference.log_softmax(frame) for frame in logits], np.float32)


def no_prior(labels: Spelled) -> np.ndarray:
  return np.zeros(len(labels.symbols), np.float32)


def language_model(path: pathlib.Path, texts: list[str], order: int = 3):
  ngram.write_arpa(ngram.estimate(texts, order), path)
  return open_lm(path)


def searcher(labels: Spelled, lm=None) -> LexiconSearch:
  pytest.importorskip("flashlight.lib.text.decoder")
  return LexiconSearch(spell(labels.words, labels), labels, lm)


def readings(labels: Spelled, frames: int) -> dict[str, np.ndarray]:
  """Sentence → all paths i32[paths, frames] that say it, by CTC's rules."""
  found: dict[str, list] = {}
  for path in itertools.product(range(len(labels.symbols)), repeat=frames):
    ids = tuple(c for c, _ in itertools.groupby(path) if c != labels.blank_id)
    for text in sentences(labels, ids):
      found.setdefault(text, []).append(path)
  return {text: np.array(paths) for text, paths in found.items()}


def sentences(labels: Spelled, ids: tuple[int, ...]) -> set[str]:
  """What a label sequence says: spaces may be several, and the last is not said."""
  space = labels.symbols.index(" ") if " " in labels.symbols else None
  if space is not None:
    words = "".join(map(str, ids)).split(str(space))
    ids = tuple(int(c) for word in words if word for c in word + str(space))
  if not ids:
    return {""}
  found = set()
  for word, spellings in labels.words.items():
    for spelling in spellings:
      if ids[: len(spelling)] == spelling:
        rest = sentences(labels, ids[len(spelling) :])
        found |= {f"{word} {text}".strip() for text in rest}
  return found


@pytest.mark.parametrize("name", ["letters", "sounds"])
@pytest.mark.parametrize("with_lm", [False, True])
def test_finds_the_best_of_all_paths(name, with_lm, tmp_path):
  """Words may sound alike: without a language model only the score is compared."""
  labels = {"letters": LETTERS, "sounds": SOUNDS}[name]
  lm = language_model(tmp_path / "lm.arpa", TEXTS[name]) if with_lm else None
  weigh = ngram.read_arpa(tmp_path / "lm.arpa").sentence if with_lm else lambda text: 0.0
  find, paths = searcher(labels, lm), readings(labels, 6)
  bonus = {t: 1.3 * weigh(t) - 0.4 * len(t.split()) for t in paths}
  options = dataclasses.replace(WIDE, lm_weight=1.3, word_score=-0.4)
  for seed in range(30):
    frames = log_probs(seed, 6, len(labels.symbols), scale=[1.5, 3.0, 6.0][seed % 3])
    scores = {
      text: frames[np.arange(6), ways].sum(1).max() + bonus[text] for text, ways in paths.items()
    }
    best = find(frames, no_prior(labels), options, nbest=3)
    assert best[0].score == pytest.approx(max(scores.values()), abs=1e-3), seed
    assert scores[best[0].text] == pytest.approx(best[0].score, abs=1e-3)
    assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
    assert len({h.text for h in best}) == len(best)


def test_a_lexicon_admits_its_words_only():
  find = searcher(LETTERS)
  for seed in range(20):
    frames = log_probs(seed, 12, 4)
    for best in find(frames, no_prior(LETTERS), Options(), nbest=5):
      assert set(best.text.split()) <= set(LETTERS.words)
  assert find(spoken(LETTERS, "ba"), no_prior(LETTERS), Options())[0].text in LETTERS.words


@pytest.mark.parametrize(
  ("said", "text"),
  [
    ("ab", "ab"),
    ("a__b", "ab"),
    ("aab", "ab"),
    ("a_ab", "aab"),
    ("b_b", "bb"),
    ("  ab   _ a", "ab a"),
    ("ab_ _bbb_bb ", "ab bb"),
    ("___", ""),
  ],
)
def test_repeats_blanks_and_spaces(said, text):
  assert searcher(LETTERS)(spoken(LETTERS, said), no_prior(LETTERS), Options())[0].text == text


def test_equal_classes_at_the_end_of_a_word_need_a_blank_between():
  labels = Spelled(("bo", "o", "_"), {"boo": [(0, 1, 1)], "bow": [(0, 1)]})
  find = searcher(labels)
  for said, text in [
    ("bo o _", "bow"),
    ("bo o o _", "bow"),
    ("bo o _ o _", "boo"),
    ("bo o _ o", "boo"),
  ]:
    assert find(spoken(labels, said.split()), no_prior(labels), WIDE)[0].text == text, said


def test_one_sound_may_be_a_word():
  """It may last, and is there twice where a blank is between."""
  labels = Spelled(("I", "W", "I#", "_"), {"i": [(2,)], "why": [(1, 2)]})
  find = searcher(labels)
  frame = {"i": "I#", "w": "W", "_": "_"}
  for said, text in {
    "ii": "i",
    "iiw": "i",
    "i_i": "i i",
    "wii": "why",
    "wiiiiwi": "why why",
    "wi_i": "why i",
    "wii_iiwi": "why i why",
  }.items():
    frames = spoken(labels, [frame[c] for c in said])
    assert find(frames, no_prior(labels), WIDE)[0].text == text, said


def test_a_language_model_decides_between_words_that_sound_alike(tmp_path):
  labels = Spelled(("A", "B#", "_"), {"bee": [(1,)], "be": [(1,)], "a": [(0, 1)]})
  frames = spoken(labels, ["A", "B#", "_", "B#"])
  for texts, text in [(["a bee"] * 3 + ["be"], "a bee"), (["a be"] * 3 + ["bee"], "a be")]:
    lm = language_model(tmp_path / "lm.arpa", texts, 2)
    options = dataclasses.replace(WIDE, lm_weight=1.0)
    best = searcher(labels, lm)(frames, no_prior(labels), options, nbest=2)
    assert best[0].text == text and {h.text for h in best} == {"a be", "a bee"}
    assert best[0].score > best[1].score + 0.1


def test_words_that_nothing_tells_apart_are_the_first(tmp_path):
  """However flashlight orders them: without a language model, or outside its vocabulary."""
  labels = Spelled(("A", "_"), {word: [(0,)] for word in ("sea", "c", "see")})
  frames, options = spoken(labels, "A_A_A"), dataclasses.replace(WIDE, lm_weight=1.0)
  best = searcher(labels)(frames, no_prior(labels), WIDE, nbest=3)
  assert best[0].text == "sea sea sea" and best[0].score > best[1].score + 1
  lm = language_model(tmp_path / "lm.arpa", ["d"], 2)
  assert searcher(labels, lm)(frames, no_prior(labels), options)[0].text == "sea sea sea"


def test_of_many_words_that_sound_alike_the_likely_ones_stay(tmp_path):
  words = [f"w{i}" for i in range(20)]
  labels = Spelled(("A", "_"), {word: [(0,)] for word in words})
  texts = [word for i, word in enumerate(words) for _ in range(i + 1)]
  lm = language_model(tmp_path / "lm.arpa", texts, 2)
  options = dataclasses.replace(WIDE, lm_weight=1.0)
  assert searcher(labels, lm)(spoken(labels, "A"), no_prior(labels), options)[0].text == "w19"


def test_prior_is_subtracted_by_its_scale():
  frames, prior = log_probs(0, 8, 4), np.log(np.array([0.2, 0.1, 0.1, 0.6], np.float32))
  find = searcher(LETTERS)
  scaled = find(frames, prior, dataclasses.replace(WIDE, prior_scale=0.5), nbest=4)
  assert scaled == find(frames - 0.5 * prior, no_prior(LETTERS), WIDE, nbest=4)
  assert scaled != find(frames, no_prior(LETTERS), WIDE, nbest=4)


def test_classes_that_no_word_has_take_no_place_in_the_token_beam():
  """Nor does what they hold, such as the prior of a class that never occurs."""
  labels = Spelled(("x", "A", "B#", "_"), {"ab": [(1, 2)]})
  frames = spoken(labels, ["A", "B#"])
  frames[:, 0] = 50
  assert searcher(labels)(frames, no_prior(labels), Options(token_beam=1))[0].text == "ab"


def test_words_of_a_lexicon(tmp_path):
  path = tmp_path / "words.txt"
  text = ";;; a comment\nHello\thh ah l ow\n\n# more\nhello(2)  HH EH L OW\nIt’s\n"
  path.write_text(text, encoding="utf-8-sig")
  assert read_words(path) == ["hello", "it's"]
  lexicon = spell(["a", "zebra", "a", "bb"], LETTERS)
  assert list(lexicon.words) == ["a", "bb"] and lexicon.missing == ("zebra",)


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (None, "cannot be read"),
    (b"\xff\xfe", "cannot be read"),
    (b";;; nothing\n\n", "holds no words"),
    (b"one\ntwo words\tT UW\n", r"words.txt:2: one word must stand before the tab: 'two words"),
  ],
)
def test_a_lexicon_that_does_not_parse(tmp_path, content, words):
  if content is not None:
    (tmp_path / "words.txt").write_bytes(content)
  with pytest.raises(UserError, match=words) as caught:
    read_words(tmp_path / "words.txt")
  assert "\n" not in str(caught.value)


def test_what_cannot_be_searched_with(tmp_path, monkeypatch):
  words = r"^words.txt has no word that the classes can spell \(zebra, cow\): give words as the mod"
  with pytest.raises(UserError, match=words):
    spell(["zebra", "cow"], LETTERS, "words.txt")
  ngram.write_arpa(ngram.estimate(["a b"], 1), tmp_path / "lm.arpa")
  with pytest.raises(UserError, match="is of order 1: the search reads 2 to 6"):
    open_lm(tmp_path / "lm.arpa")
  lm = language_model(tmp_path / "lm.arpa", ["a b"], 2)
  (tmp_path / "lm.arpa").write_text("\\data\\\nngram 1=0\nngram 2=0\n\\end\\\n")
  with pytest.raises(UserError, match="is not taken by KenLM") as caught:
    searcher(LETTERS, lm)
  assert "\n" not in str(caught.value)
  monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[decode\]'"):
    LexiconSearch(spell(["a"], LETTERS), LETTERS)


def test_words_that_are_nothing_but_spaces_are_none(tmp_path):
  """As no-break spaces in an ARPA file; they have no spelling either."""
  head = "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-1\t<s>\t-0.3\n-1\t</s>\n"
  tail = "\n-1\t\u00a0\t0\n\n\\2-grams:\n-0.5\t<s> </s>\n\n\\end\\\n"
  path = tmp_path / "lm.arpa"
  path.write_text(f"{head}-1\ta\t0{tail}", encoding="utf-8")
  lm = open_lm(path)
  assert lm.words == {"a": "a"}
  assert searcher(LETTERS, lm)(spoken(LETTERS, "a"), no_prior(LETTERS), Options())[0].text == "a"
  path.write_text(f"{head}-1\t\u2003\t0{tail}", encoding="utf-8")
  with pytest.raises(UserError, match="lm.arpa has no words: give a language model of sentences"):
    open_lm(path)
  silent = dataclasses.replace(LETTERS, words=LETTERS.words | {"nothing": [()], "\u00a0": [(0,)]})
  found = spell(silent.words, silent)
  assert found.words == LETTERS.words and found.missing == ("nothing", "\u00a0")


@pytest.mark.parametrize(
  ("labels", "said"),
  [
    (LETTERS, "  ab_  a_ab _ b_b"),
    (LETTERS, "ab a  "),
    (SOUNDS, ["_", "B", "B", "A#", "A#", "A", "A", "A#", "A#", "_", "A", "B", "_", "B#"]),
    (SOUNDS, ["A", "_", "A", "B#", "A", "A#"]),
  ],
)
def test_the_spelling_is_the_one_that_was_heard(labels, said):
  """Of words with several, too; and the labels are those of the frames."""
  best = searcher(labels)(spoken(labels, said), no_prior(labels), WIDE)[0]
  heard = best.heard
  path = [c for c, _ in itertools.groupby(labels.symbols.index(s) for s in said)]
  assert heard.labels == tuple(c for c in path if c != labels.blank_id)
  assert heard.text == best.text != ""
  end = labels.symbols.index(" ") if labels is LETTERS else None
  for word, first, last in heard.words:
    spelling = heard.labels[first:last]
    assert spelling in [tuple(c for c in ids if c != end) for ids in labels.words[word]]


def test_a_word_of_one_label_that_is_heard_twice_has_two():
  labels = Spelled(("I", "W", "I#", "_"), {"i": [(2,)], "why": [(1, 2)]})
  frames = spoken(labels, ["_", "I#", "I#", "_", "W", "I#", "_", "I#"])
  heard = searcher(labels)(frames, no_prior(labels), WIDE)[0].heard
  assert heard == ((2, 1, 2, 2), (("i", 0, 1), ("why", 1, 3), ("i", 3, 4)))


# The command.


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A corpus, a teacher/ that was trained on transcripts, a student/ that was not."""
  pytest.importorskip("flashlight.lib.text.decoder")
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  alphabet = "--config.labels.alphabet= abc"
  config, _ = overrides.parse(corpus.flags(folder, "symmetric", folder / "student", alphabet))
  drawn_run.save(folder / "teacher", config_lib.for_teacher(config), {"teacher_workdir": None})
  drawn_run.save(folder / "student", config, {"teacher_workdir": "../teacher"})
  return folder


def command(lab, *more: str, name: str = "student", file: str = "search.json") -> dict:
  given = ["search", f"--workdir={lab / name}", "--lm_weights=0.5,1", "--prior_scales=0,0.5", *more]
  assert command_line.main(given) == 0
  return json.loads((lab / name / file).read_text())


def without_times(found: dict) -> dict:
  return {
    k: {x: y for x, y in v.items() if x != "rtf"} if isinstance(v, dict) else v
    for k, v in found.items()
  }


def rows(lab, model: str, split: str = "test", mark: str = "") -> list[dict]:
  path = lab / "student" / "hypotheses" / f"{split}.{model}.search{mark}.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_finished_run_is_searched(lab, capsys, monkeypatch, quick_to_compile):
  monkeypatch.setattr(console, "out", console.Console(file=sys.stdout, width=100))
  found = command(lab, "--prefix_beam=4")
  assert found["lm"] == {"name": "train", "order": 4, "words": 3, "file": "lm.arpa"}
  assert found["lexicon"] == {
    "words": 3,
    "cannot_be_spelled": 0,
    "lm_words_missing": 0,
    "not_in_lm": 0,
    "oov_rate_dev": 0.0,
    "oov_rate_test": 0.0,
  }
  evaluated = evaluate_lib.evaluate(lab / "student", str(lab / "test.jsonl"))
  for model in ("student", "teacher"):
    block = found[model]
    for rate in ("wer", "cer"):
      assert block["greedy"]["test"][rate] == evaluated[model][rate]
    assert [row["search"] for row in block["grid"]] == ["lexicon"] * 2 + ["lexicon_lm"] * 4
    for kind in ("lexicon", "lexicon_lm"):
      tried = [row for row in block["grid"] if row["search"] == kind]
      best = min(tried, key=lambda row: (row["dev_wer"], row["dev_cer"]))
      tuned = ("lm_weight", "prior_scale", "word_score")
      assert {k: block[kind][k] for k in tuned} == {k: best[k] for k in tuned}
      assert block[kind]["dev"]["wer"] == best["dev_wer"] and block[kind]["beam"] == 1024
    assert block["prefix_beam"]["beam"] == 4 and block["prefix_beam"]["test"]["wer"] > 0
    assert all(block["rtf"][k] > 0 for k in ("acoustic", "search", "prefix_beam"))
    for row in rows(lab, model):
      assert row["hypothesis"] == row["nbest"][0]["text"] and set(row["hypothesis"]) <= set(" abc")
      assert 1 <= len(row["nbest"]) <= 10
  kept = [p.name for p in (lab / "student").iterdir()]
  assert {"lm.arpa", "log_prior.json", "teacher_log_prior.json"} <= set(kept)
  table = capsys.readouterr().out
  assert "lexicon + LM" in table and "prefix beam" in table and "search.json" in table
  before = rows(lab, "student")
  assert without_times(command(lab, "--prefix_beam=4")) == without_times(found)
  assert rows(lab, "student") == before


def test_gaps_between_lexicon_model_and_data_are_counted(lab, tmp_path, caplog, quick_to_compile):
  (tmp_path / "words.txt").write_text("a\nb\nabba\nżaba\n")
  lm = language_model(tmp_path / "lm.arpa", ["A C", "B A"], 2)
  given = (f"--lm={lm.path}", f"--lexicon={tmp_path / 'words.txt'}", "--model=student")
  with caplog.at_level("WARNING", "jaxkd"):
    own = command(lab, *given, f"--data={lab / 'test.jsonl'}")  # the run's
    kept = rows(lab, "student")
    mark = "-" + open_source(str(lab / "dev.jsonl"), corpora.Options()).fingerprint()[:8]
    other = dict(file=f"search{mark}.json")
    found = command(lab, *given, f"--data={lab / 'dev.jsonl'}", **other)
  # What is found on other data is not taken for the run's own.
  assert json.loads((lab / "student" / "search.json").read_text()) == own
  assert rows(lab, "student") == kept
  spoken_words = " ".join(row["reference"] for row in rows(lab, "student", mark=mark)).split()
  rate = round(spoken_words.count("c") / len(spoken_words), 6)
  assert found["lexicon"] == {
    "words": 3,
    "cannot_be_spelled": 1,
    "lm_words_missing": 1,
    "not_in_lm": 1,
    "oov_rate_dev": rate,
    "oov_rate_test": rate,
  }
  assert "teacher" not in found and found["data"]["test"] == str(lab / "dev.jsonl")
  assert found["student"]["lexicon_lm"]["dev"] == found["student"]["lexicon_lm"]["test"]
  for line in (
    "words of the language model that the lexicon lacks: 1 (c)",
    "words of the lexicon that the language model lacks: 1 (abba)",
    "words of the lexicon that the model's classes cannot spell: 1 (żaba)",
    f"of {len(spoken_words)} words spoken in test the lexicon lacks: {spoken_words.count('c')} (c)",
  ):
    assert line in caplog.text


def test_without_lexicon_and_model(lab, quick_to_compile):
  found = command(lab, "--lm=none", "--model=teacher")
  assert found["lm"] is None and found["lexicon"] is None and "student" not in found
  assert found["teacher"].keys() == {"rtf", "greedy", "prefix_beam", "grid"}


def test_texts_that_differ_in_spaces_only_add_up():
  labels = characters(" a")
  frames = spoken(Spelled((" ", "a", "_"), {}), "a_", sure=1.0)
  found = SplitFrames(["x"], ["a"], [frames], 1.0, 1.0)
  (nbest,) = found.prefix_beam(labels, 10, 10).nbests
  assert [text for text, _ in nbest] == ["a", ""]
  assert np.exp([p for _, p in nbest]).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    (["--model=teacher"], "missing: --workdir; see .*search --help"),
    (["--workdir={lab}/student", "more"], "'more' is not a flag; see .*--help"),
    (["--workdir={lab}"], "not the workdir of a finished run"),
    (["--workdir={lab}/student", "--wrkdir=x"], "wrkdir"),
    (["--workdir={lab}/student", "--model=both,"], "model"),
    (["--workdir={lab}/student", "--beam=0"], "beam"),
    (["--workdir={lab}/student", "--order=7"], "order"),
    (
      ["--workdir={lab}/student", "--lm_weights=1;2"],
      "--lm_weights: it must be .*not 1;2",
    ),
    (
      ["--workdir={lab}/student", "--prior_scales=nan"],
      "--prior_scales: it must be .*not nan",
    ),
    (["--workdir={lab}/student", "--lm=nowhere.arpa"], "nowhere.arpa cannot be read"),
    (["--workdir={lab}/student", "--lexicon=nowhere.txt"], "--lexicon=nowhere.txt cannot be read"),
    (["--workdir={lab}/student", "--data=nowhere"], "nowhere: no such file"),
    (["--workdir={lab}/teacher", "--model=teacher"], "has no teacher"),
    (["--workdir={lab}/alone"], "neither .*unlabelled.jsonl nor .*: give --lm=FILE.arpa"),
    (["--workdir={lab}/untuned"], "nothing to tune on"),
  ],
)
def test_mistakes_are_one_line(lab, given, words):
  for name, field, value in [("alone", "train", "unlabelled"), ("untuned", "dev", "")]:
    if not (lab / name).exists():
      config = config_lib.base("manifest").copy_and_resolve_references().unlock()
      config.update(json.loads((lab / "teacher" / "config.json").read_text()))
      config.data[field] = str(lab / f"{value}.jsonl") if value else ""
      drawn_run.save(lab / name, config, {"teacher_workdir": None})
  with pytest.raises(UserError, match=words) as caught:
    command_line.main(["search", *(flag.format(lab=lab) for flag in given)])
  assert "\n" not in str(caught.value)
