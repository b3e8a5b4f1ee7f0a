// The kernels of a factored rule: `phase` does one kind of work, `waves` all phases in one launch.
#pragma once

#include "exchange.cuh"
#include "rows.cuh"
#include "statistics.cuh"
#include "tiny.cuh"
#include "update.cuh"
#include "vector.cuh"

namespace fusedstep::cuda {

// Does one unit of work if its tensor has a gradient. P, G and M are the dtypes of parameter,
// gradient and momentum, or kNone if the unit does not use them. A thread has 8 * V columns of a
// whole row.
template <Unit kUnit, int P, int G, int M, int V, int kBatch, class T>
__device__ __forceinline__ void carry_out(const KernelArgs& args, int64_t index, int unit) {
  // Two places for this test: the first read leaves no spare register, and for each width one of the
  // places spills (nvcc 13.0, sm_80 and sm_90).
  if (V == 1 && !has_gradient(args.table + index * args.fields)) return;
  const FactoredTensor<T> tensor(args, index);
  if (V != 1 && !has_gradient(tensor.table_row)) return;
  if constexpr (kUnit == Unit::kRowSums) statistics<G, V, Rows::kSum, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kRows) row_moments(tensor, unit);
  if constexpr (kUnit == Unit::kStatistics) statistics<G, V, Rows::kMake, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kColumnSums) statistics<G, V, Rows::kKnown, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kTiny) tiny_read(tensor, unit);
  if constexpr (kUnit == Unit::kVector) vector_read(tensor, unit);
  if constexpr (kUnit == Unit::kSquares) squares<P>(tensor, unit);
  if constexpr (kUnit == Unit::kColumns) columns(tensor, unit);
  if constexpr (kUnit == Unit::kSumU2) sum_u2<G, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kFinish) finish(tensor);
  if constexpr (kUnit == Unit::kUpdate) update<P, G, M, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kTinyUpdate) tiny_update<M>(tensor, unit);
  if constexpr (kUnit == Unit::kVectorUpdate) vector_update<M>(tensor, unit);
  if constexpr (kUnit == Unit::kStoreRms) store_rms(tensor);
  if constexpr (kUnit == Unit::kPackColumns) pack_columns(tensor, unit);
  if constexpr (kUnit == Unit::kPackSquares) pack_squares(tensor);
  if constexpr (kUnit == Unit::kColumnsExchanged) columns_exchanged(tensor, unit);
  if constexpr (kUnit == Unit::kTotalU2) total_u2(tensor, index);
  if constexpr (kUnit == Unit::kFinishExchanged) finish_exchanged(tensor, index);
}

// Blocks that should fit on a multiprocessor. More blocks leave fewer registers for a thread.
template <Unit kUnit, int P, int M, bool InDouble>
constexpr int kResident =
    kUnit == Unit::kStatistics || kUnit == Unit::kColumnSums || kUnit == Unit::kRowSums ||
            (kUnit == Unit::kUpdate && (P == kAny || M != kNone)) || InDouble
        ? 1
        : 2;

// One kind of work, one block per entry. A step launches the phases one after another. Every block
// waits, even if it then does nothing: the kernel after the next one relies on it.
template <Unit kUnit, int P, int G, int M, int V, bool InDouble>
__global__ void __launch_bounds__(kThreads, kResident<kUnit, P, M, InDouble>)
    phase(const __grid_constant__ KernelArgs args) {
  using T = std::conditional_t<InDouble, double, float>;
  // Rows loaded at once. SUM_U2 reads only the gradient, so it needs more of them.
  constexpr int kBatch = G == kAny ? 1 : kUnit == Unit::kSumU2 && G == kBfloat16 ? 4 : 2;
  let_next_kernel_start();
  wait_for_kernel_before();
  if (found_inf(args)) return;
  const int32_t* entry = args.entries + 2 * int64_t(blockIdx.x);
  carry_out<kUnit, P, G, M, V, kBatch, T>(args, entry[0], entry[1]);
}

// The entry of a block's ticket: kind of work, tensor, unit, how many entries of its tensor to wait
// for, another counter, the value to wait for there, another counter to increment or -1, and 0.
__device__ __forceinline__ const int32_t* entry_of_ticket(const KernelArgs& args) {
  return args.entries + kWaveEntry * int64_t(shared().ticket);
}

// Does one unit of work. The host puts only these kinds into waves.
template <int D, int M, Unit... kUnits>
__device__ __forceinline__ void carry_out_one(const KernelArgs& args, Unit kind, int64_t tensor,
                                              int unit) {
  ((kind == kUnits ? carry_out<kUnits, D, D, M, 1, 1, float>(args, tensor, unit) : void()), ...);
}

// All work on matrices in one launch. Blocks keep running and take tickets. An entry waits only for
// entries with earlier tickets. Some block already works on those, so there is no deadlock for any
// number of blocks. A block reads its entry again instead of keeping it: the units need the
// registers.
//
// D is the dtype of parameters and gradients. All are aligned, with at most 4096 columns.
template <int D, int M>
__global__ void __launch_bounds__(kThreads, 1) waves(const __grid_constant__ KernelArgs args) {
  if (found_inf(args)) return;
  for (;;) {
    if (thread() == 0) {
      shared().ticket = atomicAdd(args.counters, 1);
      if (shared().ticket < args.count) {
        const int32_t* entry = entry_of_ticket(args);
        const int32_t* done = args.counters + 1;
        while (load_acquire(done + entry[1]) < entry[3]) continue;
        while (load_acquire(done + entry[4]) < entry[5]) continue;
      }
    }
    __syncthreads();
    if (shared().ticket >= args.count) return;
    const int32_t* entry = entry_of_ticket(args);
    carry_out_one<D, M, Unit::kStatistics, Unit::kSquares, Unit::kColumns, Unit::kSumU2, Unit::kFinish,
                  Unit::kUpdate, Unit::kStoreRms>(args, static_cast<Unit>(entry[0]), entry[1],
                                                  entry[2]);
    __syncthreads();  // every thread has stored what it had to
    if (thread() == 0) {
      const int32_t* counted = entry_of_ticket(args);
      add_release(args.counters + 1 + counted[1], 1);
      if (counted[6] >= 0) add_release(args.counters + 1 + counted[6], 1);
    }
  }
}

}  // namespace fusedstep::cuda
