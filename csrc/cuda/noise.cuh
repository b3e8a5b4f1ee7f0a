// The noise that rounds a thread's numbers to bfloat16: it depends on their places in the whole tensor,
// see ../noise.h.
#pragma once

#include "../noise.h"
#include "bits.cuh"
#include "kernel_args.h"

namespace fusedstep::cuda {

// In place of noise, where a kernel stores nothing that needs it.
struct NoNoise {
  __device__ __forceinline__ NoNoise of(int) const { return {}; }
};

// Constants, and not an array in memory.
__device__ __forceinline__ uint32_t multiplier_of(int slot) {
  constexpr uint32_t k0 = kNoiseMultipliers[0], k2 = kNoiseMultipliers[2], k3 = kNoiseMultipliers[3],
                     k4 = kNoiseMultipliers[4], k5 = kNoiseMultipliers[5];
  return slot == 0 ? k0 : slot == 2 ? k2 : slot == 3 ? k3 : slot == 4 ? k4 : k5;
}

// The noise of N numbers that follow one another, of one slot.
template <int N>
struct NoiseOf {
  uint32_t of_place[N];
  uint32_t second, multiplier;

  __device__ __forceinline__ NoiseOf of(int slot) const {
    NoiseOf own = *this;
    own.multiplier = multiplier_of(slot);
    return own;
  }
  // 16 bits for the k-th number.
  __device__ __forceinline__ uint32_t operator()(int k) const {
    return (noise_bits(of_place[k], second, multiplier) >> 16) ^ kNoiseFlip;
  }
};

// Unnamed, as what it is made of.
namespace {

// Gives the noise of any numbers of a tensor, or nothing if a kernel needs none.
template <bool kIs>
struct Noises {
  __device__ __forceinline__ Noises(const KernelArgs&, int64_t, const double*, int64_t) {}
  template <int N>
  __device__ __forceinline__ NoNoise at(int64_t) const {
    return {};
  }
};

template <>
struct Noises<true> {
  const NoiseRow* row;
  NoiseKeys keys;
  bool is_one_run;

  // `elements` of the tensor are here.
  __device__ __forceinline__ Noises(const KernelArgs& args, int64_t tensor, const double* scalars,
                                    int64_t elements)
      : row(nullptr), is_one_run(true) {
    if (args.noise == nullptr) return;
    row = reinterpret_cast<const NoiseRow*>(args.noise) + tensor;
    keys = NoiseKeys(row->key, scalars[args.row_length - 1]);
    is_one_run = row->cols >= elements;
    if (is_one_run) keys.first = noise_of_place(row->first, keys);
  }

  // Of N numbers from the i-th on.
  template <int N>
  __device__ __forceinline__ NoiseOf<N> at(int64_t i) const {
    NoiseOf<N> found;
    found.second = keys.second;
    found.multiplier = 0;
    if (is_one_run) {
      const uint32_t first = noise_of_place(i, keys);
#pragma unroll
      for (int k = 0; k < N; ++k) found.of_place[k] = first + uint32_t(k) * kPlaceFactor;
    } else {
      in_runs(i, found.of_place);
    }
    return found;
  }

 private:
  // Only the low 32 bits of a place count, so all but the divisions is done with 32 bits.
  template <int N>
  __device__ __forceinline__ void in_runs(int64_t i, uint32_t (&of_place)[N]) const {
    const int64_t run = i / row->cols, matrix = run / row->rows;
    uint32_t own = noise_of_place(whole_place(*row, i), keys);
    int of_run = at_most<N>((run + 1) * row->cols - i),
        of_rows = at_most<N>((matrix + 1) * row->rows - run);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      of_place[k] = own;
      own += kPlaceFactor;
      if (--of_run > 0) continue;
      of_run = at_most<N>(row->cols);
      own += uint32_t(row->row_stride - row->cols) * kPlaceFactor;
      if (--of_rows > 0) continue;
      of_rows = at_most<N>(row->rows);
      own += uint32_t(row->matrix_stride - row->rows * row->row_stride) * kPlaceFactor;
    }
  }
  template <int N>
  static __device__ __forceinline__ int at_most(int64_t n) {
    return int(n < N ? n : N);
  }
};

}  // namespace

// The bits of numbers, of which the upper half is the bfloat16. Every nan becomes the same one, and
// finite numbers stay finite; such numbers are so rare that a branch is cheaper.
template <class T, int N, class Noise>
__device__ __forceinline__ void round_by(const Noise& noise, const T (&x)[N], uint32_t (&bits)[N]) {
  constexpr float kLast = 0x1.fep127f;  // the largest bfloat16
  bool is_usual = true;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float own = float(x[k]);
    is_usual &= fabsf(own) < kLast;
    bits[k] = to_bits(own) + noise(k);
  }
  if (is_usual) return;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float own = float(x[k]);
    if (own != own)
      bits[k] = 0x7fc00000u;
    else if (!(fabsf(own) < kLast))
      bits[k] = to_bits(own);
  }
}

// Stores N numbers. Their address is aligned as for store_words.
template <class T, int N, class Noise>
__device__ __forceinline__ void store_noisy(char* to, const T (&x)[N], const Noise& noise) {
  uint32_t bits[N];
  round_by(noise, x, bits);
  if constexpr (N == 1) {
    *reinterpret_cast<uint16_t*>(to) = uint16_t(bits[0] >> 16);
  } else {
    uint32_t word[N / 2];
#pragma unroll
    for (int k = 0; k < N / 2; ++k) word[k] = upper_halves(bits[2 * k], bits[2 * k + 1]);
    store_words<2 * N>(to, word);
  }
}

// Their address may be any.
template <class T, int N, class Noise>
__device__ __forceinline__ void store_each_noisy(char* to, const T (&x)[N], const Noise& noise) {
  uint32_t bits[N];
  round_by(noise, x, bits);
#pragma unroll
  for (int k = 0; k < N; ++k) reinterpret_cast<uint16_t*>(to)[k] = uint16_t(bits[k] >> 16);
}

}  // namespace fusedstep::cuda
