// What the module was built from. A file of its own, as it changes with every edit of a rule.
#include "rules/fingerprint.h"

#include "plan.h"

namespace fusedstep {

const char* fingerprint() { return kFingerprint; }

}  // namespace fusedstep
