"""python -m job VERB"""

from job.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
