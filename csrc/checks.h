// Checks of numbers that come from Python. They throw std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusedstep {

// Under FakeTensorMode, tables are fake tensors without an address.
void require(int64_t table);

// A code of storage below `known`.
void require_code(int64_t dtype, size_t known);

// A bucket that the CPU walkers can read.
void require_known(int64_t rule, bool vectors, const std::vector<int64_t>& dtypes,
                   const std::vector<int64_t>& companions, int64_t fields, bool has_noise);

}  // namespace fusedstep
