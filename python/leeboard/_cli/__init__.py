"""Subcommands of `leeboard` and their parsers. What they need is imported when they run."""
