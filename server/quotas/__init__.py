"""What each API key may use: the keys file, settings, rates and how clients are told of them."""
