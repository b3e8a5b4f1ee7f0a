"""What a long command prints while it works."""

import sys
import time


class Progress:
    """One line on stderr for each race. On a terminal the line also counts rounds."""

    def __init__(self, title: str) -> None:
        self.title, self.live, self.begin = title, sys.stderr.isatty(), time.perf_counter()
        self.show("preparing")

    def show(self, state: str) -> None:
        if self.live:
            print(f"\r\x1b[K{self.title}  {state}", end="", file=sys.stderr, flush=True)

    def on_round(self, number: int, rounds: int, rejected: int) -> None:
        self.show(f"round {number} of {rounds}, {rejected} rejected")

    def done(self, summary: str) -> None:
        erase = "\r\x1b[K" if self.live else ""
        spent = time.perf_counter() - self.begin
        print(f"{erase}{self.title}  {summary}  ({spent:.1f} s)", file=sys.stderr, flush=True)
