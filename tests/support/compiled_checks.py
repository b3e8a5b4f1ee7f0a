"""The checks that every compiled Triton kernel must pass."""

from __future__ import annotations

import dis
import re
from collections import Counter

from fusedstep.gpu.cut import WITHOUT_TILES
from fusedstep.rules import RULES
from tests.support.budgets import REGISTERS, TRITON, allocated
from tests.support.compiled import LOADS_P, PLUGGED

# The columns of the budgets. Targets other than sm_90 have only the usual dtypes, aligned.
COLUMNS = [
    "sm_90 fp32",
    "sm_90 fp32 unaligned",
    "sm_90 16-bit",
    "sm_90 16-bit unaligned",
    "sm_90 fp64",
    "NVIDIA fp32",
    "NVIDIA 16-bit",
    "gfx942 fp32",
    "gfx942 16-bit",
]


# The names of codes (rules/layout.py) of what is not stored in the dtype of its tensor.
CODE_NAMES = ("", "", "", "", "noisy", "rest16", "rest8", "copied", "int8", "uint8")


def budget_row(launch):
    is_elementwise = launch.kind in RULES
    momentum = "momentum" if not is_elementwise and "m" in loaded_slots(launch) else ""
    words = (launch.kind, str(launch["WIDTH"] or ""), momentum, storage(launch))
    return " ".join(filter(None, words))


def storage(launch):
    """How parameter and states are stored, if not all are in the dtypes of their tensors. Of kinds
    of work that store no parameter only its companion matters."""
    codes = codes_of(launch)
    stored = [slot for slot in codes if slot in loaded_slots(launch) and slot != "g"]
    if launch.kind not in RULES and launch.kind not in PLUGGED:
        stored = ["p"] if launch.kind in LOADS_P and "p" in companions(launch) else []
    if not any(CODE_NAMES[codes[slot]] for slot in stored):
        return ""
    return "/".join(CODE_NAMES[codes[slot]] or slots(launch)[slot] for slot in stored)


def budget_column(launch, target):
    """The budget of a launch. Several GPUs and launches share one; sm_90 has more than others."""
    dtype = {"fp32": "fp32", "fp64": "fp64"}.get(launch["DTYPES"][0], "16-bit")
    if target != "sm_90":
        return f"{'gfx942' if target == 'gfx942' else 'NVIDIA'} {dtype}"
    return f"sm_90 {dtype}{'' if launch.is_aligned or dtype == 'fp64' else ' unaligned'}"


# For kinds of work that load tiles: the slots that they load whole, the slots that they store
# whole, and how often the loads are in the code: once, plus once for each tile loaded ahead.
TILES_OF = {
    "ROW_SUMS": ("g", "", 1),
    "STATISTICS": ("g", "", 3),
    "COLUMN_SUMS": ("g", "", 3),
    "SQUARES": ("p", "", 1),
    "SUM_U2": ("g", "", 1),
    "gradient_squares": ("g", "", 1),
    "UPDATE": ("pgm", "pm", 1),
    "VECTOR": ("pgv", "v", 1),
    "VECTOR_UPDATE": ("pgvm", "pm", 1),
    "DOUBLED": ("p", "p", 1),  # for `planted_tile`
    **{kind: ("", "", 1) for kind in WITHOUT_TILES},
    **{
        name: (("p", "g", *rule.states), ("p", *rule.states), 1)
        for name, rule in RULES.items()
        if not rule.factored
    },
}


def reads_parameter(rule):
    """Whether a rule's text reads `p` before it writes it. In one of Muon's, p is a place for u."""
    used = [own for own in dis.get_instructions(rule.update) if own.argval == "p"]
    return not used[0].opname.startswith("STORE")


def letters(launch):
    """Of the slots of a rule."""
    if launch.kind == "gradient_squares":
        return "g"
    if launch.kind in RULES:
        return TILES_OF[launch.kind][0]
    return "pgvm" if launch["VECTOR"] else "pgrcm"


def slots(launch):
    """Letter -> dtype of each slot of a rule. Companions come after them."""
    dtypes = launch["DTYPES"]
    own = dtypes if launch["CODES"] is None else dtypes[: len(launch["CODES"])]
    return dict(zip(letters(launch), own, strict=False))


def codes_of(launch):
    """Letter -> how the slot is stored."""
    return dict(zip(letters(launch), launch["CODES"] or (), strict=False))


def companions(launch):
    """Letter -> dtype of the companion of each slot that has one."""
    places = zip(letters(launch), launch["COMPANIONS"] or (), strict=False)
    return {slot: launch["DTYPES"][place] for slot, place in places if place}


def loaded_slots(launch):
    loaded = "pm" if launch.kind == "TINY_UPDATE" else TILES_OF[launch.kind][0]
    return [slot for slot in loaded if slot in slots(launch)]


def whole_slots(launch):
    """The slots that are loaded whole."""
    loads = TILES_OF[launch.kind][0]
    if launch.kind in RULES and not reads_parameter(RULES[launch.kind]):
        loads = [slot for slot in loads if slot != "p"]
    return loads


