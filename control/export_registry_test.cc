#include "control/export_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/control_fixture.h"
#include "control/status_details.h"
#include "image/filter/rate_limit.h"

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

  RateLimits LimitsOf(const std::string& name) {
    const std::shared_ptr<const nbd::Export> served = exports().Find(name);
    const auto* limit =
        dynamic_cast<const RateLimitDevice*>(served == nullptr ? nullptr : served->device.get());
    EXPECT_NE(limit, nullptr);
    return limit == nullptr ? RateLimits{} : limit->limits();
  }
  v1::Event NextEvent() {
    const auto event = events().WaitForNext(seen_, Soon());
    if (!event.ok() || !event->has_value()) {
      ADD_FAILURE() << "no event came: " << event.status();
      return {};
    }
    seen_ = (*event)->sequence();
    return **event;
  }

  uint64_t seen_ = 0;
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
  const absl::Status refused = Delete("disk");
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_EQ(ReasonOf(refused), "EXPORT_IN_USE");
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
  v1::ExportSpec spec = MemorySpec();
  spec.mutable_rate_limit()->set_operations_per_second(77);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  const std::shared_ptr<const nbd::Export> stuck = exports().Find("disk");
  for (const bool force : {false, true}) {
    const absl::Status status = Delete("disk", force);
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_NE(exports().Find("disk"), nullptr);
    EXPECT_EQ(LimitsOf("disk").operations_per_second, 77u);
  }
}

TEST_F(ExportRegistryTest, EveryChangeIsTold) {
  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  v1::Event event = NextEvent();
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_EXPORT_CREATED);
  EXPECT_EQ(event.export_(), "disk");
  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());  // Nothing happens.
  ASSERT_TRUE(Resize("disk", 2 << 20).ok());
  EXPECT_EQ(NextEvent().type(), v1::EVENT_TYPE_EXPORT_UPDATED);
  ASSERT_TRUE(Delete("disk").ok());
  event = NextEvent();
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_EXPORT_DELETED);
  EXPECT_EQ(event.export_(), "disk");

  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  Stop();
  ASSERT_EQ(unlink((directory() + "/disk.raw").c_str()), 0);
  Start();
  seen_ = 0;
  event = NextEvent();
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_EXPORT_FAILED);
  EXPECT_EQ(event.export_(), "disk");
  EXPECT_THAT(event.message(), HasSubstr("disk.raw"));
  const absl::Status refused = Resize("disk", 1 << 20).status();
  EXPECT_EQ(ReasonOf(refused), "EXPORT_FAILED") << refused;
  // With its image it is what it was.
  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  EXPECT_NE(exports().Find("disk"), nullptr);
}

TEST_F(ExportRegistryTest, LimitsAndDescriptionChangeWhileItIsServed) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  const std::shared_ptr<const nbd::Export> before = exports().Find("disk");
  EXPECT_EQ(LimitsOf("disk"), RateLimits{});
  v1::UpdateExportRequest request;
  request.set_name("disk");
  request.mutable_update_mask()->add_paths("rate_limit");
  request.mutable_update_mask()->add_paths("description");
  request.mutable_rate_limit()->set_bytes_per_second(1234);
  request.set_description("slow");
  ASSERT_TRUE(exports().Update(request, Soon()).ok());
  EXPECT_EQ(LimitsOf("disk").bytes_per_second, 1234u);
  EXPECT_EQ(exports().Find("disk")->description, "slow");
  EXPECT_EQ(before->device, exports().Find("disk")->device);
  Restart();
  EXPECT_EQ(LimitsOf("disk").bytes_per_second, 1234u);
  EXPECT_EQ(exports().Find("disk")->description, "slow");
}

// A device must not be larger than what is behind it, at no moment.
TEST_F(ExportRegistryTest, DevicesShrinkBeforeTheImageAndGrowAfterIt) {
  constexpr uint64_t kMiB = 1 << 20;
  using Step = std::pair<uint64_t, uint64_t>;  // Sizes of the devices, and of the image at that moment.
  std::vector<Step> steps;
  export_options_.resize_devices = [&](const std::string& name, uint64_t bytes) {
    steps.emplace_back(bytes, exports().Find(name)->device->size());
    return absl::OkStatus();
  };
  Restart();
  ASSERT_TRUE(CreateExport("disk", MemorySpec(2 * kMiB)).ok());
  const auto resize = [&](uint64_t size) {
    v1::UpdateExportRequest request;
    request.set_name("disk");
    request.mutable_update_mask()->add_paths("size_bytes");
    request.set_size_bytes(size);
    request.set_allow_shrink(true);
    steps.clear();
    return exports().Update(request, Soon()).ok();
  };
  EXPECT_TRUE(resize(kMiB));
  EXPECT_EQ(steps, (std::vector<Step>{{kMiB, 2 * kMiB}, {kMiB, kMiB}}));
  EXPECT_TRUE(resize(3 * kMiB));
  EXPECT_EQ(steps, (std::vector<Step>{{3 * kMiB, 3 * kMiB}}));
  // What the image refuses leaves the devices with its size.
  EXPECT_FALSE(resize(uint64_t{1} << 50));
  EXPECT_EQ(steps, (std::vector<Step>{{3 * kMiB, 3 * kMiB}}));
}

