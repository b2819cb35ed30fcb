"""Knowledge distillation of CTC speech recognisers in JAX and Flax."""


def load(source, model: str = "student", *, language: str = ""):
  """A recogniser from a finished run or a Hugging Face model; see `jaxkd.inference.recogniser`."""
  from jaxkd.inference import recogniser  # JAX is loaded where something is recognised

  return recogniser.load(source, model, language=language)
