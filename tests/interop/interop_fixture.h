// InteropTest: a server, and the ways to reach it.
#ifndef BERTH_TESTS_INTEROP_INTEROP_FIXTURE_H_
#define BERTH_TESTS_INTEROP_INTEROP_FIXTURE_H_

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/fixture/test_server.h"
#include "tests/interop/program.h"
#include "tests/interop/way.h"

namespace berth::testing {

class InteropTest : public ::testing::TestWithParam<Way> {
 protected:
  void Start(const TestServerOptions& options = {}) {
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (GetParam() == Way::kIpv6) {
      ASSERT_NE(server_->ipv6_port(), 0) << "this machine has no IPv6";
    }
  }

  std::string Uri() const {
    switch (GetParam()) {
      case Way::kUnix:
        return server_->uri();
      case Way::kIpv4:
        return server_->ipv4_uri();
      case Way::kIpv6:
        return server_->ipv6_uri();
    }
    return "";
  }
  // Of a file beside the image.
  std::string Path(const std::string& name) const { return server_->folder() + "/" + name; }

  // Runs a program that must succeed; returns what it printed.
  static std::string Run(const std::vector<std::string>& arguments, int seconds = 60) {
    return RunToSuccess(arguments, seconds);
  }

  std::unique_ptr<TestServer> server_;
};

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_INTEROP_FIXTURE_H_