// What a client does to the size is what UpdateExport does: the device of the kernel, the record, the event.
TEST_F(ExportRegistryTest, AClientResizesAsTheApiDoes) {
  v1::ExportSpec spec = MemorySpec(1 << 20);
  spec.set_client_resize(true);
  spec.set_shared_writers(true);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  ASSERT_TRUE(exports().AdmitClient("disk").ok());
  client_ = exports().Find("disk");
  ASSERT_NE(client_->resize, nullptr);
  while (NextEvent().type() != v1::EVENT_TYPE_ATTACHED) {
  }
  for (const uint64_t size : {uint64_t{3} << 20, uint64_t{2} << 20}) {
    const absl::Status status = client_->resize(size);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(client_->device->size(), size);
    EXPECT_EQ(kernel().Inspect(IndexOf(*attached))->size_bytes, size);
    const v1::Event event = NextEvent();
    EXPECT_EQ(event.type(), v1::EVENT_TYPE_EXPORT_UPDATED);
    EXPECT_EQ(event.export_(), "disk");
  }
  for (const uint64_t size : {uint64_t{0}, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(client_->resize(size))) << size;
  }
  EXPECT_EQ(client_->device->size(), 2u << 20);
  exports().ClientGone("disk");
  client_.reset();
  Restart();
  EXPECT_EQ(exports().Get("disk")->size_bytes(), 2u << 20);
  EXPECT_NE(exports().Find("disk")->resize, nullptr);
}

// The text reaches the client, who hears of bounds, but not where this host keeps its images.
TEST_F(ExportRegistryTest, WhyAClientsResizeFailedNamesNoFile) {
  v1::ExportSpec spec = RawSpec("disk.raw");
  spec.set_client_resize(true);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  client_ = exports().Find("disk");
  const absl::Status refused = client_->resize((uint64_t{1} << 63) - 512);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_NE(refused.message().find("the image"), absl::string_view::npos) << refused;
  EXPECT_NE(refused.message().find("larger than its file system allows"), absl::string_view::npos) << refused;
  EXPECT_EQ(refused.message().find(directory()), absl::string_view::npos) << refused;
  client_.reset();
}

TEST_F(ExportRegistryTest, AClientResizesWhileItMay) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  EXPECT_EQ(exports().Find("disk")->resize, nullptr);
  v1::UpdateExportRequest request;
  request.set_name("disk");
  request.mutable_update_mask()->add_paths("client_resize");
  request.set_client_resize(true);
  ASSERT_TRUE(exports().Update(request, Soon()).ok());
  client_ = exports().Find("disk");
  ASSERT_TRUE(client_->resize(2 << 20).ok());
  // It has been connected since before.
  request.set_client_resize(false);
  ASSERT_TRUE(exports().Update(request, Soon()).ok());
  const absl::Status refused = client_->resize(4 << 20);
  EXPECT_EQ(ReasonOf(refused), "NOT_RESIZABLE") << refused;
  EXPECT_EQ(client_->device->size(), 2u << 20);
  EXPECT_EQ(exports().Find("disk")->resize, nullptr);
  client_.reset();
}

// A forced deletion and the resize of a client that it disconnects do not wait for each other for ever.
TEST_F(ExportRegistryTest, AResizeGivesWayToADeletion) {
  export_options_.operation_timeout = absl::Seconds(2);
  Restart();
  v1::ExportSpec spec = MemorySpec();
  spec.set_client_resize(true);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  client_ = exports().Find("disk");
  v1::DeleteExportRequest request;
  request.set_name("disk");
  request.set_force(true);
  absl::Status resized;
  const absl::Status deleted = exports().Delete(request, Soon(), [&](const std::string&) {
    resized = client_->resize(2 << 20);
    client_.reset();
  });
  EXPECT_TRUE(deleted.ok()) << deleted;
  EXPECT_EQ(ReasonOf(resized), "CALL_IN_PROGRESS") << resized;
}

TEST_F(ExportRegistryTest, WhatKeepsItsSizeCannotBeResizedByClients) {
  v1::ExportSpec spec = MemorySpec();
  spec.set_read_only(true);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  v1::UpdateExportRequest request;
  request.set_name("disk");
  request.mutable_update_mask()->add_paths("client_resize");
  request.mutable_update_mask()->add_paths("description");
  request.set_client_resize(true);
  request.set_description("not set");
  const absl::Status refused = exports().Update(request, Soon()).status();
  EXPECT_EQ(ReasonOf(refused), "INVALID_FIELD") << refused;
  EXPECT_EQ(exports().Find("disk")->description, "");
}

