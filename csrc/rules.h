// The update rules as C++. GENERATED from python/fusedstep/rules by `make rules`: do not edit.
// clang-format off
#pragma once

#include "numeric.h"

namespace fusedstep {

// Of the files in python/fusedstep/rules. A module that was built from others is not used.
constexpr char kFingerprint[] = "d549f3e2a179f943";

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
constexpr int kPackColumns = 7;
constexpr int kPackTensor = 8;
constexpr int kTotal = 9;

// A tensor's row of the table (plan.h): the addresses of its slots, then its sizes. The last slot
// is where a rule's own states begin, if it has any.
struct ElementwiseRow {
  static constexpr int kP = 0, kG = 1, kStates = 2;
  static constexpr int kElements = 0, kSizes = 1;
};
struct MatrixRow {
  static constexpr int kP = 0, kG = 1, kRow = 2, kCol = 3, kMomentum = 4;
  static constexpr int kRms = 0, kBatch = 1, kRows = 2, kCols = 3, kSizes = 4;
};
struct VectorRow {
  static constexpr int kP = 0, kG = 1, kV = 2, kMomentum = 3;
  static constexpr int kRms = 0, kElements = 1, kSizes = 2;
};

enum RuleId {
  kAccumulate,
  kAdafactor,
  kAdafactorMomentum,
  kAdamw,
  kAdamwAmsgrad,
  kAdamwDecayLast,
};

// What is known of a rule by its number. `states` are those as large as the parameter.
struct RuleFacts {
  const char* name;
  int states;
  bool factored;
};
constexpr RuleFacts kRules[] = {
    {"accumulate", 0, false},
    {"adafactor", 0, true},
    {"adafactor_momentum", 1, true},
    {"adamw", 2, false},
    {"adamw_amsgrad", 3, false},
    {"adamw_decay_last", 2, false},
};
constexpr int kRuleCount = 6;

namespace {

// How many slots a row of `fields` numbers has.
FUSEDSTEP_INLINE int64_t elementwise_slots(int64_t fields) {
  return fields - ElementwiseRow::kSizes;
}
FUSEDSTEP_INLINE int64_t factored_slots(int64_t fields, bool vectors) {
  return fields - (vectors ? VectorRow::kSizes : MatrixRow::kSizes);
}

template <class T>
FUSEDSTEP_INLINE T decayed(T p, T decay) {
  T kept = where(decay < number<T>(0.0), number<T>(0.0), p) - decay * p;
  return where(kept == kept, kept, p);
}

template <class T>
FUSEDSTEP_INLINE T signed_decay(T decay) {
  T minus_kept = decay - number<T>(1.0);
  return where(decay < number<T>(0.5), decay, where(decay < number<T>(1.0), minus_kept, decay));
}

template <class T>
FUSEDSTEP_INLINE T average(T old, T x, T beta, T one_minus_beta) {
  return beta * old + one_minus_beta * x;
}

template <class T>
FUSEDSTEP_INLINE T descend(T p, T m, T v, T eps, T step_size, T inv_root_bias2) {
  return p - step_size * div(m, sqrt(v) * inv_root_bias2 + eps);
}

template <class T>
struct Accumulate {
  T scale;

  FUSEDSTEP_INLINE void update(T& p, T g) const {
    p = p + scale * g;
  }
};

template <class T>
struct Adafactor {
  T beta2, one_minus_beta2, eps_stat, mean_floor, cap, rho, scaled, scale_floor, clip,
      divisor_if_nan, decay_fixed, decay_scaled, beta1, one_minus_beta1;

  FUSEDSTEP_INLINE void update(T& p, T u, T step_size, T decay) const {
    p = decayed(p, decay) - step_size * u;
  }

  FUSEDSTEP_INLINE T second_moment(T old, T mean_square) const {
    return beta2 * old + one_minus_beta2 * (mean_square + eps_stat);
  }

  FUSEDSTEP_INLINE T floored_mean(T mean) const {
    return maximum(mean, mean_floor) + (mean - mean);
  }

  FUSEDSTEP_INLINE T row_factor(T row, T mean) const {
    return sqrt(div(mean, row));
  }

  FUSEDSTEP_INLINE T col_factor(T col) const {
    return div(number<T>(1.0), sqrt(col));
  }

