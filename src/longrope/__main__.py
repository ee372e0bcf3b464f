"""``python -m longrope``."""

from longrope.cli.main import main

if __name__ == "__main__":
    main()
