"""`python -m erllama_host.cli` is `erllama`."""

import sys

from erllama_host.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
