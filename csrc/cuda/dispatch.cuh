// The kernel of a factored rule: it does one kind of work.
#pragma once

#include "exchange.cuh"
#include "statistics.cuh"
#include "tiny.cuh"
#include "update.cuh"
#include "vector.cuh"

namespace fusedstep::cuda {

// Does one unit of work if its tensor has a gradient. P, G and M are the dtypes of parameter,
// gradient and momentum, or how else these are stored, or kNone if the unit does not use them or looks
// up dtypes. A thread has 8 * V columns of a whole row.
template <Unit kUnit, int P, int G, int M, int V, class T>
__device__ __forceinline__ void carry_out(const KernelArgs& args, int64_t index, int unit) {
  // Rows loaded at once. SUM_U2 reads only the gradient, so it needs more of them. Noise leaves no
  // registers for a second row.
  constexpr int kBatch = G == kAny || P == kNoisyBfloat16         ? 1
                         : kUnit == Unit::kSumU2 && kHas16Bits<G> ? 4
                                                                  : 2;
  // Two places for this test: the first read leaves no spare register, and for each width one of the
  // places spills (nvcc 13.0, sm_80 and sm_90).
  if (V == 1 && !has_gradient(args.table + index * args.fields)) return;
  const FactoredTensor<T> tensor(args, index);
  if (V != 1 && !has_gradient(tensor.table_row)) return;
  if constexpr (kUnit == Unit::kRowSums) statistics<G, V, Rows::kSum, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kRows) row_moments(tensor, unit);
  if constexpr (kUnit == Unit::kStatistics) statistics<G, V, Rows::kMake, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kColumnSums) statistics<G, V, Rows::kKnown, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kTiny) tiny_read<kOrAny<P>>(tensor, unit);
  if constexpr (kUnit == Unit::kVector) vector_read<kOrAny<P>>(tensor, unit);
  if constexpr (kUnit == Unit::kSquares) squares<P>(tensor, unit);
  if constexpr (kUnit == Unit::kColumns) columns(tensor, unit);
  if constexpr (kUnit == Unit::kSumU2) sum_u2<G, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kFinish) finish(tensor);
  if constexpr (kUnit == Unit::kUpdate && M == kBent) update_blocks<P, G>(tensor, unit);
  if constexpr (kUnit == Unit::kUpdate && M != kBent) update<P, G, M, kBatch>(tensor, unit);
  if constexpr (kUnit == Unit::kTinyUpdate) tiny_update<kOrAny<P>, M>(tensor, unit);
  if constexpr (kUnit == Unit::kVectorUpdate) vector_update<kOrAny<P>, M>(tensor, unit);
  if constexpr (kUnit == Unit::kStoreRms) store_rms(tensor);
  if constexpr (kUnit == Unit::kPackRows) pack_rows(tensor, unit);
  if constexpr (kUnit == Unit::kRowsExchanged) rows_exchanged(tensor, index, unit);
  if constexpr (kUnit == Unit::kPackColumns) pack_columns(tensor, unit);
  if constexpr (kUnit == Unit::kPackSquares) pack_squares(tensor);
  if constexpr (kUnit == Unit::kColumnsExchanged) columns_exchanged(tensor, index, unit);
  if constexpr (kUnit == Unit::kTotalU2) total_u2(tensor, index);
  if constexpr (kUnit == Unit::kFinishExchanged) finish_exchanged(tensor, index);
}

// Blocks that should fit on a multiprocessor. More blocks leave fewer registers for a thread.
template <Unit kUnit, int P, int M, bool InDouble>
constexpr int kResident =
    kUnit == Unit::kStatistics || kUnit == Unit::kColumnSums || kUnit == Unit::kRowSums ||
            kUnit == Unit::kColumnsExchanged || (kUnit == Unit::kUpdate && (P == kAny || M != kNone)) ||
            P == kAnyStored || InDouble
        ? 1
        : 2;

// One kind of work, one block per entry. A step launches the phases one after another. Every block
// waits, even if it then does nothing: the kernel after the next one relies on it.
template <Unit kUnit, int P, int G, int M, int V, bool InDouble>
__global__ void __launch_bounds__(kThreads, kResident<kUnit, P, M, InDouble>)
    phase(const __grid_constant__ KernelArgs args) {
  using T = std::conditional_t<InDouble, double, float>;
  let_next_kernel_start();
  wait_for_kernel_before();
  if (found_inf(args)) return;
  const int32_t* entry = args.entries + 2 * int64_t(blockIdx.x);
  carry_out<kUnit, P, G, M, V, T>(args, entry[0], entry[1]);
}

}  // namespace fusedstep::cuda
