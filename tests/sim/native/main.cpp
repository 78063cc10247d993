// sim_native_test [PREFIX]: runs the tests whose names begin so.
#include <chrono>
#include <cstdio>
#include <string_view>

#include "check.h"

int main(int argc, char** argv) {
  const std::string_view prefix = argc > 1 ? argv[1] : "";
  int run = 0;
  for (const auto& test : leeboard::sim::test::tests()) {
    if (!std::string_view(test.name).starts_with(prefix)) continue;
    const auto start = std::chrono::steady_clock::now();
    leeboard::sim::test::context.clear();
    test.body();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%s: %.2f s\n", test.name, took.count());
    ++run;
  }
  std::printf("%d passed\n", run);
  return run > 0 ? 0 : 1;
}
