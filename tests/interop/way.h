// Way: how a client reaches a server.
#ifndef BERTH_TESTS_INTEROP_WAY_H_
#define BERTH_TESTS_INTEROP_WAY_H_

#include <string>

#include "gtest/gtest.h"

namespace berth::testing {

enum class Way { kUnix, kIpv4, kIpv6 };

inline std::string WayName(const ::testing::TestParamInfo<Way>& info) {
  return info.param == Way::kUnix ? "Unix" : info.param == Way::kIpv4 ? "Ipv4" : "Ipv6";
}

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_WAY_H_
