"""Models in Hugging Face's layout."""
