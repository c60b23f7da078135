"""The `distaff` command: its subcommands, what they print, and the chat in a terminal."""
