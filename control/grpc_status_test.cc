#include "control/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

#include "control/status_details.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace berth::control {
namespace {

// As a client reads it, with all of its details.
google::rpc::Status Parsed(const grpc::Status& status) {
  google::rpc::Status parsed;
  EXPECT_TRUE(parsed.ParseFromString(status.error_details()));
  EXPECT_EQ(parsed.message(), status.error_message());
  return parsed;
}

template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  Detail detail;
  bool found = false;
  const google::rpc::Status parsed = Parsed(status);
  for (const auto& any : parsed.details()) found = found || any.UnpackTo(&detail);
  EXPECT_TRUE(found) << Detail::descriptor()->full_name();
  return detail;
}

// What clients choose, in each place of an error.
TEST(GrpcStatusTest, AnyBytesArriveAsText) {
  for (const std::string& text :
       {std::string("/\xff\xfe"), "/" + std::string(4094, '\xff'), "/x" + std::string(4000, '\xc3'), [] {
          std::string umlauts = "/x";
          for (int i = 0; i < 2000; ++i) umlauts += "ä";
          return umlauts;
        }()}) {
    EXPECT_FALSE(DetailOf<google::rpc::BadRequest>(ToGrpcStatus(InvalidField("path", text)))
                     .field_violations(0)
                     .description()
                     .empty());
    DetailOf<google::rpc::ResourceInfo>(ToGrpcStatus(MissingResource("image", text, text)));
    DetailOf<google::rpc::ResourceInfo>(ToGrpcStatus(ExistingResource("image", text, text)));
    const grpc::Status failed = ToGrpcStatus(FailedCondition("IMAGE_LOCKED", text, text));
    EXPECT_EQ(DetailOf<google::rpc::PreconditionFailure>(failed).violations(0).type(), "IMAGE_LOCKED");
    EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(failed).reason(), "IMAGE_LOCKED");
    // Percent-encoded and in base64, both fit into the 8 KiB that a client accepts.
    EXPECT_LE(3 * failed.error_message().size() + 4 * failed.error_details().size() / 3, 8000u);
  }
}

TEST(GrpcStatusTest, EveryErrorHasAReason) {
  const grpc::Status status = ToGrpcStatus(absl::UnavailableError("the kernel said no"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "FAILED");
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

}  // namespace
}  // namespace berth::control
