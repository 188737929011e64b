// ControlFixture: the control plane over a fake kernel, with a state directory of its own and restarts, for
// tests.
#ifndef BERTH_CONTROL_CONTROL_FIXTURE_H_
#define BERTH_CONTROL_CONTROL_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "berth/v1/attachments.pb.h"
#include "berth/v1/exports.pb.h"
#include "control/attachment_table.h"
#include "control/event_hub.h"
#include "control/export_registry.h"
#include "control/state_store.h"
#include "image/io/reactor_pool.h"
#include "tests/fakes/fake_nbd_kernel.h"

namespace berth::control {

class ControlFixture : public testing::Test {
 protected:
  ControlFixture();
  ~ControlFixture() override;

  // As a berthd that starts on the state directory; as one that stops, and leaves its devices.
  void Start();
  void Stop();
  void Restart() {
    Stop();
    Start();
  }

  static absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

  static v1::ExportSpec MemorySpec(uint64_t size = 1 << 20);
  static v1::ExportSpec NullSpec(uint64_t size = 1 << 20);
  // Of a raw file in the temporary directory, which is made where it is missing.
  v1::ExportSpec RawSpec(const std::string& file, uint64_t size = 1 << 20) const;
  absl::Status CreateExport(const std::string& name, const v1::ExportSpec& spec) {
    return exports().Create(name, spec, Soon()).status();
  }
  static v1::AttachmentSpec SpecOf(const std::string& export_name);
  absl::StatusOr<v1::Attachment> Attach(const std::string& name, const v1::AttachmentSpec& spec) {
    return attachments().Attach(name, spec, Soon());
  }
  absl::Status Detach(const std::string& name, bool force = false);
  absl::StatusOr<v1::Export> Resize(const std::string& name, uint64_t size, bool allow_shrink = false);

  // The N of "/dev/nbdN".
  static uint32_t IndexOf(const v1::Attachment& attachment);
  // Reads the first byte of a device as the kernel does, over one of its sockets.
  void ExpectServed(uint32_t index, size_t socket = 0);
  bool FileExists(const std::string& path) const;

  const std::string& directory() const { return directory_; }
  std::string state_directory() const { return directory_ + "/state"; }
  FakeNbdKernel& kernel() { return *kernel_; }
  ExportRegistry& exports() { return *exports_; }
  AttachmentTable& attachments() { return *attachments_; }
  StateStore& store() { return *store_; }
  EventHub& events() { return *events_; }

  // A machine started anew, with so many devices. Before Start().
  void ReplaceKernel(uint32_t devices) { kernel_ = std::make_unique<FakeNbdKernel>(devices); }

  // Changed before Start(). Resizes reach the devices of attachments() unless a test wants otherwise.
  ExportRegistryOptions export_options_;
  AttachmentOptions attachment_options_;
  size_t max_attachments_ = 64;

 private:
  std::string directory_;
  std::unique_ptr<FakeNbdKernel> kernel_ = std::make_unique<FakeNbdKernel>(4);
  std::unique_ptr<ReactorPool> reactors_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<EventHub> events_;
  std::unique_ptr<ExportRegistry> exports_;
  std::unique_ptr<AttachmentTable> attachments_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_CONTROL_FIXTURE_H_
