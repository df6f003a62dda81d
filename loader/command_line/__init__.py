"""The command line: flags, their parser, and the answers that need no training (--help, --check)."""
