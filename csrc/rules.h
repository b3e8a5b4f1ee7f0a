// The update rules as C++. GENERATED from python/fusedstep/rules by `make rules`: do not edit.
// clang-format off
#pragma once

#include "numeric.h"

namespace fusedstep {

// Order of sums, codes of dtypes, kinds of work: python/fusedstep/rules/layout.py.
constexpr int kLanes = 16;
constexpr int kTile = 1024;
constexpr int kGroup = 8;
constexpr int kBlock = 256;
constexpr int kPiece = 65536;
constexpr int kFloat32 = 0;
constexpr int kBfloat16 = 1;
constexpr int kFloat16 = 2;
constexpr int kFloat64 = 3;
constexpr int kWhole = 0;
constexpr int kStatistics = 1;
constexpr int kColumns = 2;
constexpr int kEnergy = 3;
constexpr int kFinish = 4;
constexpr int kUpdate = 5;
constexpr int kReport = 6;

enum RuleId {
  kAdamw,
  kAdamwAmsgrad,
  kAdamwDecayLast,
  kAdafactor,
  kAdafactorMomentum,
  kAccumulate,
};

namespace {

template <class T>
struct Adamw {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v) const {
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
    T kept = p - decay * p;
    p = where(kept == kept, kept, p) - step_size * div(m, sqrt(v) * inv_root_bias2 + eps);
  }
};

template <class T>
struct AdamwAmsgrad {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v, T& w) const {
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
    w = maximum(w, v);
    T kept = p - decay * p;
    p = where(kept == kept, kept, p) - step_size * div(m, sqrt(w) * inv_root_bias2 + eps);
  }
};

template <class T>
struct AdamwDecayLast {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v) const {
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
    p = p - step_size * div(m, sqrt(v) * inv_root_bias2 + eps);
    T kept = p - decay * p;
    p = where(kept == kept, kept, p);
  }
};

template <class T>
struct Adafactor {
  T beta2, one_minus_beta2, eps_stat, mean_floor, cap, rho, scaled, scale_floor, clip,
      divisor_if_nan, decay_fixed, decay_scaled, beta1, one_minus_beta1;

  FUSEDSTEP_INLINE void update(T& p, T u, T step_size, T decay) const {
    T kept = p - decay * p;
    p = where(kept == kept, kept, p) - step_size * u;
  }

  FUSEDSTEP_INLINE T second_moment(T old, T mean_square) const {
    return beta2 * old + one_minus_beta2 * (mean_square + eps_stat);
  }

  FUSEDSTEP_INLINE T floored_mean(T mean) const {
    return maximum(mean, mean_floor);
  }

  FUSEDSTEP_INLINE T row_factor(T row, T mean) const {
    return sqrt(div(mean, row));
  }

  FUSEDSTEP_INLINE T col_factor(T col) const {
    return div(T(1.0), sqrt(col));
  }

  FUSEDSTEP_INLINE T damped(T g, T factor) const {
    return g * where(factor > cap, cap, factor);
  }

  FUSEDSTEP_INLINE T inverse(T row) const {
    return div(T(1.0), row);
  }

  FUSEDSTEP_INLINE T col_energy(T h, T col, T mean) const {
    return div(mean * h, col);
  }

  FUSEDSTEP_INLINE T rms(T sum_of_squares, T count) const {
    return sqrt(div(sum_of_squares, count));
  }

  FUSEDSTEP_INLINE void finish(T rms_p, T rms_u, T& step_size, T& decay) const {
    T scale = where(scaled > T(0.0), where(rms_p > scale_floor, rms_p, scale_floor), T(1.0));
    T excess = div(rms_u, clip);
    T divisor = where(excess == excess, maximum(excess, T(1.0)), divisor_if_nan);
    step_size = div(rho * scale, divisor);
    decay = decay_fixed + decay_scaled * scale;
  }

  FUSEDSTEP_INLINE void update(T& p, T& m, T u, T step_size, T decay) const {
    m = beta1 * m + one_minus_beta1 * (step_size * u);
    T kept = p - decay * p;
    p = where(kept == kept, kept, p) - m;
  }
};

template <class T>
struct Accumulate {
  T scale;

  FUSEDSTEP_INLINE void update(T& p, T g) const {
    p = p + scale * g;
  }
};

}  // namespace
}  // namespace fusedstep
