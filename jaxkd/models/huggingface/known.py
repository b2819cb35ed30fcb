"""Models on Hugging Face's hub whose structure is known here, for commands that fetch nothing.

Of config.json, the fields of the structure; rates and masks are those that transformers assumes.
"""

HUBERT_LARGE = dict(
  model_type="hubert",
  hidden_size=1024,
  num_hidden_layers=24,
  num_attention_heads=16,
  intermediate_size=4096,
  feat_extract_norm="layer",
  conv_bias=True,
  do_stable_layer_norm=True,
)
# As huggingface.read_description returns them.
DESCRIPTIONS = {
  "facebook/hubert-large-ll60k": {
    "config": HUBERT_LARGE,
    "preprocessor": {"return_attention_mask": True},
  }
}
