// CUDA sources include this file in place of CUDA's own when g++ compiles them for the simulator.
#pragma once

#include "sim/device.h"
#include "sim/host.h"
#include "sim/vectors.h"
