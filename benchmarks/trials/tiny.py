"""The tiny random model of the trials: so small that they measure the server and not the arithmetic.

It is the tests' random Llama with a longer context and two changes of its head: it generates only printable
ASCII, so that each token can be sent immediately, and it never ends an answer by itself.
"""

from pathlib import Path

from tests.checkpoints.making import byte_level, make_model, save_folder

from .. import weights

CONTEXT = 8192


def tiny_model() -> Path:
    """The model's folder, which is made once."""
    folder = weights.FOLDER / f"tiny-{CONTEXT}"
    if not folder.exists():
        tokenizer = byte_level()
        size = tokenizer.get_vocab_size()
        model = make_model(vocab_size=size, max_position_embeddings=CONTEXT)
        silent = [id for id in range(size) if not is_plain(tokenizer.id_to_token(id) or "")]
        model.get_parameter("lm_head.weight").data[silent] = 0.0  # other tokens' logits are far above
        partial = folder.with_suffix(".partial")
        save_folder(partial, model)
        partial.rename(folder)
    return folder


def is_plain(name: str) -> bool:
    """Whether a token of a byte-level vocabulary is printable ASCII, spaces included, and not a special
    token."""
    text = name.replace("Ġ", " ")
    return text.isascii() and text.isprintable() and not (text.startswith("<") and text.endswith(">"))
