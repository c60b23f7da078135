"""What is downloaded: the bundled models, and repositories of the Hugging Face hub."""
