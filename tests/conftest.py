"""Settings that must be made before torch is loaded."""

import os

# A test run may share its cores: threads that wait by spinning would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
