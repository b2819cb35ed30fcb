"""Runs with phonemes and with sentencepiece, and what config.labels gets wrong."""

import json
import pathlib

import numpy as np
import pytest

import corpus
from jaxkd import config as config_lib
from jaxkd import files, workdirs
from jaxkd import labels as labels_lib
from jaxkd.commands import evaluate as evaluate_lib
from jaxkd.config import overrides
from jaxkd.data import texts
from jaxkd.data.corpora import Options
from jaxkd.data.sources import open_source
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.labels.lexicon import Lexicon
from jaxkd.training import ahead, assembly
from jaxkd.training import loop as train

pytestmark = pytest.mark.usefixtures("quick_to_compile", "compiled_once")
NAME, SIZE = "--config.labels.name", "--config.labels.size"
LEXICON = "a L OW\nb M IH D\nb M IY D\nc H AY\nC HH AY\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  (folder / "lexicon.txt").write_text(LEXICON)
  return folder


def of_phonemes(lab, name: str = "lexicon") -> list[str]:
  values = {"name": "phonemes", "lexicon": lab / f"{name}.txt", "cmudict": False}
  return [f"--config.labels.{field}={value}" for field, value in values.items()]


def start(lab, variant: str, name: str, *more: str):
  config, folder = overrides.parse(corpus.flags(lab, variant, lab / name, *more))
  return train.run(config, folder), folder


def planned(lab, variant: str, *more: str) -> assembly.Plan:
  return plan_of(overrides.parse(corpus.flags(lab, variant, lab / "opened", *more))[0])


def plan_of(config) -> assembly.Plan:
  return assembly.plan_run(config, pathlib.Path("opened"))


def refused(lab, words: str, variant: str, *more: str) -> None:
  with pytest.raises(UserError, match=words) as caught:
    start(lab, variant, "refused", *more)
  assert "\n" not in str(caught.value) and not (lab / "refused").exists()


def manifest(lab, name: str, texts: list[str]):
  rows = (lab / "train.jsonl").read_text().splitlines()[: len(texts)]
  rows = [json.loads(row) | {"text": text} for row, text in zip(rows, texts, strict=True)]
  return corpus.write_manifest(lab / f"{name}.jsonl", rows)


def as_teacher(lab, name: str, *flags: str) -> list[str]:
  """The flag of a teacher with these labels; of its workdir there is what its classes need."""
  config, folder = overrides.parse(corpus.flags(lab, "ctc", lab / name, *flags, train_data(lab)))
  folder.mkdir()
  plan_of(config).vocabulary.save(folder / workdirs.LABELS)
  files.write_json(folder / "config.json", config.to_dict())
  files.write_json(folder / "results.json", {})
  return [f"--config.teacher.source={folder}"]


def train_data(lab) -> str:
  return f"--config.data.train={lab / 'train.jsonl'}"


@pytest.mark.slow
def test_phonemes_from_transcripts_to_words(lab):
  short = ["--config.data.dev=", "--config.training.epochs=1", train_data(lab)]
  found, folder = start(lab, "ctc", "phonemes", *of_phonemes(lab), *short)
  labels = Vocabulary.load(folder / "labels.json")
  assert labels.kind == "phonemes" and len(labels.symbols) == 2 * 9 + 1
  assert found["test"]["student"]["wer"] >= 0
  rows = (folder / "hypotheses" / "test.student.jsonl").read_text().splitlines()
  words = {word for row in rows for word in json.loads(row)["hypothesis"].split()}
  assert all(word in "abc" or word[0] + word[-1] == "<>" for word in words)
  evaluated = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert evaluated["student"] == found["test"]["student"]
  moved = lab / "moved.txt"
  moved.write_text(LEXICON)
  assert start(lab, "ctc", "phonemes", *of_phonemes(lab, "moved"), *short)[0] == found
  moved.write_text(LEXICON.replace("L OW", "OW L"))
  with pytest.raises(UserError, match="holds a run .*other classes or pronunciations"):
    start(lab, "ctc", "phonemes", *of_phonemes(lab, "moved"), *short)


