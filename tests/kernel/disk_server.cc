#include "tests/kernel/disk_server.h"

#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "image/io/unique_fd.h"

namespace berth::kernel_test {
namespace {

// An emulated machine on a busy host is slow; nothing waits this long but for a failure.
constexpr absl::Duration kPatience = absl::Seconds(120);

constexpr size_t kAlignment = 4096;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using AlignedBuffer = std::unique_ptr<char, Free>;

AlignedBuffer MakeAligned(size_t size) {
  return AlignedBuffer(
      static_cast<char*>(std::aligned_alloc(kAlignment, (size + kAlignment - 1) / kAlignment * kAlignment)));
}

int Open(const std::string& path, int flags, UniqueFd* fd) {
  if (absl::StartsWith(path, "/dev/")) flags |= O_DIRECT;
  fd->Reset(open(path.c_str(), flags | O_CLOEXEC));
  return *fd ? 0 : errno;
}

void SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
}

void ExpectOk(const grpc::Status& status, absl::string_view call) {
  EXPECT_TRUE(status.ok()) << call << ": " << status.error_message();
}

}  // namespace

bool Shell(const std::string& script) {
  const control::ProcessResult result = control::RunProcess(
      {"/bin/sh", "-c", absl::StrCat("PATH=/usr/sbin:/usr/bin:/sbin:/bin; ", script)}, kPatience);
  EXPECT_EQ(result.exit_code, 0) << script << "\n" << result.output;
  return result.exit_code == 0;
}

std::string OutputOf(const std::string& script) {
  const control::ProcessResult result = control::RunProcess(
      {"/bin/sh", "-c", absl::StrCat("PATH=/usr/sbin:/usr/bin:/sbin:/bin; ", script)}, kPatience);
  EXPECT_EQ(result.exit_code, 0) << script << "\n" << result.output;
  return std::string(absl::StripAsciiWhitespace(result.output));
}

std::string FirstWord(const std::string& path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

std::string NameOf(const std::string& device) { return std::filesystem::path(device).filename(); }

uint64_t SizeOf(const std::string& device) {
  const std::string sectors = FirstWord(absl::StrCat("/sys/class/block/", NameOf(device), "/size"));
  return sectors.empty() ? 0 : std::strtoull(sectors.c_str(), nullptr, 10) * 512;
}

bool IsFree(const std::string& device) {
  return SizeOf(device) == 0 &&
         access(absl::StrCat("/sys/block/", NameOf(device), "/pid").c_str(), F_OK) != 0;
}

std::vector<std::string> UsedDevices() {
  std::vector<std::string> used;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block")) {
    const std::string name = entry.path().filename();
    if (absl::StartsWith(name, "nbd") && !IsFree(name)) used.push_back(name);
  }
  return used;
}

