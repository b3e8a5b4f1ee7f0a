// What CUDA sources find under this name when g++ compiles them for the simulator.
#pragma once

#include "sim/device.h"
#include "sim/host.h"
#include "sim/vectors.h"
