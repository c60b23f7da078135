"""Bytes on disk to model trees, tokenizers and chat templates. Nothing here runs per token."""
