// How tensors are cut into work for a GPU. GENERATED from python/fusedstep/gpu/cut.py by
// `make rules`: do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace fusedstep::cuda {

constexpr int kChunk = 4096;  // elements in a unit of an elementwise rule
constexpr int kGradientUnit = 32768;  // elements of a gradient in a unit of its norm
constexpr int kTinyElements = 64;  // at most, of a matrix that one thread takes
constexpr int kTinyMatrices = 512;  // in a unit
constexpr int kVectorUnit = 16384;  // elements of a vector in a unit

// Kinds of work; Python uses the same numbers.
enum class Unit : int {
  kRowSums,
  kRows,
  kStatistics,
  kColumnSums,
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
  kPackRows,
  kRowsExchanged,
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
    "COLUMN_SUMS",
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
    "PACK_ROWS",
    "ROWS_EXCHANGED",
    "PACK_COLUMNS",
    "PACK_SQUARES",
    "COLUMNS_EXCHANGED",
    "TOTAL_U2",
    "FINISH_EXCHANGED",
};

// One tensor's numbers in a table that kernels read, in this order. `*_at` are offsets in the
// scratch for sums. Only `partials_at` is an offset in the scratch for column sums, `col_factors_at`
// one from there, and `exchange_at` one in the buffer of exchanged sums.
struct Cut {
  int64_t unit_rows;
  int64_t row_blocks;
  int64_t chunk_cols;  // columns of a unit
  int64_t chunks;
  int64_t tiles;  // units that finish a matrix's columns
  int64_t tile_cols;  // columns of each
  int64_t update_rows;
  int64_t update_blocks;
  int64_t exchange_at;
  int64_t partials_at;
  int64_t col_factors_at;  // of columns, behind the tensor's other numbers there
  int64_t step_at;  // step size and decay
  int64_t p_at;  // sums of p^2 from the first read
  int64_t p_count;
  int64_t u_at;  // sums of u^2
  int64_t u_count;
  int64_t late_at;  // exact sums of u^2, later sums of p^2 from the second read
  int64_t late_count;
  int64_t exact_count;  // 0 if u_at already holds exact sums
  int64_t rows_at;  // sum and minimum of row, by matrix and block of rows
  int64_t least_col_at;  // minimum of col, by matrix and tile
  int64_t mean_at;  // of row, by matrix
};

}  // namespace fusedstep::cuda
