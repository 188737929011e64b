// Exports of encrypted images: where their secrets come from, and what is never kept of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "control/control_fixture.h"
#include "control/status_details.h"
#include "control/validation.h"
#include "image/luks/luks_image.h"
#include "image/secret/secret.h"

namespace berth::control {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kValue[] = "correct horse battery staple";

class ExportSecretTest : public ControlFixture {
 protected:
  void SetUp() override {
    luks::CreateOptions options;
    options.iteration_time = luks::kMinIterationTime;
    const auto header = luks::MakeHeader(options, *Secret::FromBytes(kValue));
    ASSERT_TRUE(header.ok()) << header.status();
    std::string image(header->begin(), header->end());
    image.resize(image.size() + (1 << 20));
    Write(image_, image);
    std::filesystem::create_directory(directory() + "/secrets");
    Write(directory() + "/secrets/key", kValue);
    Write(directory() + "/outside", kValue);
    export_options_.secret_roots = *ImageRoots::Within({directory() + "/secrets"});
    Start();
  }

  static void Write(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
  }

  v1::ExportSpec Spec() const {
    v1::ExportSpec spec;
    spec.mutable_image()->set_format(v1::IMAGE_FORMAT_LUKS);
    spec.mutable_image()->set_path(image_);
    return spec;
  }
  v1::ExportSpec WithValue(const std::string& value = kValue) const {
    v1::ExportSpec spec = Spec();
    spec.mutable_image()->mutable_secret()->set_value(value);
    return spec;
  }
  v1::ExportSpec WithFile(const std::string& path) const {
    v1::ExportSpec spec = Spec();
    spec.mutable_image()->mutable_secret()->set_file(path);
    return spec;
  }

  // Everything that is in the state directory.
  std::string State() const {
    std::string all;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(state_directory())) {
      if (!entry.is_regular_file()) continue;
      std::stringstream content;
      content << std::ifstream(entry.path()).rdbuf();
      all += content.str();
    }
    return all;
  }

  const std::string image_ = directory() + "/disk.luks";
};

TEST_F(ExportSecretTest, AValueIsUsedAndNowhereAfterwards) {
  const auto made = exports().Create("disk", WithValue(), Soon());
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->size_bytes(), 1u << 20);
  EXPECT_TRUE(made->spec().image().secret().given_by_value());
  for (const std::string& text :
       {made->ShortDebugString(), exports().Get("disk")->ShortDebugString(), State()}) {
    EXPECT_THAT(text, Not(HasSubstr(kValue)));
    EXPECT_THAT(text, Not(HasSubstr(absl::Base64Escape(kValue))));
  }
  // The same request, and what a client makes of an answer.
  EXPECT_TRUE(CreateExport("disk", WithValue()).ok());
  EXPECT_TRUE(CreateExport("disk", made->spec()).ok());
  // The error tells of the difference and not of the value.
  const absl::Status other = CreateExport("disk", WithFile(directory() + "/secrets/key"));
  EXPECT_EQ(other.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(other.message()), HasSubstr("secret"));
}

TEST_F(ExportSecretTest, AfterARestartAValueIsNeededAgain) {
  ASSERT_TRUE(CreateExport("disk", WithValue()).ok());
  Restart();
  const auto closed = exports().Get("disk");
  ASSERT_TRUE(closed.ok());
  EXPECT_THAT(closed->error(), HasSubstr("send the same request again with the secret in it"));
  EXPECT_EQ(exports().Find("disk"), nullptr);
  const absl::Status without = CreateExport("disk", closed->spec());
  EXPECT_EQ(without.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(without), "SECRET_NEEDED");
  const absl::Status wrong = CreateExport("disk", WithValue("wrong"));
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(wrong), "WRONG_SECRET");
  const auto again = exports().Create("disk", WithValue(), Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->error(), "");
  EXPECT_NE(exports().Find("disk"), nullptr);
}

TEST_F(ExportSecretTest, AFileIsReadAgainAfterARestart) {
  ASSERT_TRUE(CreateExport("disk", WithFile(directory() + "/secrets/key")).ok());
  EXPECT_THAT(State(), HasSubstr("/secrets/key"));
  EXPECT_THAT(State(), Not(HasSubstr(kValue)));
  Restart();
  EXPECT_EQ(exports().Get("disk")->error(), "");
  // Without it the export is there, and says what it lacks.
  Stop();
  std::filesystem::remove(directory() + "/secrets/key");
  Start();
  EXPECT_THAT(exports().Get("disk")->error(), HasSubstr("/secrets/key"));
}

TEST_F(ExportSecretTest, WhatOpensNothingMakesNoExport) {
  const absl::Status outside = CreateExport("disk", WithFile(directory() + "/outside"));
  EXPECT_EQ(outside.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(outside), "OUTSIDE_SECRET_ROOTS");
  EXPECT_EQ(ReasonOf(CreateExport("disk", Spec())), "SECRET_NEEDED");
  EXPECT_EQ(ReasonOf(CreateExport("disk", WithValue("wrong"))), "WRONG_SECRET");
  EXPECT_EQ(CreateExport("disk", WithFile(directory() + "/secrets/none")).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(exports().Get("disk").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ExportSecretTest, FieldsAreChecked) {
  const auto check = [](const v1::ExportSpec& spec) { return std::string(CheckExportSpec(spec).message()); };
  EXPECT_EQ(check(WithValue()), "");
  EXPECT_THAT(check(WithValue("")), HasSubstr("has 0 bytes"));
  EXPECT_THAT(check(WithValue(std::string(kMaxSecretBytes + 1, 'x'))), HasSubstr("has 65537 bytes"));
  EXPECT_THAT(check(WithFile("key")), HasSubstr("not an absolute path"));
  v1::ExportSpec raw = WithValue();
  raw.mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  EXPECT_THAT(check(raw), HasSubstr("only LUKS and QCOW2 images are encrypted"));
}

}  // namespace
}  // namespace berth::control
