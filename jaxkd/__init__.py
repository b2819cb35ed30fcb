"""Knowledge distillation of CTC speech recognisers in JAX and Flax."""
