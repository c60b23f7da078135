"""Grammars for constrained output: JSON schemas, Lark, regular expressions."""
