"""Llama in Flax NNX: what the network computes. Knows no request, file or socket."""
