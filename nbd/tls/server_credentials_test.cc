#include "nbd/tls/server_credentials.h"

#include <sys/resource.h>

#include <future>

#include "gtest/gtest.h"
#include "nbd/tls/test_authority.h"

namespace berth::nbd {
namespace {

class ServerCredentialsTest : public testing::Test {
 protected:
  void Open(absl::Duration interval = absl::InfiniteDuration()) {
    const ServerTlsFiles files = {.certificates = folder_.path(), .psk = "", .verify_client = true};
    auto opened = ServerCredentials::Open(files, interval, [this](const absl::Status& status) {
      changes_.push_back(status);
      if (changes_.size() == 1) first_change_.set_value();
    });
    ASSERT_TRUE(opened.ok()) << opened.status();
    credentials_ = *std::move(opened);
  }

  TestAuthority authority_;
  TestTlsFolder folder_{authority_};
  std::vector<absl::Status> changes_;
  std::promise<void> first_change_;
  std::unique_ptr<ServerCredentials> credentials_;
};

TEST_F(ServerCredentialsTest, WhatDoesNotChangeIsReadOnce) {
  Open();
  const auto before = credentials_->current();
  credentials_->Check();
  EXPECT_EQ(credentials_->current(), before);
  EXPECT_TRUE(changes_.empty());
}

TEST_F(ServerCredentialsTest, NewFilesTakeTheirPlace) {
  Open();
  const auto before = credentials_->current();
  folder_.WriteServer(authority_.Issue());
  credentials_->Check();
  EXPECT_NE(credentials_->current(), before);
  ASSERT_EQ(changes_.size(), 1u);
  EXPECT_TRUE(changes_[0].ok()) << changes_[0];
  // A list of revoked certificates where there was none, and its end.
  for (int i = 0; i < 2; ++i) {
    const auto last = credentials_->current();
    if (i == 0) folder_.Write("ca-crl.pem", authority_.RevocationList({1}));
    if (i == 1) folder_.Remove("ca-crl.pem");
    credentials_->Check();
    EXPECT_NE(credentials_->current(), last);
  }
}

TEST_F(ServerCredentialsTest, BrokenFilesChangeNothingAndAreToldOnce) {
  Open();
  const auto before = credentials_->current();
  const TestAuthority::Issued next = authority_.Issue();
  folder_.Write("server-key.pem", next.key);
  credentials_->Check();
  credentials_->Check();
  EXPECT_EQ(credentials_->current(), before);
  ASSERT_EQ(changes_.size(), 1u);
  EXPECT_EQ(changes_[0].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(changes_[0].message().find("server-key.pem: this is not the key"), absl::string_view::npos)
      << changes_[0];
  // The other half of what belongs together.
  folder_.Write("server-cert.pem", next.certificate);
  credentials_->Check();
  EXPECT_NE(credentials_->current(), before);
  ASSERT_EQ(changes_.size(), 2u);
  EXPECT_TRUE(changes_[1].ok()) << changes_[1];
  folder_.Remove("server-cert.pem");
  const auto last = credentials_->current();
  credentials_->Check();
  EXPECT_EQ(credentials_->current(), last);
  EXPECT_EQ(changes_.back().code(), absl::StatusCode::kNotFound);
}

// As a certificate whose time has not come: the files are good later, and do not change any more.
TEST_F(ServerCredentialsTest, FilesThatCannotBeUsedAreTriedAgain) {
  Open();
  const auto before = credentials_->current();
  folder_.WriteServer(authority_.Issue());
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  credentials_->Check();
  credentials_->Check();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_EQ(changes_.size(), 1u);
  EXPECT_FALSE(changes_[0].ok());
  EXPECT_EQ(credentials_->current(), before);
  credentials_->Check();
  ASSERT_EQ(changes_.size(), 2u);
  EXPECT_TRUE(changes_[1].ok()) << changes_[1];
  EXPECT_NE(credentials_->current(), before);
}

TEST_F(ServerCredentialsTest, AThreadLooksByItself) {
  Open(absl::Milliseconds(1));
  const auto before = credentials_->current();
  folder_.Write("ca-crl.pem", authority_.RevocationList({1}));
  ASSERT_EQ(first_change_.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_NE(credentials_->current(), before);
  credentials_.reset();
}

TEST_F(ServerCredentialsTest, WhatCannotBeReadAtFirstIsAnError) {
  folder_.Remove("server-key.pem");
  const auto opened = ServerCredentials::Open({.certificates = folder_.path(), .psk = ""},
                                              absl::InfiniteDuration(), [](const absl::Status&) {});
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace berth::nbd
