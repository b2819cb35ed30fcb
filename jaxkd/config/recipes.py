"""What recipes are made of: blocks for models and training, and each recipe's data and sizes."""

from ml_collections import ConfigDict


def conformer(layers, width, heads, dropout, channels, pool) -> ConfigDict:
  """A student, or a teacher that is trained from scratch."""
  return ConfigDict(
    dict(
      name="conformer",
      layers=layers,
      width=width,
      heads=heads,
      ff_mult=4,
      conv_kernel=31,  # output frames
      dropout=dropout,
      rel_clip=16,  # output frames; farther positions share one embedding
      frontend_channels=channels,
      frontend_pool=pool,  # (time, mel) after convolution 2 and after convolution 4
    )
  )


def training(**changes) -> ConfigDict:
  """How one model is trained; the student and a teacher that is trained here have one each."""
  block = ConfigDict(
    dict(
      epochs=100,
      batch_seconds=180.0,  # audio in a global batch, padding included
      accumulate=1,  # batches whose gradients are averaged into one update
      remat=False,  # layers are computed again for the gradient: less memory, more work
      buckets=8,  # shapes that utterances are padded to; each is compiled once
      join_seconds=0.0,  # > 0: utterances are joined at random into rows of at most this length
      speeds=(1.0,),  # an utterance's speed factor is drawn from these every epoch
      noise_db=(),  # (low, high): white noise relative to the row's peak; () for none
      optimizer="radam",
      lr=(7e-6, 5e-4, 5e-5, 1e-7),  # piecewise linear between these ...
      lr_parts=(0.44, 0.44, 0.12),  # ... over these shares of all steps
      b1=0.9,
      b2=0.999,
      eps=1e-16,
      weight_decay=0.01,  # decoupled, times the learning rate
      clip_norm=1.0,  # global gradient norm; 0 for no clipping
      spec_augment=True,
      spec_augment_from_epoch=0,
      time_mask_frames=20,  # of 10 ms
      freq_mask_bins=8,
      eval_every_epochs=1,
      average=4,  # the student is the average of this many best checkpoints
    )
  )
  block.update(changes)
  return block


def huggingface(source: str = "") -> ConfigDict:
  """A pre-trained model that is fine-tuned: the paper's teacher."""
  return ConfigDict(
    dict(
      name="huggingface",
      source=source,  # a folder in Hugging Face's layout, or org/name on its hub
      pool=2,  # 20 ms frames that are max-pooled into one before the head
      dropout=0.2,  # before the head; the model's own rates and masks are in its config.json
      freeze_conv=False,  # whether the convolutions over the waveform are left as they are
    )
  )


def finetuning(**changes) -> ConfigDict:
  """The paper's fine-tuning of HuBERT large: 10 epochs, 3 × 120 s an update."""
  return training(
    **dict(epochs=10, batch_seconds=120.0, accumulate=3, spec_augment=False) | changes
  )


def _small(config: ConfigDict) -> None:
  """Models and schedules that take minutes on two CPU cores."""
  config.features.update(mels=40, normalise="utterance")
  channels, pool = (8, 8, 16, 16), ((2, 2), (2, 2))
  config.student = conformer(3, 64, 4, 0.05, channels, pool)
  config.student.conv_kernel = 15
  config.teacher.model = conformer(3, 112, 4, 0.1, channels, pool)
  config.teacher.model.conv_kernel = 15
  common = dict(
    optimizer="adamw",
    b2=0.98,
    eps=1e-8,
    lr_parts=(0.1, 0.75, 0.15),
    batch_seconds=40.0,
    buckets=2,
    speeds=(0.9, 1.0, 1.1),
    noise_db=(-65.0, -45.0),
  )
  config.training = training(
    epochs=20, join_seconds=6.0, lr=(1e-4, 3e-3, 3e-4, 1e-6), spec_augment=False, **common
  )
  config.teacher.training = training(
    epochs=24,
    join_seconds=6.0,
    lr=(1e-4, 2e-3, 2e-4, 1e-6),
    spec_augment_from_epoch=10,
    **common,
  )


def _corpus(name: str):
  def recipe(config: ConfigDict) -> None:
    _small(config)
    config.data.update(
      train="auto",  # unlabelled where kd.scale is 1, else train: see config.train_data
      teacher_train=f"{name}:train",
      dev=f"{name}:dev",
      test=f"{name}:test",
    )

  return recipe


def _demo(config: ConfigDict) -> None:
  _corpus("demo")(config)
  config.teacher.training.update(epochs=13, batch_seconds=30.0, spec_augment_from_epoch=8)
  config.training.epochs = 8


def _prompts(config: ConfigDict) -> None:
  _corpus("prompts")(config)
  # A few prompts are long: rows of one length hold them, and the short ones joined.
  for block in (config.training, config.teacher.training):
    block.join_seconds = 30.0


def _full_size(config: ConfigDict) -> None:
  """HuBERT large teaches; on accelerators, in bfloat16."""
  config.dtype = "bfloat16"
  config.teacher.model = huggingface("facebook/hubert-large-ll60k")
  config.teacher.training = finetuning()


def _tedlium(config: ConfigDict) -> None:
  _full_size(config)
  config.data.update(
    train="tedlium:train",
    teacher_train="tedlium:train",
    dev="tedlium:validation",
    test="tedlium:test",
  )


def _librispeech(config: ConfigDict) -> None:
  _full_size(config)
  everything = "librispeech:train_clean100+train_clean360+train_other500"
  config.data.update(
    train=everything,
    teacher_train=everything,
    dev="librispeech:dev_other",
    test="librispeech:test_other",
  )
  # The paper has students 384 and 512 wide.
  config.student.update(width=512, dropout=0.1)
  config.training.update(epochs=50, batch_seconds=300.0, freq_mask_bins=16)


RECIPES = {
  "demo": _demo,
  "manifest": _small,
  "digits": _corpus("digits"),
  "prompts": _prompts,
  "librispeech": _librispeech,
  "tedlium": _tedlium,
}
