// How tensors are cut into work for a GPU. GENERATED from python/fusedstep/gpu/cut.py by
// `make rules`: do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace fusedstep::cuda {

constexpr int kChunk = 8192;  // elements of an elementwise entry
constexpr int kColumnsWidth = 64;  // columns that a unit finishes
constexpr int kTinyElements = 64;  // of a matrix that one thread takes
constexpr int kTinyMatrices = 512;  // of a unit
constexpr int kVectorUnit = 16384;  // of a vector
constexpr int kWaveEntry = 8;  // numbers of an entry of the waves

// Kinds of work, by the number that Python gives them.
enum class Unit : int {
  kRowSums,
  kRows,
  kStatistics,
  kWide,
  kTiny,
  kVector,
  kSquares,
  kColumns,
  kSumU2,
  kFinish,
  kUpdate,
  kTinyUpdate,
  kVectorUpdate,
  kStoreRms,
  kElementwise,
  kPackColumns,
  kPackSquares,
  kColumnsExchanged,
  kTotalU2,
  kFinishExchanged,
};
constexpr const char* kUnitNames[] = {
    "ROW_SUMS",
    "ROWS",
    "STATISTICS",
    "WIDE",
    "TINY",
    "VECTOR",
    "SQUARES",
    "COLUMNS",
    "SUM_U2",
    "FINISH",
    "UPDATE",
    "TINY_UPDATE",
    "VECTOR_UPDATE",
    "STORE_RMS",
    "ELEMENTWISE",
    "PACK_COLUMNS",
    "PACK_SQUARES",
    "COLUMNS_EXCHANGED",
    "TOTAL_U2",
    "FINISH_EXCHANGED",
};

// Numbers of one tensor that kernels read from a table, in this order. `*_at` are places in the
// scratch of sums, except `partials_at`, which is in that of the units' columns, and `exchange_at`,
// which is in the buffer of the sums that are exchanged.
struct Cut {
  int64_t unit_rows;
  int64_t row_blocks;
  int64_t chunk_cols;  // columns of a unit
  int64_t chunks;
  int64_t tiles;  // parts in which a matrix's columns are finished
  int64_t update_rows;
  int64_t update_blocks;
  int64_t exchange_at;
  int64_t partials_at;
  int64_t step_at;  // step size and decay
  int64_t p_at;  // sums of p^2 of the first read
  int64_t p_count;
  int64_t u_at;  // sums of u^2
  int64_t u_count;
  int64_t late_at;  // exact sums of u^2, and later the sums of p^2 of the second read
  int64_t late_count;
  int64_t exact_count;  // 0 where u_at holds exact sums already
  int64_t rows_at;  // sum and minimum of row, by matrix and block of rows
  int64_t least_col_at;  // minimum of col, by matrix and tile
  int64_t mean_at;  // of row, by matrix
};

}  // namespace fusedstep::cuda
