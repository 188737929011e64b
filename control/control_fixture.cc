#include "control/control_fixture.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "image/io/unique_fd.h"
#include "image/opener/image_roots.h"
#include "nbd/raw_client.h"

namespace berth::control {

ControlFixture::ControlFixture() {
  // Short, as sockets' paths must be.
  directory_ = "/tmp/berth-control.XXXXXX";
  if (mkdtemp(directory_.data()) == nullptr) ADD_FAILURE() << "no temporary directory";
  export_options_.operation_timeout = absl::Seconds(20);
  attachment_options_.operation_timeout = absl::Seconds(5);
}

ControlFixture::~ControlFixture() {
  Stop();
  kernel_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void ControlFixture::Start() {
  auto reactors = ReactorPool::Create(2);
  ASSERT_TRUE(reactors.ok()) << reactors.status();
  reactors_ = *std::move(reactors);
  auto store = StateStore::Open(state_directory());
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  events_ = std::make_unique<EventHub>(1000, "server");
  ExportRegistryOptions options = export_options_;
  if (options.resize_devices == nullptr) {
    options.resize_devices = [this](const std::string& name, uint64_t size) {
      return attachments().ResizeDevices(name, size, Soon());
    };
  }
  auto roots = ImageRoots::Within({directory_});
  ASSERT_TRUE(roots.ok()) << roots.status();
  exports_ = std::make_unique<ExportRegistry>(options, *roots, store_.get(), events_.get());
  AttachmentEnvironment environment;
  environment.options = attachment_options_;
  environment.store = store_.get();
  environment.kernel = kernel_.get();
  environment.reactors = reactors_.get();
  environment.events = events_.get();
  attachments_ = std::make_unique<AttachmentTable>(environment, exports_.get(), max_attachments_);
  ASSERT_TRUE(exports_->Restore().ok());
  ASSERT_TRUE(attachments_->Restore().ok());
}

void ControlFixture::Stop() {
  if (attachments_ != nullptr) {
    EXPECT_TRUE(attachments_->Shutdown(Soon()).ok());
  }
  attachments_.reset();
  exports_.reset();
  events_.reset();
  store_.reset();
  reactors_.reset();
}

v1::ExportSpec ControlFixture::MemorySpec(uint64_t size) {
  v1::ExportSpec spec;
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_MEMORY);
  spec.mutable_image()->set_size_bytes(size);
  return spec;
}

v1::ExportSpec ControlFixture::NullSpec(uint64_t size) {
  v1::ExportSpec spec = MemorySpec(size);
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_NULL);
  return spec;
}

v1::ExportSpec ControlFixture::RawSpec(const std::string& file, uint64_t size) const {
  v1::ExportSpec spec;
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  spec.mutable_image()->set_path(absl::StrCat(directory_, "/", file));
  UniqueFd fd(open(spec.image().path().c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
  if (fd && ftruncate(fd.get(), static_cast<off_t>(size)) != 0) ADD_FAILURE() << "cannot size " << file;
  return spec;
}

v1::AttachmentSpec ControlFixture::SpecOf(const std::string& export_name) {
  v1::AttachmentSpec spec;
  spec.set_export_(export_name);
  return spec;
}

absl::Status ControlFixture::Detach(const std::string& name, bool force) {
  v1::DetachRequest request;
  request.set_name(name);
  request.set_force(force);
  return attachments().Detach(request, Soon());
}

absl::StatusOr<v1::Export> ControlFixture::Resize(const std::string& name, uint64_t size, bool allow_shrink) {
  v1::UpdateExportRequest request;
  request.set_name(name);
  request.mutable_update_mask()->add_paths("size_bytes");
  request.set_size_bytes(size);
  request.set_allow_shrink(allow_shrink);
  return exports().Update(request, Soon());
}

uint32_t ControlFixture::IndexOf(const v1::Attachment& attachment) {
  uint32_t index = 0;
  EXPECT_TRUE(absl::SimpleAtoi(absl::StripPrefix(attachment.device(), "/dev/nbd"), &index))
      << attachment.device();
  return index;
}

void ControlFixture::ExpectServed(uint32_t index, size_t socket) {
  UniqueFd fd(kernel().DuplicateKernelSocket(index, socket));
  ASSERT_TRUE(fd) << "socket " << socket << " of device " << index << " is dead";
  nbd::RawClient client(std::move(fd));
  nbd::Request request;
  request.command = nbd::Command::kRead;
  request.cookie = 7;
  request.length = 1;
  ASSERT_TRUE(client.Send(request));
  const nbd::SimpleReply reply = client.ReceiveSimple();
  EXPECT_EQ(reply.cookie, 7u);
  EXPECT_EQ(client.Receive(1).size(), 1u);
}

bool ControlFixture::FileExists(const std::string& path) const { return access(path.c_str(), F_OK) == 0; }

}  // namespace berth::control
