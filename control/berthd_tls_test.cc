// TLS for NBD clients, as berthd is told of it: flags, rules on exports, files that change while it runs.
#include <grpcpp/grpcpp.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "control/berthd_process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nbd/tls/test_authority.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

class BerthdTlsTest : public testing::Test {
 protected:
  bool Start(std::vector<std::string> flags) {
    flags.push_back("--tls-certificates=" + folder_.path());
    return berthd_.Start(flags);
  }
  grpc::Status Create(const std::string& name, bool require_tls, const std::vector<std::string>& rules) {
    v1::CreateExportRequest request;
    request.set_name(name);
    request.mutable_spec()->mutable_image()->set_format(v1::IMAGE_FORMAT_NULL);
    request.mutable_spec()->mutable_image()->set_size_bytes(1 << 20);
    request.mutable_spec()->set_require_tls(require_tls);
    request.mutable_spec()->mutable_allowed_clients()->Assign(rules.begin(), rules.end());
    grpc::ClientContext context;
    SetDeadline(context);
    v1::Export made;
    return v1::ExportService::NewStub(berthd_.channel())->CreateExport(&context, request, &made);
  }
  grpc::Status SetRules(const std::string& name, const std::vector<std::string>& rules) {
    v1::UpdateExportRequest request;
    request.set_name(name);
    request.mutable_update_mask()->add_paths("allowed_clients");
    request.mutable_allowed_clients()->Assign(rules.begin(), rules.end());
    grpc::ClientContext context;
    SetDeadline(context);
    v1::Export changed;
    return v1::ExportService::NewStub(berthd_.channel())->UpdateExport(&context, request, &changed);
  }
  static void SetDeadline(grpc::ClientContext& context) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  }

  ProcessResult InClear(const std::string& name) {
    return RunProcess({"/usr/bin/nbdinfo", berthd_.Uri(name)});
  }
  ProcessResult UnderTls(const std::string& name, const std::string& folder) {
    return RunProcess({"/usr/bin/nbdinfo",
                       absl::StrCat("nbds", berthd_.Uri(name).substr(3), "&tls-certificates=", folder)});
  }
  bool WaitForLog(const std::string& text) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!absl::StrContains(berthd_.log(), text)) {
      if (absl::Now() > deadline) return false;
      absl::SleepFor(absl::Milliseconds(20));
    }
    return true;
  }

  nbd::TestAuthority authority_;
  nbd::TestTlsFolder folder_{authority_};
  BerthdProcess berthd_;
};

TEST_F(BerthdTlsTest, RequiredOfEverybody) {
  ASSERT_TRUE(Start({"--tls=require", "--tls-verify-client", "--tls-allow-client=dn:CN=agent,O=Example"}));
  ASSERT_TRUE(Create("disk", false, {}).ok());
  EXPECT_NE(InClear("disk").exit_code, 0);
  const ProcessResult served = UnderTls("disk", folder_.path());
  EXPECT_EQ(served.exit_code, 0) << served.output;
  EXPECT_THAT(served.output, HasSubstr("with TLS"));
  // Another name of the same authority.
  nbd::TestTlsFolder other(authority_);
  other.WriteClient(authority_.Issue());
  EXPECT_NE(UnderTls("disk", other.path()).exit_code, 0);
  EXPECT_EQ(berthd_.Stop(), 0);
}

TEST_F(BerthdTlsTest, RulesOfAnExportAndTheirChange) {
  ASSERT_TRUE(Start({"--tls=allow", "--tls-verify-client"}));
  ASSERT_TRUE(Create("open", false, {}).ok());
  ASSERT_TRUE(Create("vault", true, {"dn:CN=agent,**"}).ok());
  EXPECT_EQ(InClear("open").exit_code, 0);
  EXPECT_NE(InClear("vault").exit_code, 0);
  const ProcessResult served = UnderTls("vault", folder_.path());
  EXPECT_EQ(served.exit_code, 0) << served.output;
  ASSERT_TRUE(SetRules("vault", {"psk:nobody"}).ok());
  EXPECT_NE(UnderTls("vault", folder_.path()).exit_code, 0);
  // Kept over a restart.
  EXPECT_EQ(berthd_.Stop(), 0);
  ASSERT_TRUE(Start({"--tls=allow", "--tls-verify-client"}));
  EXPECT_NE(UnderTls("vault", folder_.path()).exit_code, 0);
  EXPECT_NE(InClear("vault").exit_code, 0);
  ASSERT_TRUE(SetRules("vault", {}).ok());
  EXPECT_EQ(UnderTls("vault", folder_.path()).exit_code, 0);

  const grpc::Status wrong = Create("wrong", false, {"CN=agent"});
  EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(wrong.error_message(), HasSubstr("spec.allowed_clients: rule 'CN=agent' is none"));
}

TEST_F(BerthdTlsTest, FilesAreReadAgainWhenTheyChange) {
  ASSERT_TRUE(Start({"--tls=require", "--tls-verify-client"}));
  ASSERT_TRUE(Create("disk", false, {}).ok());
  nbd::TestAuthority next("Next");
  nbd::TestTlsFolder client(next);
  EXPECT_NE(UnderTls("disk", client.path()).exit_code, 0);
  folder_.Write("ca-cert.pem", next.certificate());
  EXPECT_TRUE(WaitForLog("TLS credentials read again"));
  const ProcessResult served = UnderTls("disk", client.path());
  EXPECT_EQ(served.exit_code, 0) << served.output;
  // What cannot be used changes nothing.
  folder_.Write("server-cert.pem", "nonsense");
  EXPECT_TRUE(WaitForLog("new TLS credentials cannot be used, the old ones stay"));
  EXPECT_THAT(berthd_.log(), HasSubstr("server-cert.pem: there is no PEM certificate in it"));
  EXPECT_EQ(UnderTls("disk", client.path()).exit_code, 0);
}

TEST_F(BerthdTlsTest, FlagsThatDoNotFit) {
  const struct {
    std::vector<std::string> flags;
    int exit_code;
    std::string reason;
  } kCases[] = {
      {{"--tls=require"}, 2, "--tls: needs --tls-certificates=DIR, --tls-psk=FILE, or both"},
      {{"--tls=sometimes"}, 2, "--tls: sometimes not in"},
      {{"--tls-psk=/etc/berth/keys.psk"}, 2, "TLS is off"},
      {{"--tls=require", "--tls-psk=/x", "--tls-verify-client"},
       2,
       "--tls-verify-client: needs --tls-certificates"},
      {{"--tls-allow-client=agent"}, 2, "--tls-allow-client: rule 'agent' is none"},
      {{"--tls=require", "--tls-certificates=/nonexistent"},
       1,
       "--tls: /nonexistent/server-cert.pem: No such file"},
      {{"--max-connections-per-address=0"}, 2, "--max-connections-per-address"},
  };
  for (const auto& test : kCases) {
    std::vector<std::string> command = {BerthdPath(), "--listen=unix:" + berthd_.directory() + "/rpc.sock",
                                        "--state-dir=" + berthd_.directory() + "/state"};
    command.insert(command.end(), test.flags.begin(), test.flags.end());
    const ProcessResult result = RunProcess(command);
    EXPECT_EQ(result.exit_code, test.exit_code) << result.output;
    EXPECT_THAT(result.output, HasSubstr(test.reason));
  }
}

}  // namespace
}  // namespace berth::control
