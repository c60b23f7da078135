"""What is in the safetensors of a Hugging Face folder: wide tensors, and the layouts of quantised weights."""
