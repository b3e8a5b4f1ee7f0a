// Checks of numbers that come from Python, because the walkers check none.
#include "checks.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

#include "plan.h"
#include "rules/facts.h"
#include "rules/layout.h"

namespace fusedstep {

void require(int64_t table) {
  if (table == 0) throw std::invalid_argument("no step can be taken under torch's FakeTensorMode");
}

void require_code(int64_t dtype, size_t known) {
  if (dtype < 0 || dtype >= int64_t(known))
    throw std::invalid_argument("the CPU walkers know no storage dtype of code " +
                                std::to_string(dtype));
}

void require_known(int64_t rule, bool vectors, const std::vector<int64_t>& dtypes,
                   const std::vector<int64_t>& companions, int64_t fields, bool has_noise) {
  auto refuse = [](const std::string& what, int64_t found, int64_t expected) {
    throw std::invalid_argument(what + " is " + std::to_string(found) + ", expected " +
                                std::to_string(expected));
  };
  if (rule < 0 || rule >= kRuleCount)
    throw std::invalid_argument("no rule has the number " + std::to_string(rule) + ": they end at " +
                                std::to_string(kRuleCount - 1));
  const RuleFacts& facts = kRules[rule];
  if (vectors && !facts.factored)
    throw std::invalid_argument(std::string(facts.name) + " takes vectors like any other tensors");
  int slots = ElementwiseRow::kStates, sizes = ElementwiseRow::kSizes;
  if (facts.factored) {
    slots = vectors ? VectorRow::kMomentum : MatrixRow::kMomentum;
    sizes = vectors ? VectorRow::kSizes : MatrixRow::kSizes;
  }
  slots += facts.states;
  const std::string of_rule = std::string(" of a tensor of ") + facts.name;
  if (slots > kMaxSlots) refuse("the number of slots" + of_rule, slots, kMaxSlots);
  if (int64_t(dtypes.size()) != slots) refuse("the number of dtypes" + of_rule, dtypes.size(), slots);
  for (int64_t dtype : dtypes) require_code(dtype, std::size(kItemBytes));
  if (dtypes[ElementwiseRow::kG] > kFloat64)
    throw std::invalid_argument("the gradient is stored in the code " +
                                std::to_string(dtypes[ElementwiseRow::kG]) +
                                ", and should be in a dtype");
  if (companions.size() != dtypes.size())
    refuse("the number of companions" + of_rule, companions.size(), dtypes.size());
  int64_t tensors = slots;
  for (size_t k = 0; k < dtypes.size(); ++k) tensors += kCompanionBytes[dtypes[k]] > 0;
  if (fields != tensors + sizes)
    refuse("the length of a table's row" + of_rule, fields, tensors + sizes);
  for (size_t k = 0; k < dtypes.size(); ++k)
    if (kCompanionBytes[dtypes[k]] > 0 ? companions[k] < slots || companions[k] >= tensors
                                       : companions[k] != 0)
      throw std::invalid_argument("the companion of slot " + std::to_string(k) + of_rule +
                                  " cannot be at place " + std::to_string(companions[k]));
  if (!has_noise && std::count(dtypes.begin(), dtypes.end(), kNoisyBfloat16) > 0)
    throw std::invalid_argument("a slot is rounded by noise, but has no rows of it");
}

}  // namespace fusedstep
