"""`python -m trainer.killtest`; the tool is `trainer.tools.killtest`."""

from trainer.tools.killtest import main

if __name__ == "__main__":
    raise SystemExit(main())
