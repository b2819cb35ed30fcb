"""Fine-tuning a pre-trained HuBERT, wav2vec 2.0, WavLM or data2vec model with CTC: a teacher.

Differs from base() in three places: the model is a Hugging Face one (config.student.source), it
learns from transcripts alone, and by the paper's schedule: 10 epochs, 3 × 120 s an update, all
parameters (config.student.freeze_conv=True leaves the convolutions over the waveform as they are).
    python -m jaxkd.main --config=configs/teacher.py:librispeech --config.data.root=TFDS_DIR
    python -m jaxkd.main --config=configs/teacher.py:manifest --config.student.source=FOLDER ...
Then: --config=configs/symmetric.py:manifest --config.teacher.source=runs/teacher-manifest
"""

from jaxkd import config as config_lib
from jaxkd.config import recipes


def get_config(recipe: str = "manifest"):
  config = config_lib.base(recipe)
  config.student = recipes.huggingface(config.teacher.model.get("source", ""))
  config.training = recipes.finetuning()
  config.data.train = config.data.teacher_train
  config.kd.scale = 0.0
  config.teacher.source = "none"
  return config
