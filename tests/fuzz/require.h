// What a fuzz target says of what must hold.
#ifndef BERTH_TESTS_FUZZ_REQUIRE_H_
#define BERTH_TESTS_FUZZ_REQUIRE_H_

#include <cstdio>
#include <cstdlib>

namespace berth {

// Ends the process where `condition` does not hold: the fuzzer keeps the input that did it.
inline void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

}  // namespace berth

#endif  // BERTH_TESTS_FUZZ_REQUIRE_H_
