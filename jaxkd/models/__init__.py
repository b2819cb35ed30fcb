"""Acoustic models: audio in, frame logits and their mask out."""
