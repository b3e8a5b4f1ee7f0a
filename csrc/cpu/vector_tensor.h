// The walker of factored rules on vectors, in pieces. Their second moment is not factored.
#pragma once

#include "factored.h"
#include "matrix.h"

namespace fusedstep {
namespace {

template <class T, bool Momentum>
struct VectorTensor : FactoredTensor<T, Momentum> {
  using Base = FactoredTensor<T, Momentum>;
  using Base::launch, Base::rule, Base::slot;
  MatrixCut cut;
  Sums sums;

  VectorTensor(const LaunchArgs& launch, int64_t t, char*)
      : Base(launch, t),
        cut(this->size(VectorRow::kElements), 1, 1),
        sums(launch.scratch + launch.scratch_of[t], cut, sizeof(T)) {
    this->elements = cut.batch;
  }

  Place place(int64_t i) const {
    if (launch.noise == nullptr) return {};
    return {this->keys, noise_row_of(launch, this->number).first + i};
  }

  double parameter_squares(int64_t begin, int64_t end) const {
    const Stored p = slot(VectorRow::kP).from(begin);
    return with_parameter_storage<T>(p.code, [&](auto* storage) {
      using S = std::remove_cv_t<std::remove_pointer_t<decltype(storage)>>;
      double total[1];
      row_square_sums<T>(end - begin, 1, RowGroup<T, S, false>(cursor<S>(p), 0, 1, T(1)), total);
      return total[0];
    });
  }

  // Sums go tile by tile, so this computes v and u a tile at a time.
  void read_piece(int64_t piece, double& p, double& u) const {
    const int64_t begin = piece * kCpuRun, end = std::min<int64_t>(begin + kCpuRun, cut.batch);
    p = this->scaled() ? parameter_squares(begin, end) : 0.0;
    u = 0.0;
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - i);
      T g_buffer[kTile], v_buffer[kTile], square[kTile];
      const T* g = load(slot(VectorRow::kG).from(i), n, g_buffer);
      const Stored v_at = slot(VectorRow::kV).from(i);
      T* v = load(v_at, n, v_buffer);
      FUSEDSTEP_INDEPENDENT
      for (int64_t j = 0; j < n; ++j) {
        const T scaled = g[j] * this->grad_scale;
        v[j] = rule.second_moment(v[j], scaled * scaled);
      }
      round_to_storage(v_at, n, v);
      FUSEDSTEP_INDEPENDENT
      for (int64_t j = 0; j < n; ++j) {
        const T update = rule.precondition(g[j] * this->grad_scale, rule.col_factor(v[j]));
        square[j] = update * update;
      }
      u += double(tile_sum<T>(square, n));
    }
  }

  void update_piece(int64_t piece, const double* step, double& p, const Stored* = nullptr) const {
    const int64_t begin = piece * kCpuRun, end = std::min<int64_t>(begin + kCpuRun, cut.batch);
    const T step_size = T(step[0]), decay = T(step[1]);
    T p_buffer[kTile], g_buffer[kTile], v_buffer[kTile], m_buffer[kTile];
    if (this->sums_late()) p = parameter_squares(begin, end);
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - i);
      const Stored p_at = slot(VectorRow::kP).from(i);
      T* p = load(p_at, n, p_buffer);
      const T* g = load(slot(VectorRow::kG).from(i), n, g_buffer);
      const T* v = load(slot(VectorRow::kV).from(i), n, v_buffer);
      if constexpr (Momentum) {
        const Stored m_at = slot(VectorRow::kMomentum).from(i);
        T* m = load(m_at, n, m_buffer);
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], m[j], rule.precondition(g[j] * this->grad_scale, rule.col_factor(v[j])),
                      step_size, decay);
        store(m_at, n, m, place(i).of(VectorRow::kMomentum));
      } else {
        FUSEDSTEP_INDEPENDENT
        for (int64_t j = 0; j < n; ++j)
          rule.update(p[j], rule.precondition(g[j] * this->grad_scale, rule.col_factor(v[j])),
                      step_size, decay);
      }
      store(p_at, n, p, place(i));
    }
  }

  void statistics(int64_t piece) const { read_piece(piece, sums.p[piece], sums.u[piece]); }
  void columns(int64_t) const {}
  void block_u2(int64_t) const {}
  void set_step() const {
    this->make_step(sum_in_order(sums.p, cut.pieces), sum_in_order(sums.u, cut.pieces), sums.step);
  }
  void update(int64_t piece) const { update_piece(piece, sums.step, sums.p[piece]); }
};

}  // namespace
}  // namespace fusedstep
