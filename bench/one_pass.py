"""Would Adafactor gain on an H200 if it read each gradient from memory once?

The second read could come from L2 if it followed soon after the first. So the list would be cut
into waves whose gradients fit, and read 1 of a wave would run beside read 2 of the wave before: 6
bytes an element in bfloat16 instead of 8. This file computes what that gives, and what it costs.
The factors of columns need all rows, so between the two reads of a wave everything must wait for
everything, twice: for the sums down columns, and for what is made of them.
"""

from dataclasses import dataclass

from bench import predict
from bench.lists import DTYPES, LISTS

# Bytes of a wave's gradients. Two waves are in flight, beside p, of which every byte passes once.
WAVE = 25e6
# Seconds that all multiprocessors wait, for each of the two times. A launch that overlaps its start
# with the end of the one before takes half of what a plain one takes. A barrier inside one launch
# is an atomic addition of each block, and a read that waits for the last: 1 us is the least.
PLAIN, OVERLAPPING, INSIDE = predict.GAP, predict.GAP / 2, 1e-6
NAMES = ("llama-1b", "t5-xl")


@dataclass(frozen=True)
class Waves:
    """A list in bfloat16, cut into waves. Matrices larger than a wave stay out, and are read twice:
    their columns end only with their last row."""

    name: str
    waves: int
    inside: int  # elements in waves
    outside: int

    @property
    def two_reads(self) -> float:
        """Seconds of the bytes that phases move, at copy speed."""
        return 8 * (self.inside + self.outside) / predict.COPY

    def one_read(self, wait: float) -> float:
        moving = (6 * self.inside + 8 * self.outside) / predict.COPY
        return moving + 2 * wait * self.waves


def cut(name: str) -> Waves:
    """The list in waves: as many matrices as fit, in their order."""
    size, waves, full, inside, outside = DTYPES["bfloat16"].itemsize, 0, WAVE, 0, 0
    for shape in LISTS[name].shapes:
        count = predict.elements([shape])
        if count * size > WAVE:
            outside += count
            continue
        full += count * size
        if full > WAVE:
            waves, full = waves + 1, count * size
        inside += count
    return Waves(name, waves, inside, outside)


def table() -> str:
    """The arithmetic as a table in markdown."""
    lines = [
        "| list, bfloat16 | in waves | waves | two reads, ms | one read: plain launches, ms "
        "| overlapping launches, ms | barriers inside one launch, ms |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for own in map(cut, NAMES):
        share = own.inside / (own.inside + own.outside)
        times = (own.two_reads, *map(own.one_read, (PLAIN, OVERLAPPING, INSIDE)))
        cells = (own.name, f"{share:.0%}", str(own.waves), *(f"{t * 1e3:.2f}" for t in times))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
