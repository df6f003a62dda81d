"""`python -m trainer.curves`; the tool is `trainer.tools.plot_metrics`."""

from trainer.tools.plot_metrics import main

if __name__ == "__main__":
    raise SystemExit(main())
