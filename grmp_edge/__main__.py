"""``python -m grmp_edge``."""

from grmp_edge.cli import main

if __name__ == "__main__":
    main()
