"""What an H200 should measure, by arithmetic on bytes, instructions and launches.

`python -m bench.predicted` writes it down. A step takes the largest of three times: the device's
work, its launches, and the host's work. Waits of the host come on top. The device's work is the
bytes that a step moves over the speed of a copy, or the time of its instructions if we counted them
and they take longer.
"""

from dataclasses import dataclass
from importlib import import_module

from bench.lists import DTYPES, LISTS, ParameterList
from bench.optimizers import RULES
from bench.providers import OURS, OURS_TRITON
from fusedstep.backends import cuda
from fusedstep.gpu.cut import Layout
from fusedstep.gpu.unit_sizes import UnitSizes, ceil_div

# Bytes a second: a copy of 2 GiB on an H200 read and wrote 4.26e12 to 4.29e12 (2026-11-26).
COPY = 4.27e12
# Assumptions. They were not measured on the device.
GAP = 4e-6  # seconds from one kernel's start to the next one's, if they do nothing
LAUNCH = {OURS: 3e-6, OURS_TRITON: 4e-6}  # seconds of the host for one launch, by provider
TORCH_LAUNCH = 5e-6  # and for a launch by torch, with its operator
# Seconds of the host for a bucket's scalars, through page-locked memory. CUDA's travel with the
# launches if they are few.
UPLOAD = {OURS: 0.0, OURS_TRITON: 15e-6}
WAIT = 20e-6  # seconds lost whenever the host reads a number from the device
L2 = 62.9e6  # bytes of cache, as the device says
# The host of that H200 took 1.88 times as long for torch's fused AdamW as the AMD EPYC of the next
# two lines: 5.56 us a parameter (bench/results).
HOST = 1.88
# Seconds of the host for each parameter of an AdamW step, measured on a CPU (AMD EPYC with AVX-512,
# 2026-11-27, bench/results) on a list of single elements.
OURS_EACH, FUSED_EACH, FOREACH_EACH = 0.12e-6 * HOST, 2.96e-6 * HOST, 10.78e-6 * HOST
# And for a whole step of one tensor whose launches are only recorded (same CPU and day).
OURS_STEP = {"adamw": 15e-6 * HOST, "adafactor": 17e-6 * HOST}
# Instructions of a thread for each element of an aligned matrix, in the first read and in the
# second. They are in tests/cuda/budgets.json, code included that runs only if gradients are scaled
# or a quotient is out of range.
READ = {"float32": 14.1, "bfloat16": 10.5}
READ_OF_LONG_ROWS = 15.0  # in bfloat16, of more columns than a thread has registers for squares
UPDATE = 14.8
# Triton's first read of rows of 1,024 columns or more, and its read for the sum of u^2 of a capped
# matrix: the most in tests/triton/budgets.
TRITON_READ = {"float32": 12.6, "bfloat16": 12.9}
TRITON_SUM_U2 = 14.0
# AdamW with options for low precision, on bfloat16: bytes of memory for each element, and the
# instructions of a thread, of a loop over 8 elements in tests/cuda/budgets.json. These include code
# for strange numbers and for parts of tensors, so a step may be faster.
LOW_PRECISION = {
    "fusedstep-noise": (14.0, 1107 / 8),
    "fusedstep-rest16": (26.0, 460 / 8),
    "fusedstep-rest16-bf16-states": (18.0, 480 / 8),
    "fusedstep-int8-states": (10.0 + 16 / 128, 888 / 8),
    "fusedstep-rest8-int8-states": (12.0 + 16 / 128, 1085 / 8),
}
# Instructions a second: 132 multiprocessors, 128 lanes, 1.98 GHz (data sheet), 80 % of it reached.
ISSUED = 132 * 128 * 1.98e9 * 0.8
# Bytes a second that one multiprocessor reads: 32 KB are in flight, and take 0.8 us.
NEAR = 40e9
FUSED_TENSORS = 36  # in one launch of torch's fused AdamW: its four address lists are one argument
LARGE = ("1e9", "llama-1b")
SMALL = ("2000 small", "small", "host")
FITTING, ABOVE = "4096x4096", ("32768x8192", "16384x16384")  # the gradient fits L2, or does not
# The folder of kernels is a part of the package only where it is installed.
SIZES_OF: dict[str, UnitSizes] = {
    OURS: cuda.UNIT_SIZES,
    OURS_TRITON: import_module("fusedstep.kernels.blocks").UNIT_SIZES,
}
TRAINER, DEFAULTS, TORCH = "adafactor-hf-trainer", "adafactor-hf-defaults", "adafactor-torch"
ONE_READ = ("STATISTICS", "COLUMN_SUMS")  # kinds of work that are a first read
# Kinds of work that have nothing to do, and so are not launched.
IDLE = {TRAINER: {"SUM_U2", "SQUARES"}, DEFAULTS: {"SUM_U2", "STORE_RMS"}, TORCH: {"STORE_RMS"}}

