// What the standalone tests of csrc/sim are written with.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace leeboard::sim::test {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int add_test(const char* name, void (*body)()) {
  tests().push_back({name, body});
  return 0;
}

// What a test is about right now, for its failure.
inline thread_local std::string context;

[[noreturn]] inline void fail(const char* file, int line, const char* text) {
  std::fprintf(stderr, "%s:%d: not true: %s [%s]\n", file, line, text, context.c_str());
  std::_Exit(1);
}

}  // namespace leeboard::sim::test

// The tests in queue_test.cpp have names that begin with queue_: so CTest finds them.
#define LEEBOARD_TEST(name)                                                                    \
  static void name();                                                                          \
  [[maybe_unused]] static const int name##_added = leeboard::sim::test::add_test(#name, name); \
  static void name()

#define CHECK(condition) \
  ((condition) ? void() : leeboard::sim::test::fail(__FILE__, __LINE__, #condition))
