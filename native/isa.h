// The instruction sets that kernels were compiled for, and which of them this processor has.
#pragma once

#include <string_view>
#include <vector>

#include "kernels.h"

namespace rushlight {

// Those that can run here, the fastest first. Never empty: the portable one is last.
std::vector<const Kernels*> available_kernels();

// Whether `name` is the name of an instruction set at all, here or elsewhere.
bool is_instruction_set(std::string_view name);

}  // namespace rushlight
