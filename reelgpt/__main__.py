"""`python -m reelgpt` is `reelgpt`."""

from reelgpt.main import run

if __name__ == "__main__":
    run()
