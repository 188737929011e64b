#include "control/export_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/control_fixture.h"
#include "control/status_details.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

class ExportRegistryTest : public ControlFixture {
 protected:
  void SetUp() override { Start(); }

  absl::Status Delete(const std::string& name, bool force = false) {
    v1::DeleteExportRequest request;
    request.set_name(name);
    request.set_force(force);
    return exports().Delete(request, Soon(), [this](const std::string& export_name) {
      ++disconnects_;
      exports().ClientGone(export_name);
      client_.reset();
    });
  }

  int disconnects_ = 0;
  std::shared_ptr<const nbd::Export> client_;  // As a session holds it.
};

TEST_F(ExportRegistryTest, TheSameRequestAtOnceIsOneExport) {
  const v1::ExportSpec spec = RawSpec("disk.raw");
  std::vector<std::thread> threads;
  std::atomic<int> created = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const absl::Status status = CreateExport("disk", spec);
      EXPECT_TRUE(status.ok()) << status;
      ++created;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(created, 8);
  EXPECT_EQ(exports().List().size(), 1u);
}

TEST_F(ExportRegistryTest, AUsedExportIsNotDeleted) {
  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  ASSERT_TRUE(exports().AdmitClient("disk").ok());
  client_ = exports().Find("disk");
  EXPECT_EQ(exports().Get("disk")->connections(), 1u);
  EXPECT_EQ(ReasonOf(Delete("disk")), "EXPORT_IN_USE");
  EXPECT_NE(exports().Find("disk"), nullptr);
  const absl::Status forced = Delete("disk", true);
  EXPECT_TRUE(forced.ok()) << forced;
  EXPECT_EQ(disconnects_, 1);
  EXPECT_EQ(exports().Find("disk"), nullptr);
  // The image is closed when the call returns.
  EXPECT_TRUE(CreateExport("again", RawSpec("disk.raw")).ok());
}

TEST_F(ExportRegistryTest, ADeleteWhoseClientStaysGivesTheExportBack) {
  export_options_.operation_timeout = absl::Milliseconds(10);
  Restart();
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  const std::shared_ptr<const nbd::Export> stuck = exports().Find("disk");
  const absl::Status status = Delete("disk");
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_NE(exports().Find("disk"), nullptr);
}

TEST_F(ExportRegistryTest, NetworkClientsAndAttachmentsExcludeEachOther) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  ASSERT_TRUE(exports().AdmitClient("disk").ok());
  ASSERT_TRUE(exports().AdmitClient("disk").ok());  // A second connection.
  EXPECT_EQ(ReasonOf(exports().AttachTo("disk", "a", false).status()), "EXPORT_IN_USE");
  EXPECT_THAT(exports().Get("disk")->attachments(), testing::IsEmpty());
  exports().ClientGone("disk");
  exports().ClientGone("disk");
  ASSERT_TRUE(exports().AttachTo("disk", "a", false).ok());
  EXPECT_EQ(ReasonOf(exports().AdmitClient("disk")), "EXPORT_IN_USE");
  exports().Detached("disk", "a");
  EXPECT_TRUE(exports().AdmitClient("disk").ok());
  exports().ClientGone("disk");

  v1::ExportSpec shared = MemorySpec();
  shared.set_shared_writers(true);
  ASSERT_TRUE(CreateExport("shared", shared).ok());
  EXPECT_TRUE(exports().AttachTo("shared", "b", false).ok());
  EXPECT_TRUE(exports().AdmitClient("shared").ok());
  exports().ClientGone("shared");
}

TEST_F(ExportRegistryTest, AReadOnlyAttachmentServesReadOnly) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  EXPECT_TRUE((*exports().AttachTo("disk", "a", true))->read_only);
  EXPECT_FALSE((*exports().AttachTo("disk", "a", false))->read_only);
}

TEST_F(ExportRegistryTest, ExportsComeBackAfterARestart) {
  v1::ExportSpec spec = RawSpec("disk.raw");
  spec.set_description("kept");
  spec.set_offset_bytes(4096);
  spec.set_length_bytes(8192);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  ASSERT_TRUE(CreateExport("memory", MemorySpec()).ok());
  ASSERT_TRUE(Resize("memory", 3 << 20).ok());
  const auto before = exports().Get("disk");
  Restart();
  EXPECT_EQ(exports().Get("disk")->SerializeAsString(), before->SerializeAsString());
  EXPECT_EQ(exports().Find("disk")->device->size(), 8192u);
  EXPECT_EQ(exports().Get("memory")->size_bytes(), 3u << 20);
}

TEST_F(ExportRegistryTest, ATornRecordIsKeptAndNamed) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  ASSERT_TRUE(CreateExport("fine", MemorySpec()).ok());
  Stop();
  const std::string record = state_directory() + "/exports/disk.json";
  std::ofstream(record, std::ios::trunc).close();
  Start();
  EXPECT_NE(exports().Find("fine"), nullptr);
  EXPECT_EQ(exports().Find("disk"), nullptr);
  EXPECT_THAT(exports().Get("disk")->error(), HasSubstr(record));
  EXPECT_EQ(ReasonOf(CreateExport("disk", MemorySpec())), "STATE_UNREADABLE");
  EXPECT_TRUE(FileExists(record));
  EXPECT_TRUE(Delete("disk").ok());
  EXPECT_FALSE(FileExists(record));
  EXPECT_TRUE(CreateExport("disk", MemorySpec()).ok());
}

TEST_F(ExportRegistryTest, WhatCannotBeWrittenIsNotCreated) {
  const std::string record = state_directory() + "/exports/disk.json";
  ASSERT_EQ(mkdir(record.c_str(), 0700), 0);
  const v1::ExportSpec spec = RawSpec("disk.raw");
  EXPECT_EQ(ReasonOf(CreateExport("disk", spec)), "STATE_NOT_WRITTEN");
  EXPECT_EQ(exports().Find("disk"), nullptr);
  ASSERT_EQ(rmdir(record.c_str()), 0);
  EXPECT_TRUE(CreateExport("disk", spec).ok());
}

TEST_F(ExportRegistryTest, ASliceIsResizedOrRefused) {
  v1::ExportSpec fixed = RawSpec("fixed.raw");
  fixed.set_offset_bytes(4096);
  fixed.set_length_bytes(8192);
  ASSERT_TRUE(CreateExport("fixed", fixed).ok());
  EXPECT_EQ(ReasonOf(Resize("fixed", 16384).status()), "NOT_RESIZABLE");
  EXPECT_TRUE(Resize("fixed", 8192).ok());
  v1::ExportSpec open = RawSpec("open.raw");
  open.set_offset_bytes(4096);
  ASSERT_TRUE(CreateExport("open", open).ok());
  EXPECT_EQ(Resize("open", 2 << 20)->size_bytes(), 2u << 20);
}

TEST_F(ExportRegistryTest, TenThousandExports) {
  export_options_.max_exports = 10000;
  Restart();
  constexpr int kThreads = 8;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      for (int i = t; i < 10000; i += kThreads) {
        const absl::Status status = CreateExport(absl::StrCat("e", i), NullSpec());
        ASSERT_TRUE(status.ok()) << status;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(exports().List().size(), 10000u);
  EXPECT_EQ(ReasonOf(CreateExport("more", NullSpec())), "LIMIT_REACHED");
  EXPECT_NE(exports().Find("e9999"), nullptr);
  Restart();
  EXPECT_EQ(exports().List().size(), 10000u);
}

}  // namespace
}  // namespace berth::control