# What a peer's step moves for each element of a matrix: its passes over memory, counted in the
# source of torch 2.13 and transformers 5.23. This is an estimate: it ignores caches, and reductions
# across rows are slower than copies.
#   torch foreach AdamW, accesses: p *= (2), m lerp (3), v *= (2), v addcmul (3), sqrt (2), / (2),
#   + eps (2), addcdiv (4)
FOREACH_ADAMW_ACCESSES = 20
#   torch foreach Adafactor, accesses: norm p (1), norms of g (1, 1), row @ col (1), / (2),
#   clamp (2), rsqrt (2), * g (3), norm u (1), * alpha (2), p += (3)
FOREACH_ADAFACTOR_ACCESSES = 19
#   transformers, float32 temporaries: norm p (4), g^2 (8), + eps (8), two means (8), row * col (4),
#   * g (12), norm u (4), / (8), * lr (8), -u (8), p += (12); in bfloat16 also casts of g (6), of
#   p (6), and back (6)
TRANSFORMERS_BYTES = {"float32": 84, "bfloat16": 84 + 18}
# Launches for each matrix, counted in the same way. For torch we count only those that are not for
# all tensors at once.
TRANSFORMERS_LAUNCHES, FOREACH_LAUNCHES, FOREACH_WAITS = 28, 9, 2
COUNTED = "passes counted in its source"


@dataclass(frozen=True)
class Prediction:
    rule: str
    chosen: ParameterList
    dtype: str
    provider: str
    moved: float  # bytes
    launches: int
    host: float  # seconds
    remark: str = ""
    waits: int = 0  # how many numbers the host reads back
    computing: float = 0.0  # seconds of instructions that moving bytes does not hide

    @property
    def floor_bytes(self) -> float:
        if self.provider in LOW_PRECISION:
            return self.moved
        return self.chosen.floor_bytes(RULES[self.rule].rule, DTYPES[self.dtype])

    @property
    def in_cache(self) -> bool:
        return self.chosen.held_bytes(RULES[self.rule].rule, DTYPES[self.dtype]) <= L2

    @property
    def seconds(self) -> float:
        return max(self.device, self.host) + WAIT * self.waits

    @property
    def device(self) -> float:
        """Seconds if the host were never late."""
        # A list that fits L2 moves no bytes of memory: then only launches and the host count.
        moving = 0.0 if self.in_cache else self.moved / COPY
        return max(moving + self.computing, GAP * self.launches)

    @property
    def share(self) -> float:
        """The floor at copy speed, over the predicted time."""
        return self.floor_bytes / COPY / self.seconds


def elements(shapes: list[tuple[int, ...]]) -> int:
    return sum(ParameterList("", (shape,)).elements for shape in shapes)


def adamw(name: str, dtype: str) -> list[Prediction]:
    chosen, count = LISTS[name], len(LISTS[name].shapes)
    size = DTYPES[dtype].itemsize
    floor = chosen.floor_bytes("adamw", DTYPES[dtype])
    foreach = FOREACH_ADAMW_ACCESSES * size * chosen.elements
    # One launch of torch's holds at most 36 tensors, and at most 320 chunks of 65,536 elements.
    chunks = sum(ceil_div(elements([shape]), 65536) for shape in chosen.shapes)
    fused = max(ceil_div(count, FUSED_TENSORS), ceil_div(chunks, 320))
    who = ("adamw", chosen, dtype)
    return [
        *(
            Prediction(*who, name, floor, 1, our_host(name, "adamw", 1, 1, count))
            for name in LAUNCH
        ),
        Prediction(*who, "torch-fused", floor, fused, FUSED_EACH * count),
        Prediction(*who, "torch-foreach", foreach, 8 * fused, FOREACH_EACH * count, COUNTED),
    ]


def low_precision(name: str) -> list[Prediction]:
    chosen, found = LISTS[name], []
    host = our_host(OURS, "adamw", 1, 1, len(chosen.shapes))
    for provider, (bytes_, instructions) in LOW_PRECISION.items():
        moved = bytes_ * chosen.elements
        computing = max(0.0, instructions * chosen.elements / ISSUED - moved / COPY)
        who = ("adamw", chosen, "bfloat16", provider)
        found.append(Prediction(*who, moved, 1, host, "of floor: of its own", computing=computing))
    return found


