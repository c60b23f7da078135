r"""How llama.cpp splits text into words before byte-level BPE, by the name in `tokenizer.ggml.pre`.

A split is a list of patterns that are applied one after another; each match becomes a piece, and so does the
text between matches. The names and their meaning are llama.cpp's (`llama-vocab.cpp`). It writes `\p{Lu}` and
similar classes as lookaheads, because its expressions have no sub-categories; here the model's own pattern is
used.
"""

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT}?|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}"
)

_CASED = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{560}-\x{588}\x{10C7}-\x{10CD}\x{10D0}-\x{10FF}\x{1C80}-\x{1C8F}"
    r"\x{2D00}-\x{2D2D}\x{A790}-\x{A7FF}\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D8F}"
    r"\x{16E40}-\x{16E7F}\x{1D400}-\x{1D7CB}\x{1DF00}-\x{1DFFF}]]"
)
"""DeepSeek's letters: those with two cases that are in its list."""
_EAST_ASIAN = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?{_CASED}+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    r"\s+$",
    _EAST_ASIAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_SEED = rf"{_SHORT}|{_BEFORE}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = (r"\p{N}{1,3}", rf"{_SHORT}|{_BEFORE}\p{{L}}+|\p{{N}}+|{_REST}")


@dataclass(frozen=True, slots=True)
class Split:
    """How text is split.

    Attributes:
      patterns: in order, for Oniguruma.
      whole_words: a word that is a token is not merged from its parts.
      begins: a text begins with BOS if the file does not state it.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_NAMES: dict[Split, str] = {
    Split((_LLAMA3,), whole_words=True, begins=True): (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
    ),
    Split((_TEKKEN,), whole_words=True, begins=True): "tekken",
    Split(_MINICPM5, whole_words=True): "minicpm5",
    Split((_LLAMA3,)): "dbrx smaug-bpe chatglm-bpe glm4",
    Split(_DEEPSEEK): "deepseek-llm",
    Split(_DEEPSEEK_CODER): "deepseek-coder",
    Split(_DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    Split(_DEFAULT): "default",
    Split(_FALCON): "falcon",
    Split((r"\p{N}", GPT2)): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    Split((GPT2,)): (
        "gpt-2 gpt2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum jina-es "
        "jina-de jina-v2-es jina-v2-de modern-bert"
    ),
    Split((_QWEN2,)): "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2",
    Split((_GPT4O,)): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Split((_BLOOM,)): "poro-chat bloom gpt3-finnish",
    Split((_BLOOM, r"\p{N}")): "viking",
    Split((_SEED,)): "seed-coder",
    Split((_BAILING,)): "bailingmoe bailingmoe2 llada-moe",
}

SPLITS: dict[str, Split] = {name: split for split, names in _NAMES.items() for name in names.split()}
"""By the name in `tokenizer.ggml.pre`."""
