// Reads and writes stored numbers: kLanes at a time or fewer in registers (`widen`, `narrow`), or short
// runs through a buffer, for loops that take any mix of dtypes (`load`, `store`).
#pragma once

#include "blocks.h"
#include "masters.h"

namespace fusedstep {
namespace {

// How many numbers a function takes: kAll lanes, known to the compiler, or the first n < kLanes.
using All = std::integral_constant<int64_t, kLanes>;
constexpr All kAll;

// Copies the first n < 2 * kBlock numbers in two blocks, which may overlap.
template <int kBlock, class S>
FUSEDSTEP_INLINE void copy_blocks(S* to, const S* from, int64_t n) {
  if constexpr (kBlock > 1)
    if (n < kBlock) return copy_blocks<kBlock / 2>(to, from, n);
  using Block = Vector<char, kBlock * sizeof(S)>;
  const Block first = get<Block>(from), last = get<Block>(from + n - kBlock);
  put(to, first);
  put(to + n - kBlock, last);
}

// Copies the first n numbers of kLanes, from or to an array of kLanes. A vector load must wait for
// single stores to the same memory. For matrices with few columns, this wait takes most of the
// time. Masked instructions avoid it; elsewhere there are few stores.
template <class S>
FUSEDSTEP_INLINE void copy_first(S* to, const S* from, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 first = __mmask16((1u << n) - 1);
  if constexpr (sizeof(S) == 4)
    return _mm512_mask_storeu_ps(to, first, _mm512_maskz_loadu_ps(first, from));
  else if constexpr (sizeof(S) == 2)
    return _mm256_mask_storeu_epi16(to, first, _mm256_maskz_loadu_epi16(first, from));
#endif
  copy_blocks<kLanes / 2>(to, from, n);
}

// Calls `function` with a cursor on arrays of kLanes numbers, of which the first n are those at `from`.
template <class S, class Function>
FUSEDSTEP_INLINE auto with_copy(const S* from, int64_t n, Function&& function) {
  S whole[kLanes] = {};
  if (from != nullptr) copy_first(whole, from, n);
  return function(static_cast<S*>(whole));
}
template <class S, class Function>
FUSEDSTEP_INLINE auto with_copy(const Beside<S>& from, int64_t n, Function&& function) {
  return with_copy(from.at, n, [&](uint16_t* at) FUSEDSTEP_LAMBDA {
    return with_copy(from.companion, n, [&](auto* companion) FUSEDSTEP_LAMBDA {
      return function(Beside<S>{at, companion});
    });
  });
}

template <class S>
FUSEDSTEP_INLINE void copy_first(const Beside<S>& to, const Beside<S>& from, int64_t n) {
  copy_first(to.at, from.at, n);
  copy_first(to.companion, from.companion, n);
}

template <class S>
Storage<S> storage_at(const S*);
template <class S>
Storage<S> storage_at(const Beside<S>&);
// The conversions of what a cursor points to.
template <class At>
using StorageAt = decltype(storage_at(std::declval<At>()));

// n stored numbers. The lanes after them are zeros, which change no sum.
template <class T, class At, class N = All>
FUSEDSTEP_INLINE Lanes<T> widen(const At& from, N n = kAll) {
  if constexpr (std::is_same_v<N, All>)
    return StorageAt<At>::template widen<T>(from);
  else
    return with_copy(from, n, [&](const auto& whole) FUSEDSTEP_LAMBDA { return widen<T>(whole); });
}

// Stores the first n numbers of x, rounded.
template <class T, class At, class N>
FUSEDSTEP_INLINE void narrow(const At& to, const Lanes<T>& x, N n, const Place& place) {
  if constexpr (std::is_same_v<N, All>)
    StorageAt<At>::narrow(to, x, place);
  else
    with_copy(At(), 0, [&](const auto& whole) FUSEDSTEP_LAMBDA {
      narrow(whole, x, kAll, place);
      copy_first(to, whole, n);
    });
}

// x with zeros in the lanes after the first n.
template <class T, class N>
FUSEDSTEP_INLINE Lanes<T> first_lanes(const Lanes<T>& x, N n) {
  if constexpr (std::is_same_v<N, All>) return x;
  T all[kLanes];
  put_lanes(all, x);
  return widen<T>(all, n);
}

// Calls `function(i, count)` for all of n numbers, kLanes at a time.
template <class Function>
FUSEDSTEP_INLINE void by_lanes(int64_t n, Function&& function) {
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) function(i, kAll);
  if (whole < n) function(whole, n - whole);
}

template <class T>
__attribute__((noinline)) void load_copy(const Stored& from, int64_t n, T* to) {
  if (from.code >= kBentInt8) return load_blocks(from, n, to);
  with_any_storage(from.code, [&](auto* type) FUSEDSTEP_LAMBDA {
    const auto stored = cursor<std::remove_const_t<std::remove_pointer_t<decltype(type)>>>(from);
    by_lanes(n, [&](int64_t i, auto count)
                    FUSEDSTEP_LAMBDA { narrow(to + i, widen<T>(stored + i, count), count, Place{}); });
  });
}

template <class T>
__attribute__((noinline)) void store_copy(const Stored& to, int64_t n, const T* x, const Place& place) {
  if (to.code >= kBentInt8) return store_blocks(to, n, x);
  with_any_storage(to.code, [&](auto* type) FUSEDSTEP_LAMBDA {
    const auto stored = cursor<std::remove_const_t<std::remove_pointer_t<decltype(type)>>>(to);
    by_lanes(n, [&](int64_t i, auto count) FUSEDSTEP_LAMBDA {
      narrow(stored + i, widen<T>(x + i, count), count, place.plus(i));
    });
  });
}

// The n numbers at `from`: in place if they have the compute type, else in `buffer`.
template <class T>
FUSEDSTEP_INLINE T* load(const Stored& from, int64_t n, T* buffer) {
  if (from.code == dtype_of<T>()) return reinterpret_cast<T*>(from.at);
  load_copy(from, n, buffer);
  return buffer;
}

// Rounds `x`, which came from `load`, and stores it back in the tensor.
template <class T>
FUSEDSTEP_INLINE void store(const Stored& to, int64_t n, const T* x, const Place& place) {
  if (reinterpret_cast<const char*>(x) != to.at) store_copy(to, n, x, place);
}

// Stores `x` and rounds it to the stored value: a step uses factored moments as they are stored.
template <class T>
FUSEDSTEP_INLINE void round_to_storage(const Stored& to, int64_t n, T* x) {
  store(to, n, x, Place{});
  if (to.code != dtype_of<T>()) load_copy(to, n, x);
}

}  // namespace
}  // namespace fusedstep
