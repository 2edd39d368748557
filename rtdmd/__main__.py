"""`python -m rtdmd` is `rtdmd`."""

from rtdmd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
