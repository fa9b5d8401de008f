"""``python -m clipspect``: the command line."""

from clipspect.cli import main

if __name__ == "__main__":
    main()
