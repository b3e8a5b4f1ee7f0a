// States of 8 bits: blocks of numbers that share a scale. A number is +-r^2, where r is the scale times
// the code over the most levels; the scale is the largest r of its block.
#pragma once

#include "storage.h"

namespace fusedstep {
namespace {

constexpr float kNotFinite = __builtin_inff();

template <class Code>
constexpr float kLevels = std::is_signed_v<Code> ? 127.0f : 255.0f;

// Calls `function(code type, first number, scale)` for each block of n numbers.
template <class Function>
FUSEDSTEP_INLINE void by_blocks(const Stored& x, int64_t n, Function&& function) {
  float* scale = reinterpret_cast<float*>(x.companion);
  for (int64_t i = 0; i < n; i += kScaledBlock, ++scale)
    x.code == kRootedInt8 ? function(reinterpret_cast<int8_t*>(x.at) + i, i, *scale)
                          : function(reinterpret_cast<uint8_t*>(x.at) + i, i, *scale);
}


template <class T>
void load_blocks(const Stored& from, int64_t n, T* to) {
  by_blocks(from, n, [&](auto* code, int64_t first, float scale) FUSEDSTEP_LAMBDA {
    using Code = std::remove_pointer_t<decltype(code)>;
    constexpr float inverse = 1.0f / kLevels<Code>;
    FUSEDSTEP_INDEPENDENT
    for (int j = 0; j < kScaledBlock; ++j) {
      const float root = scale * (float(code[j]) * inverse);
      to[first + j] = T(root * __builtin_fabsf(root));
    }
  });
}

template <class T>
void store_blocks(const Stored& to, int64_t n, const T* x) {
  by_blocks(to, n, [&](auto* code, int64_t first, float& scale) FUSEDSTEP_LAMBDA {
    using Code = std::remove_pointer_t<decltype(code)>;
    using Part = Lanes<float>::Part;
    float root[kScaledBlock];
    Part largest{};
    for (int j = 0; j < kScaledBlock; j += Lanes<float>::kWidth) {
      Part own;
      for (int k = 0; k < Lanes<float>::kWidth; ++k) own[k] = float(x[first + j + k]);
      const Part r = sqrt_part(own < 0 ? -own : own);
      put(root + j, r);
      largest = (r > largest) | (r != r) ? r : largest;
    }
    scale = 0.0f;
    for (int k = 0; k < Lanes<float>::kWidth; ++k) scale = maximum(largest[k], scale);
    if (!(scale > 0.0f && scale < kNotFinite)) return void(std::memset(code, 0, kScaledBlock));
    const float factor = kLevels<Code> / scale;
    FUSEDSTEP_INDEPENDENT
    for (int j = 0; j < kScaledBlock; ++j) {
      int32_t level = int32_t(__builtin_rintf(root[j] * factor));
      const T own = x[first + j];
      if constexpr (std::is_signed_v<Code>)
        level = own < T(0) ? -level : level;
      else
        level = (own > T(0)) & (level < 1) ? 1 : level;
      code[j] = Code(level);
    }
  });
}

}  // namespace
}  // namespace fusedstep