def test_a_given_teachers_phonemes(lab):
  """They are the student's; the words that it may read are its own."""
  given = as_teacher(lab, "given-phonemes", *of_phonemes(lab))
  labels = planned(lab, "symmetric", *given).vocabulary
  assert labels.kind == "phonemes" and set(labels.lexicon) == set("abc")
  assert planned(lab, "symmetric", *given, *of_phonemes(lab)).vocabulary == labels
  (lab / "more.txt").write_text("d HH OW\n" + LEXICON)
  more = planned(lab, "symmetric", *given, *of_phonemes(lab, "more")).vocabulary
  assert more.symbols == labels.symbols and list(more.lexicon) == [*labels.lexicon, "d"]
  (lab / "more.txt").write_text(LEXICON + "d X Y\n")
  for asked, words in (
    (
      of_phonemes(lab, "more"),
      "only config.labels has 'X', 'Y', 'X#', 'Y#'; config.labels.name=auto",
    ),
    ([f"{NAME}=characters"], "only .*given.* has 'AY', .* and 13 more; only config.labels has"),
    ([f"{NAME}=sentencepiece", f"{SIZE}=9"], "with 9 classes, and .* has phonemes, 19 classes"),
  ):
    refused(lab, words, "symmetric", *given, *asked)


def test_a_given_teachers_pieces(lab):
  asked = [f"{NAME}=sentencepiece", f"{SIZE}=6"]
  given = as_teacher(lab, "given-pieces", *asked)
  labels = planned(lab, "symmetric", *given).vocabulary
  assert labels.kind == "sentencepiece" and len(labels.symbols) == 6
  assert labels.decode(labels.encode("a cab")) == "a cab"
  assert planned(lab, "symmetric", *given, *asked).vocabulary == labels
  words = "with 7 classes, and .*given-pieces has sentencepiece, 6 classes: config.labels.name=auto"
  refused(lab, words, "symmetric", *given, asked[0], f"{SIZE}=7")
  foreign = manifest(lab, "foreign", ["a", "b z"])
  text = ["--config.kd.scale=0.5", f"--config.data.train={foreign}"]
  refused(
    lab, "train-01.flac: the text 'b z' has 'z'.*training have none", "symmetric", *given, *text
  )


def test_pieces_are_of_the_transcripts_that_the_teacher_reads(lab):
  other = manifest(lab, "other", ["c a", "b", "c c a b"])
  flags = [f"{NAME}=sentencepiece", f"{SIZE}=6", "--config.kd.scale=0.5"]
  config, _ = overrides.parse(
    corpus.flags(lab, "symmetric", lab / "opened", *flags, f"--config.data.train={other}")
  )
  plan = plan_of(config)
  texts = [json.loads(row)["text"] for row in (lab / "train.jsonl").read_text().splitlines()]
  assert (
    plan.vocabulary
    == labels_lib.sentencepiece(texts, 6)
    != labels_lib.sentencepiece(["c a", "b", "c c a b"], 6)
  )
  assert plan.teacher.vocabulary == plan.vocabulary


def test_teachers_of_other_lexicons_lie_apart(lab):
  (lab / "changed.txt").write_text(LEXICON.replace("L OW", "OW L"))
  (lab / "copied.txt").write_text(LEXICON)
  where = []
  for name in ("lexicon", "copied", "changed"):
    config, folder = overrides.parse(
      corpus.flags(lab, "symmetric", lab / "anywhere", *of_phonemes(lab, name))
    )
    where.append(assembly.plan_run(config, folder).teacher.folder)
  assert where[0] == where[1] != where[2]


def test_words_without_pronunciation_are_counted(lab):
  flags = of_phonemes(lab)
  texts = ["a d b", "a", "e d", "c"]
  path = manifest(lab, "words", texts)
  data = [f"--config.data.train={path}", f"--config.data.teacher_train={path}"]
  words = (
    r"words.jsonl: 2 words have no pronunciation \(d, e\), in 2 of 4 utterances: add them to a "
    "lexicon.*config.labels.lexicon=FILE; config.labels.missing=skip leaves"
  )
  for variant in ("ctc", "symmetric"):
    refused(lab, words, variant, *flags, *data)
  skip = "--config.labels.missing=skip"
  mixed = planned(lab, "symmetric", *flags, *data, skip, "--config.kd.scale=0.5")
  for source in (mixed.data.train, mixed.teacher.data.train):
    assert source.texts == ["a", "c"] and len(source) == len(source.durations) == 2
    assert source.skipped == [
      ("audio/train-00.flac", "no pronunciation for 'd'"),
      ("audio/train-02.flac", "no pronunciation for 'e'"),
    ]
  assert mixed.facts()["train"]["broken"][1]["reason"] == "no pronunciation for 'e'"
  # Audio alone is not read: nothing is left out.
  assert len(planned(lab, "symmetric", *flags, *data, skip).data.train) == 4
  lost = manifest(lab, "lost", ["d"])
  refused(
    lab, "lost.jsonl: 1 word has no pronunciation.*=FILE$", "ctc", *flags, skip,
    f"--config.data.train={lost}",
  )  # fmt: skip


