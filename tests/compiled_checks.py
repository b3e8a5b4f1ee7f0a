"""What a compiled kernel must be: budgets of registers, and the checks that the gate runs."""

from __future__ import annotations

from collections import Counter

from fusedstep.gpu.cut import WITHOUT_TILES
from fusedstep.rules import RULES

# Registers of a thread at most: what was measured, rounded up to what is allocated at a time, 8.
# With n of them, 65536 / n threads fit on a multiprocessor of sm_90: with 32, the 2048 it can have;
# with 64, 1024; with 128, 512; with 255, one program of 256 threads. On gfx942, 512 / n warps fit
# where 8 can be. Columns: sm_90, float32 aligned and not, 16-bit parameters aligned and not,
# float64; the other NVIDIA GPUs, float32 and 16-bit parameters; gfx942, the same.
BUDGETS = """
COLUMNS 64                    0  64   0  64 120  64  64  48  48
ENERGY 256                   64  96  72  96 112  72  72  40  40
ENERGY 32                    64  96  64  96 104  64  64  40  40
ENERGY 512                   72  64  64  64 104  72  72  48  48
FINISH 1024                   0  64   0  64  64  64  64  32  32
REPORT 1024                   0  64   0  64  64  64  64  24  24
ROWS 256                      0  64   0  64  72  64  64  40  40
ROW_SUMS 2048                32  56  32  64  40  40  32  16  16
ROW_SUMS 4096                 0   0   0   0  40   0   0   0   0
ROW_SUMS 8192                40  40  32  64   0  40  32  16  16
SQUARES 256                  32  40  32  40  40  32  40  24  24
SQUARES 32                   32  40  32  40  40  32  40  24  24
SQUARES 512                  32  40  32  40  40  32  40  24  24
STATISTICS 1024             128 184 128 176 152 144 128  80  88
STATISTICS 2048             128 144 128 128 128 128 120  80  88
STATISTICS 256              168 240 128 248 192 168 128  88  88
STATISTICS 32               160 248 128 248 184 168 120  88  88
STATISTICS 4096             128 128 128 160 184 128 128  72  72
STATISTICS 8192             128 128 128 128   0 128 128  72  64
TINY 512                      0  64   0  64 112  64  64  40  40
TINY_UPDATE 512               0  64   0  64  88  64  64  32  40
TINY_UPDATE 512 momentum      0  88   0  88  96  88  88  40  48
UPDATE 256                   64 120  64  96 120  64  64  56  48
UPDATE 256 momentum          96 128 120 128 128  96 120  64  64
UPDATE 32                    64 112  56 112 120  64  56  56  48
UPDATE 32 momentum           96 128 112 128 128 104 112  64  64
UPDATE 512                   64  64  64  64 112  64  64  56  48
UPDATE 512 momentum          96  80 128  80 128  96 120  64  64
VECTOR 2048                  72 128  72 128 128  72  72  48  48
VECTOR_UPDATE 2048           72  96  72  96 128  72  72  48  40
VECTOR_UPDATE 2048 momentum  80 128  80 128 128  80  80  56  56
WIDE 2048                   144 128 144 128 192 144 144  96  96
WIDE 4096                     0   0   0   0 168   0   0   0   0
WIDE 8192                   104 120 128 128   0 112 120  56  56
accumulate                   48  40   0   0  32  56   0  24   0
adamw                        64  80 144  96  72  64 144  64  64
adamw_amsgrad                80  96 168 120  80  80 168  72  72
adamw_decay_last             64  80 128  80  72  64 128  56  64
walk                        256   0 256   0   0   0   0   0   0
walk momentum               256   0 256   0   0   0   0   0   0
"""
BUDGET_OF = {
    " ".join(words[:-9]): list(map(int, words[-9:]))
    for words in map(str.split, BUDGETS.strip().splitlines())
}


def budget_row(launch):
    is_elementwise = launch.kind in RULES
    momentum = "momentum" if not is_elementwise and "m" in loaded_slots(launch) else ""
    return " ".join(filter(None, (launch.kind, str(launch["WIDTH"] or ""), momentum)))


