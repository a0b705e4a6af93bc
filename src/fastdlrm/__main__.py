"""`python -m fastdlrm` is `fastdlrm`."""

from fastdlrm.cli.main import main

main()
