"""GGUF files: header, configuration, tokenizer, tensors."""
