// The instruction sets that kernels are compiled for, and those that this processor supports.
#pragma once

#include <string_view>
#include <vector>

#include "kernels.h"

namespace rushlight {

// The kernels that can run on this processor, the fastest first. Never empty: the portable ones are last.
std::vector<const Kernels*> available_kernels();

// Whether `name` is the name of an instruction set, on any processor.
bool is_instruction_set(std::string_view name);

}  // namespace rushlight
