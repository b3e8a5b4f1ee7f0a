"""A fake of the module with the CUDA kernels. It records its calls and launches nothing."""

import ctypes
import dataclasses

import fusedstep.backends.cuda
from fusedstep import backends
from fusedstep.gpu import cut
from fusedstep.gpu.unit_sizes import Height
from tests.support.cases import make_params, set_grads

# A vector, a matrix that is not aligned, aligned matrices whose rows fit two widths of tiles, one
# with longer rows, tiny matrices.
SHAPES = [(3,), (4, 5), (70, 1024), (2, 5000), (2, 8200), (40, 3, 3)]
# So small that (70, 1024) has several units.
SMALL_UNITS = dataclasses.replace(fusedstep.backends.cuda.UNIT_SIZES, unit=Height(16, 1024))


def numbers_at(address, count, kind=ctypes.c_int32):
    return list((kind * count).from_address(address)) if address else []


class Bucket:
    """Records the work of a bucket and its launches."""

    def __init__(self, module, *arguments):
        self.module = module
        self.rule, self.wide, self.kind, self.dtypes, self.companions = arguments[:5]
        self.fields, self.row_length, self.device, self.noise = arguments[5:]
        self.phases, self.scratch = [], None
        module.made.append(self)

    def set_scratch(self, cuts, partials, sums):
        self.scratch = cuts, partials, sums

    def set_exchange(self, sums, of_tensors):
        self.exchanged = sums, of_tensors

    def add(self, unit, width, aligned, entries, count):
        self.phases.append((cut.UNITS[unit], width, aligned, numbers_at(entries, 2 * count)))

    def set_squares(self, entries, count, elements):
        self.squares = numbers_at(entries, 2 * count)

    def launch_squares(self, table, sums, stream):
        self.module.norms.append((self, (table, sums), stream))

    def launch(self, table, scalar_row_of, scalars, controls, stream, idle, values):
        assert 0 <= values <= self.module.VALUES
        self.module.launched.append((self, (table, scalar_row_of, scalars, controls), stream, idle))
        if self.module.fails:
            raise RuntimeError(self.module.fails)


class Module:
    CHUNK, VALUES = 8192, 128

    def __init__(self):
        self.made, self.launched, self.unusable, self.fails = [], [], {}, ""
        self.norms = []  # the launches that sum squares of gradients

    def Bucket(self, *arguments):
        return Bucket(self, *arguments)

    def device_count(self):
        return 1

    def built_for(self):
        return "sm_90; CUDA 13.0"

    def why_unusable(self, device):
        return self.unusable.get(device, "")

    def kinds(self):
        """(kind, width, aligned) of all launches."""
        return [
            (name, width, aligned)
            for work, _, _, idle in self.launched
            for name, width, aligned, _ in work.phases
            if not idle >> cut.UNITS.index(name) & 1
        ]


def register(monkeypatch):
    """Registers the fake as the backend "recorded", which takes CPU tensors. Returns the fake."""
    made = Module()
    backend = fusedstep.backends.cuda.CudaBackend("recorded", lambda: made, ("cpu",))
    monkeypatch.setitem(backends.BACKENDS, "recorded", backend)
    return made


def started(case, shapes, groups=({},), backend="recorded"):
    """An optimizer after a step, and its parameters, which the groups take in turns."""
    params = make_params(shapes)
    made = [{"params": params[k :: len(groups)], **own} for k, own in enumerate(groups)]
    optimizer = case.make(made, backend=backend)
    set_grads(params, 0)
    optimizer.step()
    return optimizer, params
