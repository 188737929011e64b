// berthd as a process: how it starts, serves, restarts and stops.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/berthd_process.h"
#include "tests/hostile/byte_client.h"

namespace berth::control {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint64_t kSize = 8 << 20;

void CreateDisk(BerthdProcess& berthd) {
  grpc::Status status = berthd.CreateRawImage("disk.raw", kSize);
  ASSERT_TRUE(status.ok()) << status.error_message();
  status = berthd.CreateRawExport("disk", "disk.raw");
  ASSERT_TRUE(status.ok()) << status.error_message();
}

TEST(BerthdTest, ServesNbdClientsAndComesBackAfterARestart) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  CreateDisk(berthd);
  ProcessResult info = RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("disk")});
  EXPECT_EQ(info.exit_code, 0) << info.output;
  EXPECT_EQ(info.output, absl::StrCat(kSize, "\n"));
  const ProcessResult written = RunProcess(
      {"/usr/bin/qemu-io", "-f", "raw", "-c", "write -P 0x61 4096 4096", "-c", "flush", berthd.Uri("disk")});
  EXPECT_EQ(written.exit_code, 0) << written.output;
  EXPECT_EQ(berthd.Stop(), 0);

  ASSERT_TRUE(berthd.Start());
  const ProcessResult read =
      RunProcess({"/usr/bin/qemu-io", "-f", "raw", "-r", "-c", "read -P 0x61 4096 4096", berthd.Uri("disk")});
  EXPECT_EQ(read.exit_code, 0) << read.output;
  EXPECT_EQ(berthd.Stop(SIGINT), 0);
  EXPECT_THAT(berthd.log(), HasSubstr("INFO ready"));
  EXPECT_THAT(berthd.log(), HasSubstr("INFO stopped"));
  EXPECT_NE(access(berthd.rpc_path().c_str(), F_OK), 0);
}

// Exports come and go, and the only one today may be another one tomorrow.
TEST(BerthdTest, TheEmptyNameIsNoExport) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  CreateDisk(berthd);
  const ProcessResult info = RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("")});
  EXPECT_NE(info.exit_code, 0) << info.output;
  EXPECT_EQ(RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("disk")}).exit_code, 0);
}

TEST(BerthdTest, ClientsKeepToBlockSizesAndResizeWhereTheyMay) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  CreateDisk(berthd);
  const auto stub = v1::ExportService::NewStub(berthd.channel());
  v1::UpdateExportRequest update;
  update.set_name("disk");
  update.mutable_update_mask()->add_paths("block_sizes");
  update.mutable_block_sizes()->set_minimum_bytes(4096);
  update.mutable_block_sizes()->set_preferred_bytes(65536);
  update.mutable_block_sizes()->set_must_be_asked_for(true);
  update.mutable_update_mask()->add_paths("client_resize");
  update.set_client_resize(true);
  const auto change = [&] {
    grpc::ClientContext context;
    v1::Export changed;
    return stub->UpdateExport(&context, update, &changed);
  };
  grpc::Status status = change();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const ProcessResult info = RunProcess({"/usr/bin/nbdinfo", "--no-content", berthd.Uri("disk")});
  EXPECT_EQ(info.exit_code, 0) << info.output;
  EXPECT_THAT(info.output, HasSubstr("block_size_minimum: 4096"));
  EXPECT_THAT(info.output, HasSubstr("block_size_preferred: 65536"));
  // One that does not ask.
  testing::ByteClient ignorant(berthd.directory() + "/nbd.sock");
  ASSERT_TRUE(ignorant.Greet());
  const std::string name = "disk";
  EXPECT_EQ(ignorant.Ask(testing::kOptGo, testing::U32(4) + name + testing::U16(0)).type, 0x80000008u);

  update.mutable_block_sizes()->clear_must_be_asked_for();
  update.mutable_block_sizes()->clear_minimum_bytes();
  ASSERT_TRUE(change().ok());
  testing::ByteClient client(berthd.directory() + "/nbd.sock");
  ASSERT_TRUE(client.Enter());
  ASSERT_TRUE(client.Send(testing::Request(8, 2 * kSize, 0)));
  EXPECT_EQ(client.Receive(16), testing::U32(0x67446698) + testing::U32(0) + testing::U64(1));
  EXPECT_EQ(RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("disk")}).output,
            absl::StrCat(2 * kSize, "\n"));
  struct stat file;
  ASSERT_EQ(stat((berthd.directory() + "/disk.raw").c_str(), &file), 0);
  EXPECT_EQ(static_cast<uint64_t>(file.st_size), 2 * kSize);
  // Not any more, though it is connected still.
  update.set_client_resize(false);
  ASSERT_TRUE(change().ok());
  ASSERT_TRUE(client.Send(testing::Request(8, kSize, 0)));
  EXPECT_EQ(client.Receive(16), testing::U32(0x67446698) + testing::U32(EPERM) + testing::U64(1));
}

TEST(BerthdTest, AKilledServerStartsAgain) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  CreateDisk(berthd);
  EXPECT_EQ(berthd.Stop(SIGKILL), 128 + SIGKILL);
  ASSERT_TRUE(berthd.Start());
  EXPECT_EQ(RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("disk")}).output, absl::StrCat(kSize, "\n"));
}

