"""`python -m elbotree` is the command line."""

from elbotree.cli import main

if __name__ == "__main__":
    main()
