"""`python -m trainer.verify`; the tool is `trainer.tools.verify`."""

from trainer.tools.verify import main

if __name__ == "__main__":
    raise SystemExit(main())
