"""The table of all fields: default, range or choices, unit and a sentence each.

`check`, `jaxkd train --fields`, `base` and what binds a workdir are derived from it.
"""

import string

from jaxkd.config.schema import Block, Field, Kinds, count, share

AUTO = "auto"
ALPHABET = " '" + string.ascii_lowercase

_INIT = Field("", "a finished workdir whose parameters the training starts from")

MODELS = {
  "conformer": {
    "layers": count(12, "Conformer blocks", 1, 1000),
    "width": count(384, "of a frame, a multiple of heads", 4, 100_000),
    "heads": count(8, "of the attention", 1, 1000),
    "ff_mult": count(4, "hidden width of the feed-forward layers over width", 1, 100),
    "conv_kernel": count(
      31, "of the depthwise convolution, an odd number", 1, 1001, unit="output frames"
    ),
    "dropout": share(0.2, "rate in every layer", 0.95),
    "rel_clip": count(
      16, "positions farther apart share one embedding", 1, 100_000, unit="output frames"
    ),
    "inner_layers": Field(
      (),
      "blocks, counted from 1, behind which heads of their own learn the same (kd.inner_scale)",
      each=count(1, "", 1, 1000),
      sizes=(0, 1, 2, 3),
    ),
    "chunk_frames": Field(
      (),
      "chunks that a stream is heard in, 0 for all of the audio; each row of a batch draws one; () "
      "for no stream",
      each=count(0, "", 0, 10_000),
      sizes=tuple(range(7)),
      unit="output frames",
    ),
    "left_frames": Field(
      (),
      "before its chunk that a frame attends to; each row of a batch draws one",
      each=count(0, "", 0, 10_000),
      sizes=tuple(range(7)),
      unit="output frames",
    ),
    "frontend_channels": Field(
      (32, 64, 64, 32),
      "of the four convolutions before the blocks",
      each=count(32, "", 1, 100_000),
      sizes=(4,),
    ),
    "frontend_pool": Field(
      ((2, 1), (2, 1)),
      "(time, mel) after convolution 2 and after convolution 4",
      each=Field((2, 1), each=count(2, "", 1, 256), sizes=(2,)),
      sizes=(2,),
    ),
    "init": _INIT,
  },
  "fastconformer": {
    "layers": count(12, "blocks", 1, 1000),
    "width": count(384, "of a frame, a multiple of heads, even", 4, 100_000),
    "heads": count(8, "of the attention", 1, 1000),
    "ff_mult": count(4, "hidden width of the feed-forward layers over width", 1, 100),
    "conv_kernel": count(
      9, "of the depthwise convolution, an odd number", 1, 1001, unit="output frames"
    ),
    "subsampling": count(
      8, "features to an output frame: 8 for 80 ms, 4 for 40 ms; 2, 4, 8 or 16", 2, 16
    ),
    "subsampling_channels": count(256, "of the convolutions before the blocks", 1, 100_000),
    "dropout": share(0.1, "rate in every layer", 0.95),
    "layer_drop": share(0.0, "probability that a block is skipped", 0.95),
    "init": _INIT,
  },
  "huggingface": {
    "source": Field("", "a folder in Hugging Face's layout, or org/name on its hub"),
    "pool": count(
      2, "frames of the model that are max-pooled into one before the head", 1, 16, unit="frames"
    ),
    "dropout": share(
      0.2, "before the head; the model's own rates and masks are in its config.json", 0.95
    ),
    "freeze_conv": Field(False, "whether the convolutions over the waveform are left as they are"),
    "init": _INIT,
  },
}

# The functions are in `jaxkd.selection`.
SELECTIONS = {
  "all_frames": {},
  "nonblank": {
    "prior_scale": Field(
      0.0, "of the teacher's log prior, which is subtracted first", low=0.0, optional=True
    ),
  },
  "trim": {},
  "keep": {
    "before": count(1, "neighbours before a label frame", unit="output frames"),
    "after": count(3, "neighbours after a label frame", unit="output frames"),
  },
  "symmetric": {"n": count(2, "neighbours on both sides of a label frame", unit="output frames")},
  "threshold": {"min_label_prob": share(0.1, "of all labels together in a blank frame")},
  "random_blanks": {"ratio": Field(1.0, "random blank frames for each label frame", low=0.0)},
  "shuffled": {"n": count(2, "of the symmetric selection that has as many", unit="output frames")},
  "soft": {"min_weight": share(0.0, "of a blank frame", optional=True)},
  "occupancy": {
    "delta": Field(3.0, "is taken from the blank's logits", unit="nats", low=-100.0, high=100.0)
  },
}

