// Bytes that the program holds, by a count in operator new and delete.
#pragma once

#include <cstddef>

namespace leeboard::sim::test {

size_t allocated();

}  // namespace leeboard::sim::test
