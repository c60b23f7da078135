"""The Llama and Mixtral networks in Flax NNX. Nothing here depends on requests, files or sockets."""