  FUSEDSTEP_INLINE bool is_capped(T least_row, T least_col, T mean) const {
    return row_factor(least_row, mean) * col_factor(least_col) > cap;
  }

  FUSEDSTEP_INLINE T precondition(T g, T factor) const {
    return g * where(factor > cap, cap, factor);
  }

  FUSEDSTEP_INLINE T inverse(T row) const {
    return div(number<T>(1.0), row);
  }

  FUSEDSTEP_INLINE T col_energy(T h, T col, T mean) const {
    return div(mean * h, col);
  }

  FUSEDSTEP_INLINE T rms(T sum_of_squares, T count) const {
    return sqrt(div(sum_of_squares, count));
  }

  FUSEDSTEP_INLINE void finish(T rms_p, T rms_u, T& step_size, T& decay) const {
    rms_p = where(rms_p > scale_floor, rms_p, scale_floor);
    T scale = where(scaled > number<T>(0.0), rms_p, number<T>(1.0));
    T excess = div(rms_u, clip);
    T divisor = where(excess == excess, maximum(excess, number<T>(1.0)), divisor_if_nan);
    step_size = div(rho * scale, divisor);
    decay = signed_decay(decay_fixed + decay_scaled * scale);
  }

  FUSEDSTEP_INLINE void update(T& p, T& m, T u, T step_size, T decay) const {
    m = beta1 * m + one_minus_beta1 * (step_size * u);
    p = decayed(p, decay) - m;
  }
};

template <class T>
struct Adamw {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v) const {
    m = average(m, g, beta1, one_minus_beta1);
    v = average(v, g * g, beta2, one_minus_beta2);
    p = descend(decayed(p, decay), m, v, eps, step_size, inv_root_bias2);
  }
};

template <class T>
struct AdamwAmsgrad {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v, T& w) const {
    m = average(m, g, beta1, one_minus_beta1);
    v = average(v, g * g, beta2, one_minus_beta2);
    w = maximum(w, v);
    p = descend(decayed(p, decay), m, w, eps, step_size, inv_root_bias2);
  }
};

template <class T>
struct AdamwDecayLast {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inv_root_bias2;

  FUSEDSTEP_INLINE void update(T& p, T g, T& m, T& v) const {
    m = average(m, g, beta1, one_minus_beta1);
    v = average(v, g * g, beta2, one_minus_beta2);
    p = decayed(descend(p, m, v, eps, step_size, inv_root_bias2), decay);
  }
};

// Dtypes of parameter, gradient and states, if there are any, for which a GPU has a kernel.
template <int P, int G, int S>
struct Dtypes {};
template <class... D>
struct DtypesList {};
template <int... Rules>
struct RuleList {};

// A rule by its number, when compiled.
template <int Rule, class T>
struct RuleOf;

using Usual = DtypesList<Dtypes<kFloat32, kFloat32, kFloat32>, Dtypes<kBfloat16, kBfloat16, kBfloat16>, Dtypes<kBfloat16, kBfloat16, kFloat32>>;

template <class T>
struct RuleOf<kAccumulate, T> {
  using type = Accumulate<T>;
  using dtypes = DtypesList<Dtypes<kFloat32, kFloat32, kFloat32>, Dtypes<kFloat32, kBfloat16, kFloat32>>;
  static constexpr int kStates = 0;
};

template <class T>
struct RuleOf<kAdafactor, T> {
  using type = Adafactor<T>;
  static constexpr int kStates = 0;
};

template <class T>
struct RuleOf<kAdafactorMomentum, T> {
  using type = Adafactor<T>;
  static constexpr int kStates = 1;
};

template <class T>
struct RuleOf<kAdamw, T> {
  using type = Adamw<T>;
  using dtypes = Usual;
  static constexpr int kStates = 2;
};

template <class T>
struct RuleOf<kAdamwAmsgrad, T> {
  using type = AdamwAmsgrad<T>;
  using dtypes = Usual;
  static constexpr int kStates = 3;
};

template <class T>
struct RuleOf<kAdamwDecayLast, T> {
  using type = AdamwDecayLast<T>;
  using dtypes = Usual;
  static constexpr int kStates = 2;
};

using ElementwiseRules = RuleList<kAccumulate, kAdamw, kAdamwAmsgrad, kAdamwDecayLast>;
using FactoredRules = RuleList<kAdafactor, kAdafactorMomentum>;

}  // namespace
}  // namespace fusedstep
