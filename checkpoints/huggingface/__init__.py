"""Hugging Face folders: configuration and safetensors."""