uint64_t AllocatedBytes(const std::string& path) {
  struct stat status = {};
  EXPECT_EQ(stat(path.c_str(), &status), 0) << path << ": " << strerror(errno);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

int WriteAt(const std::string& path, uint64_t offset, absl::string_view data, int more_flags) {
  UniqueFd fd;
  if (const int error = Open(path, O_WRONLY | more_flags, &fd); error != 0) return error;
  const AlignedBuffer buffer = MakeAligned(data.size());
  memcpy(buffer.get(), data.data(), data.size());
  const ssize_t written = pwrite(fd.get(), buffer.get(), data.size(), static_cast<off_t>(offset));
  if (written < 0) return errno;
  return static_cast<size_t>(written) == data.size() ? 0 : ENOSPC;
}

int ReadAt(const std::string& path, uint64_t offset, size_t count, std::string* data) {
  UniqueFd fd;
  if (const int error = Open(path, O_RDONLY, &fd); error != 0) return error;
  const AlignedBuffer buffer = MakeAligned(count);
  const ssize_t n = pread(fd.get(), buffer.get(), count, static_cast<off_t>(offset));
  if (n < 0) return errno;
  data->assign(buffer.get(), static_cast<size_t>(n));
  return 0;
}

std::string ContentAt(const std::string& path, uint64_t offset, size_t count) {
  std::string data;
  const int error = ReadAt(path, offset, count, &data);
  EXPECT_EQ(error, 0) << path << " at " << offset << ": " << strerror(error);
  return data;
}

std::string Pattern(uint64_t seed) {
  std::string block;
  while (block.size() < 4096) absl::StrAppend(&block, "block ", seed, " at ", block.size(), "; ");
  block.resize(4096);
  return block;
}

// ---- Mount.

Mount::Mount(const std::string& device, const std::string& file_system, const std::string& folder,
             unsigned long flags, const std::string& options)  // NOLINT(runtime/int)
    : folder_(folder) {
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  mounted_ = mount(device.c_str(), folder.c_str(), file_system.c_str(), flags, options.c_str()) == 0;
  EXPECT_TRUE(mounted_) << device << " on " << folder << ": " << strerror(errno);
}

bool Mount::Unmount() {
  if (!std::exchange(mounted_, false)) return false;
  const bool unmounted = umount(folder_.c_str()) == 0;
  EXPECT_TRUE(unmounted) << folder_ << ": " << strerror(errno);
  return unmounted;
}

std::string Mount::Path(absl::string_view name) const { return absl::StrCat(folder_, "/", name); }

// ---- DiskServer.

std::string DiskServer::Path(const std::string& name) const { return absl::StrCat(directory(), "/", name); }
std::string DiskServer::Image(const std::string& name) const { return Path(name + ".raw"); }

void DiskServer::CreateDisk(const std::string& name, uint64_t size) {
  ExpectOk(CreateRawImage(name + ".raw", size), "CreateImage");
  ExpectOk(CreateRawExport(name, name + ".raw"), "CreateExport");
}

v1::ExportSpec DiskServer::SpecOf(const std::string& name) const {
  v1::ExportSpec spec;
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  spec.mutable_image()->set_path(Image(name));
  return spec;
}

grpc::Status DiskServer::CreateExport(const std::string& name, const v1::ExportSpec& spec) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::CreateExportRequest request;
  request.set_name(name);
  *request.mutable_spec() = spec;
  v1::Export created;
  return v1::ExportService::NewStub(channel())->CreateExport(&context, request, &created);
}

std::string DiskServer::AttachDisk(const std::string& name, v1::AttachmentSpec spec) {
  v1::Attachment attachment;
  ExpectOk(Attach(name, name, &attachment, std::move(spec)), "Attach");
  EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
  return attachment.device();
}

std::string DiskServer::AttachDisk(const std::string& name, uint32_t connections) {
  v1::AttachmentSpec spec;
  spec.set_connections(connections);
  return AttachDisk(name, spec);
}

void DiskServer::DetachDisk(const std::string& name, const std::string& device) {
  ExpectOk(Detach(name), "Detach");
  EXPECT_TRUE(IsFree(device)) << device;
}

v1::Export DiskServer::GetExport(const std::string& name) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetExportRequest request;
  request.set_name(name);
  v1::Export found;
  ExpectOk(v1::ExportService::NewStub(channel())->GetExport(&context, request, &found), "GetExport");
  return found;
}

v1::OperationStatistics DiskServer::Statistics(const std::string& export_name, v1::IoOperation operation) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetStatisticsRequest request;
  request.set_export_(export_name);
  v1::GetStatisticsResponse response;
  ExpectOk(v1::MonitoringService::NewStub(channel())->GetStatistics(&context, request, &response),
           "GetStatistics");
  for (const v1::ExportStatistics& statistics : response.exports()) {
    for (const v1::OperationStatistics& one : statistics.operations()) {
      if (one.operation() == operation) return one;
    }
  }
  return {};
}

}  // namespace berth::kernel_test
