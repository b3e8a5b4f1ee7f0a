"""The rows of `python -m bench.memory`, and its table in Markdown."""

from dataclasses import asdict, dataclass

COLUMNS = ("state", "kept", "peak", "sum", "resident", "all")

LEGEND = """\
Bytes for each parameter. The parameters and gradients themselves are in the last column only.
state: the tensors in opt.state. kept: everything else that stays allocated between steps, which is
scratch and work lists; on a GPU also what the allocator adds to a tensor's size. peak: the most
that the third step allocated on top of what was there before it. sum: the three together, which is
what training needs. resident: how much the highest resident memory of the process grew over the
three steps, as the kernel counts pages. The kernel sees all memory, torch's or not, so this should
be about the sum. Lists that are too small to measure it show none. all: the sum, and the parameters
and gradients."""


@dataclass(frozen=True)
class Use:
    """Bytes beside parameters and gradients."""

    state: int
    kept: int
    peak: int
    held: int  # by parameters and gradients
    resident: int | None = None


@dataclass(frozen=True)
class MemoryRow:
    rule: str
    list: str
    dtype: str
    provider: str
    elements: int
    use: Use | None = None
    note: str = ""

    def key(self) -> tuple[str, str, str]:
        return self.rule, self.list, self.dtype

    def per_parameter(self) -> dict[str, float]:
        """Each column that has a number."""
        if self.use is None:
            return {}
        together = self.use.state + self.use.kept + self.use.peak
        columns = asdict(self.use) | {"sum": together, "all": together + self.use.held}
        return {
            name: columns[name] / self.elements for name in COLUMNS if columns[name] is not None
        }

    def summary(self) -> str:
        result = f"{self.per_parameter()['sum']:.3f} B" if self.use else self.note
        return f"{self.list} {self.dtype} {result}"


def markdown(rows: list[MemoryRow], headline: str) -> str:
    headings = ["rule", "list", "dtype", "provider", *COLUMNS, "note"]
    lines = ["# Memory of an optimizer", "", headline, "", LEGEND, ""]
    lines.append(f"| {' | '.join(headings)} |")
    lines.append(f"|{':--|' * 4}{'--:|' * len(COLUMNS)}:--|")
    for row in rows:
        numbers = row.per_parameter()
        cells = [f"{numbers[name]:.3f}" if name in numbers else "-" for name in COLUMNS]
        note = row.note.replace("|", "\\|")
        lines.append(f"| {' | '.join([*row.key(), row.provider, *cells, note])} |")
    return "\n".join([*lines, ""])
