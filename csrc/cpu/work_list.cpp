// Makes the work list of a bucket: small tensors in runs, large tensors in pieces, round by round.
#include "work_list.h"

namespace fusedstep {
namespace {

// Elements in a run of small tensors: enough to hide the cost of taking it, few enough to balance.
constexpr int64_t kRun = kCpuRun / 2;

// Elements in a run of a long list. A thread that goes straight on reads memory faster: on an AMD EPYC
// (Zen 5), AdamW in memory gains up to 8 % by it (2026-11-27). But many threads want runs of about one
// length.
constexpr int64_t kLongRun = 1 << 20, kRuns = 256;
int64_t run_of(int64_t elements) { return std::min(kLongRun, std::max(kRun, elements / kRuns)); }

MatrixCut cut_of(const LaunchArgs& launch, int64_t tensor) {
  const int64_t* row = launch.table + tensor * launch.fields;
  const int64_t* sizes = row + factored_slots(launch.fields, launch.vectors);
  // A vector is cut like a batch of 1 x 1 matrices.
  if (launch.vectors) return MatrixCut(sizes[VectorRow::kElements], 1, 1);
  return MatrixCut(sizes[MatrixRow::kBatch], sizes[MatrixRow::kRows], sizes[MatrixRow::kCols]);
}

int64_t thread_bytes_of(const LaunchArgs& launch, const MatrixCut& cut, int64_t item) {
  if (launch.vectors) return 0;
  const int64_t partial_rows = cut.blocked ? 0 : 2 * cut.blocks;
  const int64_t group = converts_gradient(launch) ? kGroup : 0;
  return (1 + group + partial_rows) * cut.cols * item + 64;  // column factors come first
}

// How many entries of a kind a tensor has, if it is read piece by piece.
int64_t entries_of(int64_t kind, const MatrixCut& cut) {
  const int64_t column_entries = (cut.tiles + kColumnTiles - 1) / kColumnTiles;
  switch (kind) {
    case kStepSize:
    case kStoreRms:
    case kPackTensor:
    case kTotalU2:
      return 1;
    case kPackColumns:
    case kColumns:
      return cut.blocked ? cut.batch * column_entries : 0;
    case kSumU2:
      return cut.blocked ? cut.pieces : 0;
  }
  return cut.pieces;
}

bool is_of_tensor(int64_t kind) {
  return kind == kStepSize || kind == kStoreRms || kind == kPackTensor || kind == kTotalU2;
}

int64_t elements_of(const MatrixCut& cut) { return cut.batch * cut.rows * cut.cols; }

using Stages = std::vector<std::vector<int64_t>>;  // kinds, a round for each

// The entries of a kind that a tensor has, and the elements that they work on together.
struct Entries {
  int64_t count, elements;
};

template <class EntriesOf>
void add_stages(WorkList& work, const Stages& stages, int64_t tensors, EntriesOf entries_of) {
  for (const auto& kinds : stages) {
    for (int64_t kind : kinds) {
      int64_t taken = 0;  // elements of this run
      for (int64_t t = 0; t < tensors; ++t) {
        const Entries own = entries_of(kind, t);
        for (int64_t index = 0; index < own.count; ++index) {
          work.add(kind, t, index);
          taken += is_of_tensor(kind) ? 1 : own.elements / own.count + 1;
          if (taken >= kRun) work.end_run(), taken = 0;
        }
      }
      work.end_round();
    }
    work.end_stage();
  }
}

}  // namespace

WorkList elementwise_work(const LaunchArgs& launch, int64_t tensors) {
  WorkList work;
  auto size_of = [&](int64_t t) {
    return launch.elements != nullptr
               ? launch.elements[t]
               : launch.table[t * launch.fields + elementwise_slots(launch.fields)];
  };
  int64_t all = 0, elements = 0;
  for (int64_t t = 0; t < tensors; ++t) all += size_of(t);
  for (int64_t t = 0; t < tensors; ++t) {
    const int64_t n = size_of(t);
    for (int64_t i = 0; i < n; i += kCpuRun) {
      const int64_t taken = std::min<int64_t>(kCpuRun, n - i);
      work.add(kUpdate, t, i);
      elements += taken;
      if (elements >= run_of(all)) work.end_run(), elements = 0;
    }
  }
  work.end_round();
  return work;
}

WorkList factored_work(const LaunchArgs& launch, int64_t tensors) {
  WorkList work;
  const int64_t item = launch.in_float64 ? 8 : 4;
  const int64_t kRounds = 6;
  const int64_t kinds[kRounds] = {kStatistics, kColumns, kSumU2, kStepSize, kUpdate, kStoreRms};
  work.scratch_of.assign(tensors, 0);
  int64_t small = 0;
  std::vector<int64_t> large;
  for (int64_t t = 0; t < tensors; ++t) {
    const MatrixCut cut = cut_of(launch, t);
    const int64_t elements = cut.batch * cut.rows * cut.cols;
    if (elements == 0) continue;
    work.thread_bytes = std::max(work.thread_bytes, thread_bytes_of(launch, cut, item));
    if (!cut.at_once()) {
      large.push_back(t);
      continue;
    }
    work.add(kWhole, t, 0);
    small += elements;
    if (small >= kRun) work.end_run(), small = 0;
  }
  work.end_round();

  for (size_t first = 0, last = 0; first < large.size(); first = last) {
    int64_t elements = 0, bytes = 0;
    for (last = first; last < large.size() && (last == first || elements < kWave); ++last) {
      const MatrixCut cut = cut_of(launch, large[last]);
      elements += cut.batch * cut.rows * cut.cols;
      work.scratch_of[large[last]] = bytes;
      bytes += Sums(nullptr, cut, item).bytes;
    }
    work.scratch_bytes = std::max(work.scratch_bytes, bytes);
    for (int64_t kind : kinds) {
      // Read 2 goes backwards, to find in the cache what read 1 left there.
      const bool backwards = kind == kUpdate;
      for (size_t k = first; k < last; ++k) {
        const int64_t t = large[backwards ? first + last - 1 - k : k];
        const int64_t n = entries_of(kind, cut_of(launch, t));
        for (int64_t index = 0; index < n; ++index) {
          work.add(kind, t, backwards ? n - 1 - index : index);
          if (!is_of_tensor(kind)) work.end_run();
        }
      }
      work.end_round();
    }
  }
  // A walker reads the next entry too, to prefetch, so the last one needs a successor.
  work.entries.push_back({-1, -1, -1});
  return work;
}

WorkList exchanged_work(const LaunchArgs& launch, int64_t tensors) {
  Stages stages = {{},
                   {kStatistics, kPackColumns, kPackTensor},
                   {kColumns, kSumU2, kTotalU2},
                   {kStepSize, kUpdate, kStoreRms}};
  if (launch.exchange.split_columns != 0) {
    stages[0] = {kSumRows, kPackTensor};
    stages[1] = {kStatistics, kPackColumns};
  }
  WorkList work;
  const int64_t item = launch.in_float64 ? 8 : 4;
  std::vector<MatrixCut> cuts;
  for (int64_t t = 0; t < tensors; ++t) {
    cuts.push_back(cut_of(launch, t));
    work.thread_bytes = std::max(work.thread_bytes, thread_bytes_of(launch, cuts[t], item));
    work.scratch_of.push_back(work.scratch_bytes);
    work.scratch_bytes += Sums(nullptr, cuts[t], item).bytes;
    if (launch.vectors || cuts[t].blocked) continue;
    const int64_t h = cuts[t].batch * cuts[t].cols * item;  // small_h of ExchangedMatrix
    work.scratch_bytes += (h + 63) / 64 * 64;
  }
  add_stages(work, stages, tensors, [&](int64_t kind, int64_t t) {
    const MatrixCut& cut = cuts[t];
    const bool whole_pieces = kind == kColumns && !cut.blocked && !launch.vectors;
    return Entries{whole_pieces ? cut.pieces : entries_of(kind, cut), elements_of(cut)};
  });
  return work;
}

WorkList flat_work(const LaunchArgs& launch, int64_t tensors) {
  const Stages stages = {{},
                         {kStatistics, kPackColumns, kPackTensor},
                         {kRowMoments, kColumns, kSumU2, kTotalU2},
                         {kStepSize, kUpdate, kStoreRms}};
  WorkList work;
  const int64_t item = launch.in_float64 ? 8 : 4;
  std::vector<MatrixCut> cuts;  // of the whole tensors
  std::vector<FlatRun> runs;
  for (int64_t t = 0; t < tensors; ++t) {
    cuts.push_back(cut_of(launch, t));
    runs.emplace_back(cuts[t], launch.exchange.of_tensors[t]);
    work.thread_bytes = std::max(work.thread_bytes, thread_bytes_of(launch, cuts[t], item));
    work.scratch_of.push_back(work.scratch_bytes);
    work.scratch_bytes += Sums(nullptr, runs[t].touched, item).bytes;
  }
  add_stages(work, stages, tensors, [&](int64_t kind, int64_t t) {
    const MatrixCut& cut = cuts[t];
    if (kind == kStatistics || kind == kSumU2 || kind == kUpdate)
      return Entries{runs[t].touched.pieces, runs[t].end - runs[t].start};
    if (kind == kRowMoments) return Entries{cut.pieces, cut.batch * cut.rows};
    const bool whole_pieces = kind == kColumns && !cut.blocked;
    return Entries{whole_pieces ? cut.pieces : entries_of(kind, cut), cut.batch * cut.cols};
  });
  return work;
}

}  // namespace fusedstep