TEST_F(ExportRegistryTest, BlockSizesReachClientsAndTheDisk) {
  v1::ExportSpec spec = MemorySpec();
  spec.mutable_block_sizes()->set_minimum_bytes(4096);
  spec.mutable_block_sizes()->set_maximum_payload_bytes(1 << 20);
  spec.mutable_block_sizes()->set_must_be_asked_for(true);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  client_ = exports().Find("disk");
  v1::UpdateExportRequest request;
  request.set_name("disk");
  request.mutable_update_mask()->add_paths("block_sizes");
  request.mutable_block_sizes()->set_preferred_bytes(65536);
  ASSERT_TRUE(exports().Update(request, Soon()).ok());
  // Who is connected keeps what it was told.
  EXPECT_EQ(client_->block_sizes.minimum, 4096u);
  EXPECT_EQ(client_->block_sizes.maximum_payload, 1u << 20);
  EXPECT_TRUE(client_->block_sizes.must_be_asked_for);
  client_.reset();
  Restart();
  const nbd::BlockSizes sizes = exports().Find("disk")->block_sizes;
  EXPECT_EQ(sizes.minimum, 1u);
  EXPECT_EQ(sizes.preferred, 65536u);
  EXPECT_EQ(sizes.maximum_payload, nbd::kMaxPayload);
  EXPECT_FALSE(sizes.must_be_asked_for);
}

TEST_F(ExportRegistryTest, ADefaultThatIsWrittenOutIsTheSameSpec) {
  v1::ExportSpec spec = MemorySpec();
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  spec.mutable_block_sizes()->set_minimum_bytes(1);
  spec.mutable_block_sizes()->set_maximum_payload_bytes(32 << 20);
  spec.mutable_image()->set_cache(v1::CACHE_MODE_WRITEBACK);
  spec.mutable_image()->set_discard(v1::DISCARD_MODE_UNMAP);
  EXPECT_TRUE(CreateExport("disk", spec).ok());
  spec.mutable_block_sizes()->set_minimum_bytes(2);
  const absl::Status other = CreateExport("disk", spec);
  EXPECT_EQ(ReasonOf(other), "ALREADY_EXISTS");
  EXPECT_THAT(std::string(other.message()), HasSubstr("block_sizes.minimum_bytes"));
  spec = MemorySpec();
  spec.set_client_resize(true);
  EXPECT_THAT(std::string(CreateExport("disk", spec).message()), HasSubstr("client_resize: false -> true"));
}

TEST_F(ExportRegistryTest, BlockSizesOfADamagedRecordServeNobody) {
  v1::ExportSpec spec = MemorySpec();
  spec.mutable_block_sizes()->set_minimum_bytes(4096);
  ASSERT_TRUE(CreateExport("disk", spec).ok());
  Stop();
  const std::string record = state_directory() + "/exports/disk.json";
  std::stringstream text;
  text << std::ifstream(record).rdbuf();
  std::string edited = text.str();
  const size_t at = edited.find("4096");
  ASSERT_NE(at, std::string::npos);
  std::ofstream(record, std::ios::trunc) << edited.replace(at, 4, "4095");
  Start();
  EXPECT_EQ(exports().Find("disk"), nullptr);
  EXPECT_THAT(exports().Get("disk")->error(), HasSubstr("4095"));
}

TEST_F(ExportRegistryTest, APartOfAMemoryImageKeepsItsSizeOverARestart) {
  v1::ExportSpec spec = MemorySpec(2 << 20);
  spec.set_offset_bytes(1 << 20);
  ASSERT_TRUE(CreateExport("part", spec).ok());
  ASSERT_EQ(Resize("part", 3 << 20)->size_bytes(), 3u << 20);
  Restart();
  EXPECT_EQ(exports().Get("part")->size_bytes(), 3u << 20);
  EXPECT_EQ(exports().Find("part")->device->size(), 3u << 20);
}

TEST_F(ExportRegistryTest, WhatWasNotMadeTakesNoPlace) {
  export_options_.max_exports = 2;
  Restart();
  v1::ExportSpec missing = RawSpec("disk.raw");
  ASSERT_EQ(unlink((directory() + "/disk.raw").c_str()), 0);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(CreateExport("missing", missing).ok());
  EXPECT_TRUE(CreateExport("a", MemorySpec()).ok());
  EXPECT_TRUE(CreateExport("b", MemorySpec()).ok());
  EXPECT_EQ(ReasonOf(CreateExport("c", MemorySpec())), "LIMIT_REACHED");
  EXPECT_TRUE(Delete("a").ok());
  EXPECT_TRUE(CreateExport("c", MemorySpec()).ok());
}

TEST_F(ExportRegistryTest, NetworkClientsAndAttachmentsExcludeEachOther) {
  ASSERT_TRUE(CreateExport("disk", MemorySpec()).ok());
  ASSERT_TRUE(exports().AdmitClient("disk").ok());
  ASSERT_TRUE(exports().AdmitClient("disk").ok());  // A second connection.
  EXPECT_EQ(ReasonOf(exports().AttachTo("disk", "a", false).status()), "EXPORT_IN_USE");
  EXPECT_THAT(exports().Get("disk")->attachments(), testing::IsEmpty());
  EXPECT_TRUE(exports().AdmitClient("disk").ok());  // A refused attach is no user.
  exports().ClientGone("disk");
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