LABELS = ("auto", "characters", "phonemes", "sentencepiece")
# What looks at frames of the teacher, and the one that does not.
_FRAMES = ("kl", "split_kl", "guided", "soft_ctc")
LOSSES = (*_FRAMES, "hypotheses")
_KL = ("kl", "split_kl")


def _ramp(of: str, each: Field, **more) -> Field:
  about = f"(first, epochs): {of} grows or falls from here to its own value; () for neither"
  return Field((), about, each=each, sizes=(0, 2), **more)


TRAINING = Block(
  {
    "epochs": count(100, "passes through the training data", 1, unit="epochs"),
    "batch_seconds": Field(
      180.0, "audio in a global batch, padding included", unit="s", low=1.0, high=1e6
    ),
    "batch_seconds_per_device": Field(
      0.0,
      "above 0: audio of each device in a batch, in place of batch_seconds; the devices are those "
      "that the run begins with",
      unit="s",
      low=0.0,
      high=1e6,
    ),
    "row_multiple": count(
      0,
      "rows of a batch are a multiple of this, where that changes them by a fifth at most; 0 for "
      "the devices that the run begins with, 1 for batches that do not depend on them",
      unit="rows",
      bound=False,
    ),
    "accumulate": count(
      1, "batches whose gradients are averaged into one update", 1, 1000, unit="batches"
    ),
    "remat": Field(
      False,
      "layers are computed again for the gradient, products too: less memory, more work",
      bound=False,
    ),
    "buckets": count(8, "shapes that utterances are padded to; each is compiled once", 1, 64),
    "join_seconds": Field(
      0.0,
      "above 0: utterances are joined at random into rows of at most this length, but for those "
      "of a stored teacher, which heard each alone",
      unit="s",
      low=0.0,
      high=3600.0,
    ),
    "speeds": Field(
      (1.0,),
      "factors; an utterance's is drawn from these every epoch",
      each=Field(1.0, low=0.5, high=2.0),
    ),
    "noise_db": Field(
      (),
      "(low, high): white noise relative to the row's peak; () for none",
      unit="dB",
      each=Field(0.0, low=-200.0, high=100.0),
      sizes=(0, 2),
    ),
    "optimizer": Field("radam", "both with decoupled weight decay", choices=("radam", "adamw")),
    "lr": Field(
      (7e-6, 5e-4, 5e-5, 1e-7),
      "learning rates, piecewise linear between these",
      each=Field(1.0, low=0.0, above=True),
      sizes=(4,),
    ),
    "lr_parts": Field(
      (0.44, 0.44, 0.12),
      "shares of all updates from one learning rate to the next, 1 in all",
      each=Field(1.0, low=0.0, above=True, high=1.0),
      sizes=(3,),
    ),
    "b1": share(0.9, "decay of the gradient's mean", 0.99999),
    "b2": share(0.999, "decay of the gradient's square", 0.99999),
    "eps": share(1e-16, "is added to the optimiser's denominator"),
    "weight_decay": share(0.01, "decoupled, times the learning rate"),
    "clip_norm": Field(1.0, "global gradient norm; 0 for no clipping", low=0.0),
    "spec_augment": Field(True, "whether parts of the features are masked"),
    "spec_augment_from_epoch": count(0, "masks begin here", unit="epochs"),
    "time_mask_frames": count(
      20, "longest mask along time", 1, 1000, unit="feature frames of 10 ms"
    ),
    "freq_mask_bins": count(8, "widest mask along mel filters", 1, 256, unit="mel filters"),
    "eval_every_epochs": count(1, "between evaluations on dev", 1, unit="epochs"),
    "average": count(
      4, "the final model is the average of this many best checkpoints", 1, 100, unit="checkpoints"
    ),
  }
)