def test_what_is_left_out_is_not_read(lab):
  path = manifest(lab, "part", ["a", "d", "b b"])
  source = open_source(str(path), options=Options())
  labels = labels_lib.phonemes(Lexicon((("a", (("AH",),)), ("b", (("B", "IY"),)))))
  frames = lambda samples: samples
  assert texts.check_texts(source.without({1: "why"}), labels, frames).skipped[0][1] == "why"
  left = texts.check_texts(source, labels, frames, "skip")
  assert left.ids == [source.ids[0], source.ids[2]]
  np.testing.assert_array_equal(left.durations, source.durations[[0, 2]])
  np.testing.assert_array_equal(left.read(1), source.read(2))


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (
      ["name=phonems"],
      r"labels.name is 'phonems' \(did you mean 'phonemes'\?\): it must be one of auto",
    ),
    (["lexicon=x.txt"], "labels.lexicon is 'x.txt', which 'auto' does not read: .*name=phonemes"),
    (["name=phonemes", "alphabet=ab"], "alphabet is 'ab', which 'phonemes' .*=auto or characters"),
    (["name=phonemes", "cmudict=False"], "labels.cmudict is False: .*labels.lexicon names no file"),
    (["name=phonemes", "missing=drop"], "labels.missing is 'drop': .*error.*skip"),
    (["name=sentencepiece", "size=1"], "labels.size is 1: it must be .*3"),
    (["size=100"], "labels.size is 100, which 'auto' does not read: .*name=sentencepiece"),
    (["names=x"], "labels.names: no such field"),
  ],
)
def test_wrong_fields_are_one_line(lab, flags, words):
  refused(lab, words, "symmetric", *(f"--config.labels.{flag}" for flag in flags))


def test_wrong_files_and_sizes_are_one_line(lab):
  (lab / "broken.txt").write_text("a L OW\nb\n")
  refused(lab, "broken.txt:2: no phonemes behind the word", "ctc", *of_phonemes(lab, "broken"))
  refused(lab, "absent.txt cannot be read", "symmetric", *of_phonemes(lab, "absent"))
  pieces = [f"{NAME}=sentencepiece", f"--config.data.train={lab / 'train.jsonl'}"]
  refused(lab, "labels.size is 500: these transcripts give at most 8 classes", "ctc", *pieces)
  untold = [f"{NAME}=sentencepiece"]
  refused(lab, "no utterance has a transcript .*unlabelled-00.flac", "ctc", *untold)


def test_a_heads_own_vocabulary_must_be_the_teachers(lab):
  hf_models = pytest.importorskip("hf_models")
  symbols = ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C")
  source = lab / "finetuned"
  hf_models.make(source, "wav2vec2", "layer", symbols=symbols)
  student = [f"--config={corpus.ROOT / 'configs/symmetric.py'}:manifest"]
  line = corpus.flags(lab, "symmetric", lab / "head")
  line = [flag for flag in line if not flag.startswith(("--config.student", "--config="))]
  config, _ = overrides.parse([line[0], *student, *line[1:]])
  with config.unlocked():
    config.student = dict(
      name="huggingface", source=str(source), init="", pool=2, dropout=0.0, freeze_conv=False
    )
    config.training.spec_augment = False
  words = "the teacher to be trained and .*finetuned have other classes .*only .*has '<pad>', '<s>'"
  with pytest.raises(UserError, match=words):
    plan_of(config)
  with config.unlocked():
    config.teacher.source, config.labels.name = "none", "characters"
    config.kd.scale, config.data.train = 0.0, str(lab / "train.jsonl")
  assert plan_of(config).vocabulary == labels_lib.characters(config_lib.ALPHABET)
  with config.unlocked():
    config.labels.name = "auto"
  assert plan_of(config).vocabulary.symbols == symbols


def test_steps_are_compiled_without_transcripts(lab):
  for flags, classes in (
    (of_phonemes(lab), 19),
    ([f"{NAME}=sentencepiece", f"{SIZE}=77"], 77),
  ):
    config, _ = overrides.parse(corpus.flags(lab, "symmetric", lab / "compiled", *flags))
    assert {step.like["head"]["bias"].size for step in ahead.steps_of(config)} == {classes}
