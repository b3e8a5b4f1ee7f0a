// Reads and writes stored numbers: kLanes at a time, a pair of registers or fewer (`widen`, `narrow`),
// or short runs through a buffer, for loops that take any mix of dtypes (`load`, `store`).
#pragma once

#include "blocks.h"
#include "masters.h"

namespace fusedstep {
namespace {

// How many numbers of its lanes a function takes: all, known to the compiler, or the first few.
struct All {};
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

// Copies the first `count` numbers of n, from or to an array of n. A vector load must wait for
// single stores to the same memory. For matrices with few columns, this wait takes most of the
// time. Masked instructions avoid it; elsewhere there are few stores.
template <int n, class S>
FUSEDSTEP_INLINE void copy_first(S* to, const S* from, int64_t count) {
#if defined(__AVX512BW__)
  const uint32_t first = (1u << count) - 1;
  if constexpr (sizeof(S) == 4 && n == 16)
    return _mm512_mask_storeu_ps(to, __mmask16(first), _mm512_maskz_loadu_ps(__mmask16(first), from));
  else if constexpr (sizeof(S) == 2)
    return _mm512_mask_storeu_epi16(to, first, _mm512_maskz_loadu_epi16(first, from));
#endif
  copy_blocks<n / 2>(to, from, count);
}

// Calls `function` with a cursor on arrays of n numbers, of which the first `count` are those at
// `from`.
template <int n, class S, class Function>
FUSEDSTEP_INLINE auto with_copy(const S* from, int64_t count, Function&& function) {
  S whole[n] = {};
  if (from != nullptr) copy_first<n>(whole, from, count);
  return function(static_cast<S*>(whole));
}
template <int n, class S, class Function>
FUSEDSTEP_INLINE auto with_copy(const Beside<S>& from, int64_t count, Function&& function) {
  return with_copy<n>(from.at, count, [&](uint16_t* at) FUSEDSTEP_LAMBDA {
    return with_copy<n>(from.companion, count, [&](auto* companion) FUSEDSTEP_LAMBDA {
      return function(Beside<S>{at, companion});
    });
  });
}

template <int n, class S>
FUSEDSTEP_INLINE void copy_first(const Beside<S>& to, const Beside<S>& from, int64_t count) {
  copy_first<n>(to.at, from.at, count);
  copy_first<n>(to.companion, from.companion, count);
}

template <class S>
Storage<S> storage_at(const S*);
template <class S>
Storage<S> storage_at(const Beside<S>&);
// The conversions of what a cursor points to.
template <class At>
using StorageAt = decltype(storage_at(std::declval<At>()));

// `count` stored numbers in n lanes. The lanes after them are zeros, which change no sum.
template <class T, int n = kLanes, class At, class Count = All>
FUSEDSTEP_INLINE Lanes<T, n> widen(const At& from, Count count = kAll) {
  if constexpr (std::is_same_v<Count, All>)
    return StorageAt<At>::template widen<T, n>(from);
  else
    return with_copy<n>(from, count,
                        [&](const auto& whole) FUSEDSTEP_LAMBDA { return widen<T, n>(whole); });
}

// Stores the first `count` numbers of x, rounded.
template <class T, int n, class At, class Count>
FUSEDSTEP_INLINE void narrow(const At& to, const Lanes<T, n>& x, Count count, const Place& place) {
  if constexpr (std::is_same_v<Count, All>)
    StorageAt<At>::narrow(to, x, place);
  else
    with_copy<n>(At(), 0, [&](const auto& whole) FUSEDSTEP_LAMBDA {
      narrow(whole, x, kAll, place);
      copy_first<n>(to, whole, count);
    });
}

// x with zeros in the lanes after the first `count`.
template <class T, int n, class Count>
FUSEDSTEP_INLINE Lanes<T, n> first_lanes(const Lanes<T, n>& x, Count count) {
  if constexpr (std::is_same_v<Count, All>) return x;
  T all[n];
  put_lanes(all, x);
  return widen<T, n>(all, count);
}

// Calls `function(i, count)` for all of n numbers, `lanes` at a time.
template <int lanes = kLanes, class Function>
FUSEDSTEP_INLINE void by_lanes(int64_t n, Function&& function) {
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) function(i, kAll);
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
