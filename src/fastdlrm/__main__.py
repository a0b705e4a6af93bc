"""`python -m fastdlrm`: the command line where its script is not on the path."""

from fastdlrm.cli.main import main

if __name__ == "__main__":
    main()
