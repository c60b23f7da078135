"""Conversion between token ids and text: tokenizer, chat templates, and the text deltas of a reply."""
