"""The parts of a tokenizer: pipeline, special tokens, chat templates, detokenizer."""