def expected_accesses(launch, target):
    """The loads and stores of one thread for a tile of every slot, by size in bytes. AMD's warps
    have 64 threads, so a thread has too few elements for 16 bytes of a 16-bit slot: it has 8."""
    expected = Counter(), Counter()
    height = 1 if launch["VECTOR"] else launch["HEIGHT"]
    tile = launch["BLOCK"] or launch["WIDTH"] * height
    elements = tile // (launch.warps * (64 if target == "gfx942" else 32))
    for chosen, count in (
        (whole_slots(launch), expected[0]),
        (TILES_OF[launch.kind][1], expected[1]),
    ):
        for slot in chosen:
            for dtype in tensors_of(launch, slot, count is expected[0]):
                nbytes = elements * BYTES.get(dtype, 2)
                count[min(nbytes, 16)] += max(nbytes // 16, 1)
    if target == "gfx942" and launch.kind in ("UPDATE", "SUM_U2"):
        # Factors of columns. On NVIDIA their loads are told apart, see PTX_ACCESS.
        expected[0][FACTORS_ON_AMD.get((launch.kind, launch["WIDTH"]), 16)] += 1
    return list(expected)


# The bytes of a thread's load of factors, where they are not 16.
FACTORS_ON_AMD = {("UPDATE", 1024): 8, ("SUM_U2", 256): 4}


BYTES = {"fp64": 8, "fp32": 4, "int8": 1, "uint8": 1}


def tensors_of(launch, slot, is_load):
    """The dtypes of the tensors that a slot is loaded from or stored in, whole."""
    if slot not in slots(launch):
        return []
    code, own, beside = codes_of(launch).get(slot, 0), slots(launch)[slot], companions(launch)
    if slot not in beside or CODE_NAMES[code] in ("int8", "uint8"):  # scales are few
        return [own]
    return [beside[slot]] if is_load and CODE_NAMES[code] == "copied" else [own, beside[slot]]


def spills(launch, target, facts):
    return facts.spilled and f"{facts.spilled} bytes with {facts.registers} registers"


def over_budget(launch, target, facts):
    most = REGISTERS // (32 * launch.warps)
    if target != "gfx942" and allocated(facts.registers) > most:
        return f"{facts.registers} registers, and {launch.warps} warps cannot have more than {most}"
    return TRITON.complaint(budget_row(launch), budget_column(launch, target), facts.registers)


# Columns of what is counted in the hot loop, on sm_90.
LOOPS = ["fp32 instructions", "fp32 barriers", "bf16 instructions", "bf16 barriers"]


def loop_numbers(launch, facts):
    """Column -> number: instructions for each element of the hot loop, and barriers of a pass."""
    dtype = launch["DTYPES"][0]
    if not facts.loop.loads or dtype not in ("fp32", "bf16") or len({*launch["DTYPES"][:2]}) > 1:
        return {}
    dtypes = [d for slot in whole_slots(launch) for d in tensors_of(launch, slot, True)]
    elements = facts.loop.loads * 16 / sum(BYTES.get(dtype, 2) for dtype in dtypes)
    each = round(facts.loop.instructions / elements, 1)
    return {f"{dtype} instructions": each, f"{dtype} barriers": facts.loop.barriers}


def long_loop(launch, target, facts):
    budget = TRITON.kernels.get(budget_row(launch), {})
    numbers = loop_numbers(launch, facts)
    return [f"{number} {what}" for what, number in numbers.items() if number > budget.get(what, 0)]


def measured(found):
    """The budgets: the most registers of a thread, for each kind of launch. With n registers,
    65536 / n threads fit on a multiprocessor of sm_90: 2048 (the maximum) with 32, 1024 with 64,
    512 with 128, and one program of 256 threads with 255. On gfx942, 512 / n warps fit, 8 at
    most. And what the loops over tiles take."""
    rows = {}
    for launch, target, facts in found:
        row, column = rows.setdefault(budget_row(launch), {}), budget_column(launch, target)
        numbers = {column: allocated(facts.registers), **loop_numbers(launch, facts)}
        row.update((what, max(row.get(what, 0), number)) for what, number in numbers.items())
    columns = COLUMNS + LOOPS
    return {name: {c: row[c] for c in columns if c in row} for name, row in rows.items()}


def narrow(launch, target, facts):
    if not launch.is_aligned or launch.kind in WITHOUT_TILES:
        return ""
    # Of 8 bytes: on NVIDIA, also numbers of the tables, and 16-bit slots beside float64.
    least = 8 if target == "gfx942" else 16
    expected, found = (
        [Counter({k: n for k, n in c.items() if k >= least}) for c in accesses]
        for accesses in (expected_accesses(launch, target), (facts.loads, facts.stores))
    )
    # LLVM unrolls the loop over the blocks of a chunk if it is short, else perhaps 2 to 4 passes.
    ahead = TILES_OF[launch.kind][2] - 1  # tiles loaded before the loop
    for times in {1, 2, 3, 4, (launch["CHUNK"] or 1) // (launch["BLOCK"] or 1)}:
        if found == [Counter({k: (ahead + times) * n for k, n in c.items()}) for c in expected]:
            return ""
    return f"{found}, expected {expected} for each tile"


# Kinds of work whose source uses fma on purpose.
FUSED = ("STATISTICS", "COLUMN_SUMS")
PLAIN_FMA = re.compile(r"fma\.rn\.f(?:32|64)(?:x2)?|@llvm\.fma\S*|v_(?:pk_)?fma\w*")


def inexact(launch, target, facts):
    found = facts.inexact
    if launch.kind in FUSED:
        found = tuple(one for one in found if not PLAIN_FMA.fullmatch(one))
    allowed = () if dict(launch.options)["enable_fp_fusion"] is False else ("fusion is allowed",)
    return found + allowed


def adds_atomically(launch, target, facts):
    return facts.float_atomics


def complaints(check, found):
    said = [(launch, target, check(launch, target, facts)) for launch, target, facts in found]
    return [f"{target} {launch}: {words}" for launch, target, words in said if words]
