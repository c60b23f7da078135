"""Between token ids and text: tokenizer, templates, what a reply says with each token."""