def our_host(provider: str, family: str, launches: int, buckets: int, count: int) -> float:
    of_buckets = UPLOAD[provider] * buckets + LAUNCH[provider] * launches
    return OURS_STEP[family] + of_buckets + OURS_EACH * count


def our_adafactor(provider: str, rule: str, chosen: ParameterList, dtype: str) -> Prediction:
    """A step reads g twice, and reads and writes p. With scale_parameter it reads p once more. It
    reads g once more if no block holds a row, or if the cap changes elements, as torch's cap of 128
    does in bfloat16. It writes and reads the sums down the columns of about 256 rows each.

    The second read of a gradient comes from L2 if it fits there and is the only one.
    """
    unit_sizes, item, kinds = SIZES_OF[provider], DTYPES[dtype].itemsize, set()
    matrices = sum(elements([shape]) for shape in chosen.shapes if len(shape) > 1)
    layout = Layout(unit_sizes, 4, elements=matrices)
    moved = 0
    computing = 0.0
    scaled, capped = rule != TRAINER, rule == TORCH and dtype == "bfloat16"
    units = read = 0
    for shape in chosen.shapes:
        count = elements([shape])
        if len(shape) < 2:
            layout.add_vector(count)
            moved += count * (4 * item + 3 * 4)  # v is float32
        else:
            rows, columns = shape[-2:]
            sizes = (count // (rows * columns), rows, columns)
            again = count * item <= L2 and len(chosen.shapes) == 1
            layout.add_matrices(*sizes, long_rows=item == 2)
            chunked = layout.cuts[-1].chunks > 1
            moved += (4 + scaled + chunked + capped - again) * item * count
            long = provider == OURS and not chunked and columns > layout.row_widths[-1]
            usual = (READ if provider == OURS else TRITON_READ)[dtype]
            executed = (READ_OF_LONG_ROWS if long else usual) * count
            computing += max(0.0, executed / ISSUED - item * count / COPY)
            if capped and provider == OURS_TRITON:
                computing += max(0.0, TRITON_SUM_U2 * count / ISSUED - item * count / COPY)
            read += item * count
            units += sum(n for kind, n in layout.work[-1].items() if kind.name in ONE_READ)
        kinds |= {(len(shape) > 1, kind) for kind in layout.work[-1]}
    launches = sum(kind.name not in IDLE[rule] for _, kind in kinds)
    if 0 < units < 132:  # too few of them to keep the memory busy
        computing += max(0.0, read / (units * NEAR) - read / COPY)
    moved += 2 * 4 * layout.partials
    buckets = len({len(shape) > 1 for shape in chosen.shapes})
    host = our_host(provider, "adafactor", launches, buckets, len(chosen.shapes))
    who = (rule, chosen, dtype, provider)
    return Prediction(*who, moved, launches, host, computing=computing)


def ours(rule: str, chosen: ParameterList, dtype: str) -> list[Prediction]:
    return [our_adafactor(provider, rule, chosen, dtype) for provider in LAUNCH]


def adafactor(name: str, dtype: str) -> list[Prediction]:
    chosen = LISTS[name]
    count = len(chosen.shapes)
    moved = TRANSFORMERS_BYTES[dtype] * chosen.elements
    launches = TRANSFORMERS_LAUNCHES * count
    found: list[Prediction] = []
    for rule in (TRAINER, DEFAULTS):
        host, waits = TORCH_LAUNCH * launches, count if rule == DEFAULTS else 0
        found += ours(rule, chosen, dtype)
        peer = (rule, chosen, dtype, "transformers")
        found.append(Prediction(*peer, moved, launches, host, COUNTED, waits))
    foreach = FOREACH_ADAFACTOR_ACCESSES * DTYPES[dtype].itemsize * chosen.elements
    launches = FOREACH_LAUNCHES * count
    host, waits = TORCH_LAUNCH * launches, FOREACH_WAITS * count
    peer = (TORCH, chosen, dtype, "torch-foreach")
    return [
        *found,
        *ours(TORCH, chosen, dtype),
        Prediction(*peer, foreach, launches, host, COUNTED, waits),
    ]


def predictions() -> list[Prediction]:
    both = ("float32", "bfloat16")
    found = [row for name in LARGE for dtype in both for row in adamw(name, dtype)]
    found += low_precision(LARGE[0])
    found += [row for name in SMALL for row in adamw(name, "float32")]
    found += [row for dtype in both for row in adafactor("llama-1b", dtype)]
    found += adafactor("t5-xl", "bfloat16")
    for name in (FITTING, *ABOVE):
        found += [row for row in adafactor(name, "bfloat16") if row.rule == TRAINER]
    return found
