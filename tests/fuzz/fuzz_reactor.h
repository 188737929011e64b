// The reactor of fuzz targets whose code lives on one.
#ifndef BERTH_TESTS_FUZZ_FUZZ_REACTOR_H_
#define BERTH_TESTS_FUZZ_FUZZ_REACTOR_H_

#include <utility>

#include "image/io/reactor_pool.h"
#include "tests/fuzz/require.h"

namespace berth {

// Runs on a thread of its own from the first call on, for all inputs, and is never destroyed: a fuzzer ends
// in the middle of whatever it does.
inline Reactor& FuzzReactor() {
  static ReactorPool* const pool = [] {
    auto created = ReactorPool::Create(1);
    Require(created.ok(), "no io_uring");
    return std::move(created)->release();
  }();
  return pool->at(0);
}

}  // namespace berth

#endif  // BERTH_TESTS_FUZZ_FUZZ_REACTOR_H_
