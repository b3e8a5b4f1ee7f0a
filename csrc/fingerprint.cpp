// The hash of the rules that the module was built from. Every edit of a rule recompiles this file.
#include "rules/fingerprint.h"

#include "plan.h"

namespace fusedstep {

const char* fingerprint() { return kFingerprint; }

}  // namespace fusedstep
