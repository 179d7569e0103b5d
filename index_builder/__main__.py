"""``python -m index_builder``."""

from index_builder.cli import main

if __name__ == "__main__":
    main()