def budget_column(launch, target):
    if target != "sm_90":
        return (7 if target == "gfx942" else 5) + (launch["DTYPES"][0] != "fp32")
    if launch["DTYPES"][0] == "fp64":
        return 4
    return (0 if launch["DTYPES"][0] == "fp32" else 2) + (not launch["ALIGNED"])


# Of the kinds of work that load tiles: the slots they load, and store, whole; and how often the
# loads stand in the code, which is once more for every tile that is on its way ahead.
TILES_OF = {
    "ROW_SUMS": ("g", "", 1),
    "STATISTICS": ("g", "", 3),
    "WIDE": ("g", "", 3),
    "SQUARES": ("p", "", 1),
    "ENERGY": ("g", "", 1),
    "UPDATE": ("pgm", "pm", 1),
    "VECTOR": ("pgv", "v", 1),
    "VECTOR_UPDATE": ("pgvm", "pm", 1),
    "DOUBLED": ("p", "p", 1),  # of `planted_tile`
    **{kind: ("", "", 1) for kind in WITHOUT_TILES},
    **{name: ("pgmvx", "pmvx", 1) for name, rule in RULES.items() if not rule.factored},
}


def slots(launch):
    """The slots of a rule, by letter, and their sizes."""
    letters = "pgmvx" if launch.kind in RULES else "pgvm" if launch["VECTOR"] else "pgrcm"
    return dict(zip(letters, launch["DTYPES"], strict=False))


def loaded_slots(launch):
    letters = "pm" if launch.kind in ("TINY_UPDATE", "walk") else TILES_OF[launch.kind][0]
    return [slot for slot in letters if slot in slots(launch)]


def work(launch):
    """The kinds of work in a kernel, and the elements of their tiles."""
    if launch.kind == "walk":
        return [(config.KIND, config.WIDTH * config.HEIGHT) for config in launch["CFGS"]]
    height = 1 if launch["VECTOR"] else launch["HEIGHT"]
    return [(launch.kind, launch["BLOCK"] or launch["WIDTH"] * height)]


def expected_accesses(launch, target):
    """A thread's loads and stores of a tile of every slot, by size in bytes. With warps of 64,
    AMD's threads have too few elements for 16 bytes of everything: 16-bit slots have 8."""
    expected = Counter(), Counter()
    for kind, tile in work(launch):
        elements = tile // (launch.warps * (64 if target == "gfx942" else 32))
        loads, stores, copies = TILES_OF[kind]
        for letters, times, count in ((loads, copies, expected[0]), (stores, 1, expected[1])):
            for slot in letters:
                if slot in slots(launch):
                    nbytes = elements * {"fp64": 8, "fp32": 4}.get(slots(launch)[slot], 2)
                    count[min(nbytes, 16)] += times * max(nbytes // 16, 1)
    return list(expected)


def spills(launch, target, facts):
    return facts.spilled and f"{facts.spilled} bytes with {facts.registers} registers"


def over_budget(launch, target, facts):
    budget = BUDGET_OF.get(budget_row(launch), [0] * 9)[budget_column(launch, target)]
    return facts.registers > budget and f"{facts.registers} registers of {budget}"


def narrow(launch, target, facts):
    if not launch["ALIGNED"] or launch.kind in WITHOUT_TILES:
        return ""
    least = 8 if target == "gfx942" else 16
    expected = expected_accesses(launch, target)
    found = [
        Counter({k: n for k, n in c.items() if k >= least}) for c in (facts.loads, facts.stores)
    ]
    # LLVM unrolls the loop over the blocks of a chunk where it finds that short.
    for times in {1, (launch["CHUNK"] or 1) // (launch["BLOCK"] or 1)}:
        if found == [Counter({k: times * n for k, n in c.items()}) for c in expected]:
            return ""
    return f"{found}, expected {expected}"


def inexact(launch, target, facts):
    allowed = () if dict(launch.options)["enable_fp_fusion"] is False else ("fusion is allowed",)
    return facts.inexact + allowed


def adds_atomically(launch, target, facts):
    return facts.float_atomics


CHECKS = [spills, over_budget, narrow, inexact, adds_atomically]


def complaints(check, found):
    said = [(launch, target, check(launch, target, facts)) for launch, target, facts in found]
    return [f"{target} {launch}: {words}" for launch, target, words in said if words]
