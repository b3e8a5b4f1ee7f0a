// Cuts a bucket's tensors into pieces, by shape alone, and lists the entries, rounds and scratch.
#pragma once

#include <algorithm>
#include <vector>

#include "../plan.h"
#include "../rules/layout.h"

namespace fusedstep {

// Unnamed: the walkers of each instruction set have their own copy.
namespace {

// Cuts a tensor of matrices into pieces: several whole matrices, or a block of a large matrix.
struct MatrixCut {
  int64_t batch, rows, cols;
  bool blocked;
  int64_t blocks;     // of one matrix
  int64_t tiles;      // of one row
  int64_t per_piece;  // matrices in a piece
  int64_t pieces;

  MatrixCut(int64_t batch, int64_t rows, int64_t cols) : batch(batch), rows(rows), cols(cols) {
    const int64_t area = rows * cols;
    blocked = area > kCpuRun;
    blocks = (rows + kBlock - 1) / kBlock;
    tiles = (cols + kTile - 1) / kTile;
    per_piece = blocked || area == 0 ? 1 : std::max<int64_t>(1, kCpuRun / area);
    pieces = blocked ? batch * blocks : (batch + per_piece - 1) / per_piece;
  }

  // Whether one entry reads and updates the whole tensor. If not, all pieces are read before any is
  // updated.
  bool at_once() const { return pieces == 1 && !blocked; }
};

// Whether no loop was built for the gradient's dtype. Then its rows are converted in groups, in a
// thread's scratch.
inline bool converts_gradient(const LaunchArgs& launch) {
  return (launch.in_float64 != 0) != (launch.dtypes[MatrixRow::kG] == kFloat64);
}

// Tiles of columns that one entry finishes.
constexpr int64_t kColumnTiles = 4;

// Elements of gradient in a wave: read 2 should find them in the last-level cache.
constexpr int64_t kWave = 4 << 20;

// Where a tensor's sums are kept between rounds.
struct Sums {
  double *step, *p, *u;                            // step: step_size, decay; p, u: one per piece
  double *mean, *least_row, *tile_u2, *least_col;  // blocked matrices only
  char* partial;                                   // s then h of each block, in the compute type
  int64_t bytes;

  Sums(char* base, const MatrixCut& cut, int64_t item) {
    const int64_t tiles = cut.blocked ? cut.batch * cut.tiles : 0;
    const int64_t blocks = cut.blocked ? cut.pieces : 0;
    double* at = reinterpret_cast<double*>(base);
    auto take = [&](int64_t n) { return (at += n) - n; };
    step = take(2);
    p = take(cut.pieces);
    u = take(cut.pieces);
    mean = take(cut.blocked ? cut.batch : 0);
    least_row = take(blocks);
    tile_u2 = take(tiles);
    least_col = take(tiles);
    partial = reinterpret_cast<char*>(at);
    bytes = partial - base + 2 * blocks * cut.cols * item;
    bytes = (bytes + 63) / 64 * 64;
  }
};

// The pieces of a tensor that a run of its elements touches.
struct FlatRun {
  int64_t start, end;  // elements of the whole tensor
  int64_t first_piece;
  MatrixCut touched;  // the whole tensor's, but for the number of pieces

  FlatRun(const MatrixCut& cut, const OfTensor& whole)
      : start(int64_t(whole.start)),
        end(start + int64_t(whole.length)),
        first_piece(piece_of(cut, start)),
        touched(cut) {
    touched.pieces = piece_of(cut, end - 1) + 1 - first_piece;
  }

  static int64_t piece_of(const MatrixCut& cut, int64_t element) {
    const int64_t row = element / cut.cols, matrix = row / cut.rows;
    return cut.blocked ? matrix * cut.blocks + row % cut.rows / kBlock : matrix / cut.per_piece;
  }
};

}  // namespace

struct WorkList {
  std::vector<Entry> entries;
  std::vector<int64_t> runs{0}, rounds{0}, scratch_of;
  std::vector<int64_t> stages{0};  // the first round of each stage, then the end
  int64_t scratch_bytes = 0, thread_bytes = 0;

  void add(int64_t kind, int64_t tensor, int64_t index) { entries.push_back({kind, tensor, index}); }
  void end_run() {
    if (int64_t(entries.size()) > runs.back()) runs.push_back(entries.size());
  }
  void end_round() {
    end_run();
    if (int64_t(runs.size()) - 1 > rounds.back()) rounds.push_back(runs.size() - 1);
  }
  void end_stage() { stages.push_back(int64_t(rounds.size()) - 1); }
};

WorkList elementwise_work(const LaunchArgs& launch, int64_t tensors);
WorkList factored_work(const LaunchArgs& launch, int64_t tensors);
WorkList exchanged_work(const LaunchArgs& launch, int64_t tensors);
WorkList flat_work(const LaunchArgs& launch, int64_t tensors);

}  // namespace fusedstep
