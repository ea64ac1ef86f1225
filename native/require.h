// Argument checks.
#pragma once

#include <sstream>
#include <stdexcept>

namespace rushlight {

// Throws std::invalid_argument with the concatenated parts of a message unless the condition holds.
template <class... Parts>
void require(bool holds, const Parts&... message) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::invalid_argument(text.str());
}

}  // namespace rushlight