TEST(BerthdTest, AnImageThatIsGoneIsSaidAndDoesNotStopTheOthers) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  CreateDisk(berthd);
  ASSERT_TRUE(berthd.CreateRawImage("other.raw", kSize).ok());
  ASSERT_TRUE(berthd.CreateRawExport("other", "other.raw").ok());
  EXPECT_EQ(berthd.Stop(), 0);
  ASSERT_EQ(unlink((berthd.directory() + "/disk.raw").c_str()), 0);
  ASSERT_TRUE(berthd.Start());
  grpc::ClientContext context;
  v1::GetExportRequest request;
  request.set_name("disk");
  v1::Export shown;
  ASSERT_TRUE(v1::ExportService::NewStub(berthd.channel())->GetExport(&context, request, &shown).ok());
  EXPECT_THAT(shown.error(), HasSubstr("disk.raw"));
  EXPECT_NE(RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("disk")}).exit_code, 0);
  EXPECT_EQ(RunProcess({"/usr/bin/nbdinfo", "--size", berthd.Uri("other")}).exit_code, 0);
}

TEST(BerthdTest, TheUnixSocketIsForItsOwnerAlone) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  struct stat info;
  ASSERT_EQ(stat(berthd.rpc_path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST(BerthdTest, TwoDoNotShareAStateDirectory) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  const ProcessResult second =
      RunProcess({BerthdPath(), absl::StrCat("--listen=unix:", berthd.directory(), "/second.sock"),
                  absl::StrCat("--state-dir=", berthd.state_directory())});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.output, HasSubstr("in use by another berthd"));
}

TEST(BerthdTest, ReadsAConfigurationFile) {
  BerthdProcess berthd;
  const std::string config = berthd.directory() + "/berthd.toml";
  std::ofstream(config) << "max-exports = 1\ndevice-timeout = \"45s\"\n";
  ASSERT_TRUE(berthd.Start({"--config=" + config}));
  CreateDisk(berthd);
  ASSERT_TRUE(berthd.CreateRawImage("other.raw", kSize).ok());
  EXPECT_EQ(ReasonOf(berthd.CreateRawExport("other", "other.raw")), "LIMIT_REACHED");
}

TEST(BerthdTest, HelpAndVersion) {
  const ProcessResult help = RunProcess({BerthdPath(), "--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const char* option :
       {"--listen", "--state-dir", "--image-root", "--nbd", "--dead-connection-timeout"}) {
    EXPECT_THAT(help.output, HasSubstr(option));
  }
  const ProcessResult version = RunProcess({BerthdPath(), "--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.output, StartsWith("berthd "));
}

struct BadFlag {
  std::string flag;
  std::string said;  // In the error's one line, beside the option.
};

TEST(BerthdTest, EachWrongValueIsOneLineThatNamesIt) {
  const BerthdProcess place;
  const std::string& directory = place.directory();
  const std::vector<BadFlag> flags = {
      {"--listen=tcp", "tcp"},
      {"--listen=unix:", "unix:"},
      {"--listen=unix:/" + std::string(200, 'x'), "107"},
      {"--listen=127.0.0.1:1", "mutual TLS"},
      {"--nbd=host:99999", "99999"},
      {"--reactors=0", "0"},
      {"--reactors=many", "many"},
      {"--max-exports=-1", "-1"},
      {"--device-timeout=0s", "0s"},
      {"--device-timeout=5", "5"},
      {"--dead-connection-timeout=soon", "soon"},
      {"--connection-memory=1KiB", "1024"},
      {"--image-root=relative", "relative"},
      {"--max-watchers=100", "100"},
      {"--config=/no/such/file", "/no/such/file"},
      {"--no-such-flag=1", "--no-such-flag"},
  };
  for (const BadFlag& bad : flags) {
    const ProcessResult result =
        RunProcess({BerthdPath(), absl::StrCat("--listen=unix:", directory, "/x.sock"),
                    absl::StrCat("--state-dir=", directory, "/state"), bad.flag});
    EXPECT_EQ(result.exit_code, 2) << bad.flag;
    EXPECT_THAT(result.output, HasSubstr(bad.said)) << bad.flag;
    const std::string option = bad.flag.substr(0, bad.flag.find('='));
    EXPECT_THAT(result.output, HasSubstr(option));
    EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
  }
  const ProcessResult missing = RunProcess({BerthdPath()});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_THAT(missing.output, HasSubstr("--listen"));
}

TEST(BerthdTest, WhatCannotBeHadIsNamed) {
  BerthdProcess berthd;
  const std::string listen = absl::StrCat("--listen=unix:", berthd.directory(), "/x.sock");
  const std::string state = absl::StrCat("--state-dir=", berthd.directory(), "/s");
  ProcessResult result = RunProcess({BerthdPath(), listen, state, "--image-root=/no/such/root"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("/no/such/root"));
  result = RunProcess({BerthdPath(), "--listen=unix:/no/such/dir/x.sock", state});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("/no/such/dir/x.sock"));
  result = RunProcess({BerthdPath(), listen, state, "--nbd=unix:/no/such/dir/n.sock"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.output, HasSubstr("--nbd"));
}

}  // namespace
}  // namespace berth::control