FIELDS = Block(
  {
    "recipe": Field("demo", "data, or data and size (manifest-medium), that the defaults are for"),
    "variant": Field("", "name of the config file", optional=True),
    "seed": count(0, "of everything that is drawn at random"),
    "dtype": Field(
      "float32",
      "of the models' arithmetic; losses stay float32",
      choices=("float32", "bfloat16"),
    ),
    "data": Block(
      {
        "train": Field(
          "",
          "what the student trains on: a manifest, a folder of audio, a recording or corpus:split; "
          "several with commas between; auto is the recipe's corpus, untranscribed where kd.scale "
          "is 1",
          bound=False,
        ),
        "teacher_train": Field(
          "", "transcribed; read only where the teacher is trained here", bound=False
        ),
        "dev": Field(
          "", "'' for none: the last checkpoints are averaged instead of the best", bound=False
        ),
        "test": Field("", "what results.json is about; '' for none", bound=False),
        "root": Field(
          "", "folder of the digits or prompts corpus, or TFDS's data_dir", bound=False
        ),
        "min_seconds": Field(
          0.1,
          "training utterances that are shorter are left out",
          unit="s",
          low=0.0,
          high=1e3,
          bound=False,
        ),
        "max_seconds": Field(
          40.0,
          "longer training utterances are left out, or heard in pieces where they have no "
          "transcript",
          unit="s",
          low=1.0,
          high=1e6,
          bound=False,
        ),
        "split_by": Field("index", "of the digits corpus", choices=("index", "speaker")),
        "workers": count(
          0,
          "processes that decode audio; 0 decodes in a thread of this one for each core",
          0,
          256,
          bound=False,
        ),
      }
    ),
    "labels": Block(
      {
        "name": Field(
          "auto",
          "the classes; auto is a given teacher's vocabulary, that of a Hugging Face student's "
          "head, or else characters",
          choices=LABELS,
        ),
        "alphabet": Field(
          AUTO,
          "characters, each once; the blank is added; auto is a to z with space and apostrophe, or "
          "where these cannot write the transcripts, the transcripts' own characters",
          read_by=("auto", "characters"),
          bound=False,  # the classes that it gives count
        ),
        "lexicon": Field(
          "",
          "a file of `word P1 P2 ...` lines, whose words win over CMUdict's",
          read_by=("phonemes",),
          bound=False,  # what is in it counts
        ),
        "cmudict": Field(True, "whether CMUdict's words are there, too", read_by=("phonemes",)),
        "missing": Field(
          "error",
          "words without phonemes: an error, or their training utterances are skipped",
          choices=("error", "skip"),
          read_by=("auto", "phonemes"),
        ),
        "size": count(500, "classes, the blank included", 3, 1_000_000, read_by=("sentencepiece",)),
      },
      switch="name",
    ),
    "features": Block(
      {
        "kind": Field(
          "logmel",
          "logmel is the paper's, sherpa what sherpa-onnx gives models of the kind zipformer_ctc, "
          "nemo what NeMo's models read",
          choices=("logmel", "kaldi", "sherpa", "nemo"),
        ),
        "mels": count(80, "mel filters", 8, 256, unit="mel filters"),
        "low_hz": Field(
          60.0, "lower edge of the filters; sherpa has 20, nemo 0", unit="Hz", low=0.0, high=8000.0
        ),
        "high_hz": Field(
          7600.0,
          "upper edge of the filters; sherpa has 7600, nemo 8000",
          unit="Hz",
          low=0.0,
          high=8000.0,
        ),
        "normalise": Field(
          "none", "none (the paper's), or each filter per utterance", choices=("none", "utterance")
        ),
      }
    ),
    "student": Kinds(Field("conformer", "kind of the model", choices=tuple(MODELS)), MODELS),
    "teacher": Block(
      {
        "source": Field(
          "train",
          "train (here, from transcripts), the workdir of a finished run, a folder in Hugging "
          "Face's layout, org/name on its hub, several of these with commas between (their "
          "posteriors are averaged), a store that jaxkd teach wrote, average (of the student's own "
          "past), or none",
        ),
        "decay": share(0.999, "of that moving average, an update", 0.999999),
        "pool": count(
          2, "frames of a Hugging Face teacher that are max-pooled into one", 1, 16, unit="frames"
        ),
        "cache": Field(
          False,
          "whether what it says is stored once beside the workdir and read from there, so that no "
          "teacher runs in training; then it hears every utterance alone and without noise, and so "
          "no rows are joined",
        ),
        "language": Field(
          "",
          "of a Hugging Face teacher with an adapter for each (MMS), as its files name it, such as "
          "fra",
        ),
        "model": Kinds(
          Field("conformer", "kind of a teacher that is trained here", choices=tuple(MODELS)),
          MODELS,
          changes={"width": 512, "dropout": 0.1},
        ),
        "training": TRAINING,
      }
    ),
    "kd": Block(
      {
        "loss": Field(
          "kl",
          "kl compares frames, split_kl in two parts (blank or not; which label); guided raises "
          "the teacher's best class; soft_ctc has the teacher's occupancies of a transcript as "
          "targets; with hypotheses the teacher's best transcripts are CTC targets",
          choices=LOSSES,
        ),
        "scale": share(1.0, "of the distillation loss; CTC gets 1 - scale"),
        "ctc": Field(
          "transcripts",
          "what CTC beside distillation learns: the data's transcripts, or the teacher's best ones",
          choices=("transcripts", "hypotheses"),
        ),
        "scale_ramp": _ramp("scale", Field(0.0, low=0.0, high=1e6)),
        "temperature": Field(2.0, "divides both models' logits", low=1e-3, high=1e3, read_by=_KL),
        "temperature_ramp": _ramp("temperature", Field(1.0, low=1e-3, high=1e6), read_by=_KL),
        "delays": Field(
          (0,),
          "frames that the student may be later than the teacher, the best of them counts most",
          each=count(0, "", -100, 100),
          unit="output frames",
          read_by=_KL,
        ),
        "softness": Field(
          1.0,
          "of the best delay; near 0 it counts alone",
          unit="nats of the KL",
          low=0.0,
          above=True,
          high=1e3,
          read_by=_KL,
        ),
        "delay_of": Field(
          "frame",
          "what has a delay of its own",
          choices=("frame", "row"),
          read_by=("kl",),
        ),
        "blank_scale": Field(
          1.0,
          "of the part that tells blanks, in every real frame",
          low=0.0,
          high=1e3,
          read_by=("split_kl",),
        ),
        "targets": Field(
          "hypotheses",
          "what the occupancies are of: the teacher's own best transcripts, or the data's",
          choices=("hypotheses", "transcripts"),
          read_by=("soft_ctc",),
        ),
        "consistency": Field(
          0.0,
          "of the KL between two views of each input with their own masks and dropout; 0 for one "
          "view",
          low=0.0,
          high=100.0,
        ),
        "co_teacher": Field(
          0.0,
          "of the KL from the student that hears everything to the one that hears chunks; both "
          "learn; 0 for one of them in each row",
          low=0.0,
          high=100.0,
        ),
        "inner_scale": share(
          0.0, "of the losses of heads behind student.inner_layers; the last one has the rest", 0.99
        ),
        "selection": Kinds(
          Field("all_frames", "which frames carry the loss", choices=tuple(SELECTIONS)), SELECTIONS
        ),
        "start_epoch": count(
          0,
          "the selection applies from here on; all frames before",
          unit="epochs",
          read_by=_FRAMES,
        ),
        "stop_epoch": count(
          0, "above 0: all frames from this epoch on", unit="epochs", read_by=_FRAMES
        ),
        "grow_epochs": count(
          0,
          "above 0: n, before and after are multiplied by epoch // grow_epochs",
          unit="epochs",
          read_by=_FRAMES,
        ),
        "n_ramp": _ramp("n of the symmetric selection", count(0, ""), read_by=_FRAMES),
        "normalization": Field(
          "frames",
          "the KL over selected frames, or over rows × labels",
          choices=("frames", "labels"),
          read_by=("kl",),
        ),
        "warmup": count(
          0,
          "first epochs, in which encoder outputs are brought together instead",
          unit="epochs",
          read_by=_KL,
        ),
        "hypotheses": count(
          10,
          "N, the teacher's best transcripts that are targets",
          1,
          100,
        ),
      },
      switch="loss",
    ),
    "training": TRAINING,
    "profile": Field("", "updates to trace, such as 10:20; '' for none", bound=False),
    "checkpoint": Block(
      {
        "every_steps": count(
          500, "between saves, besides every evaluation", 1, unit="updates", bound=False
        ),
        "every_minutes": Field(
          10.0,
          "between saves at most, where updates are slow; 0 for no saves by time",
          unit="min",
          low=0.0,
          high=1e5,
          bound=False,
        ),
      }
    ),
    "mesh": Block(
      {
        "fsdp": count(
          1,
          "devices that large parameters are split over; it divides their number",
          1,
          100_000,
          bound=False,
        )
      }
    ),
  }
)


def default(path: str):
  """The table's default of a field, by its dotted name without `config.`."""
  node = FIELDS
  for name in path.split("."):
    node = node.fields[name]
  return node.default
