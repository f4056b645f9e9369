"""`tools/soak`: see soak.py."""

import sys

from sim.soak import main

if __name__ == "__main__":
    sys.exit(main())
