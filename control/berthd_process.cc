#include "control/berthd_process.h"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace berth::control {
namespace {

// Generous, as a machine under test may be slow; nothing waits this long but for a failure.
constexpr absl::Duration kPatience = absl::Seconds(60);

// The child gets `output` as its standard output and error, and nothing else of ours.
pid_t Spawn(const std::vector<std::string>& command, int output, const std::string& notify_socket) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  if (!notify_socket.empty()) setenv("NOTIFY_SOCKET", notify_socket.c_str(), 1);
  execv(argv[0], argv.data());
  _exit(127);
}

UniqueFd OpenPidfd(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

// The exit code, or nothing at the deadline.
std::optional<int> WaitForExit(pid_t pid, const UniqueFd& pidfd, absl::Duration at_most) {
  pollfd polled = {.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  if (poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(at_most))) <= 0) return std::nullopt;
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return std::nullopt;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string ReadAll(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  return content.str();
}

void SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}

}  // namespace

std::string BerthdPath() {
  // In a plain run of the binary, beside it.
  for (const char* variable : {"TEST_SRCDIR", "RUNFILES_DIR"}) {
    if (const char* folder = std::getenv(variable)) return absl::StrCat(folder, "/berth/control/berthd");
  }
  return std::filesystem::absolute("control/berthd").string();
}

ProcessResult RunProcess(const std::vector<std::string>& command, absl::Duration at_most) {
  ProcessResult result;
  std::string path = "/tmp/berth-output.XXXXXX";
  UniqueFd output(mkstemp(path.data()));
  const pid_t pid = Spawn(command, output.get(), "");
  const UniqueFd pidfd = OpenPidfd(pid);
  std::optional<int> exit_code = WaitForExit(pid, pidfd, at_most);
  if (!exit_code) {
    ADD_FAILURE() << command[0] << " did not end within " << absl::FormatDuration(at_most);
    kill(pid, SIGKILL);
    exit_code = WaitForExit(pid, pidfd, kPatience);
  }
  result.exit_code = exit_code.value_or(-1);
  result.output = ReadAll(path);
  unlink(path.c_str());
  return result;
}

BerthdProcess::BerthdProcess() {
  // Short, as sockets' paths must be.
  directory_ = "/tmp/berthd.XXXXXX";
  if (mkdtemp(directory_.data()) == nullptr) ADD_FAILURE() << "no temporary directory";
  notify_.Reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  strncpy(address.sun_path, (directory_ + "/notify").c_str(), sizeof(address.sun_path) - 1);
  if (bind(notify_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    ADD_FAILURE() << "no notification socket";
  }
}

BerthdProcess::~BerthdProcess() {
  if (pid_ > 0) Stop(SIGKILL);
  if (testing::Test::HasFailure()) std::fputs(log().c_str(), stderr);
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::string BerthdProcess::Uri(const std::string& export_name) const {
  return absl::StrCat("nbd+unix:///", export_name, "?socket=", directory_, "/nbd.sock");
}

std::string BerthdProcess::log() const { return ReadAll(directory_ + "/log"); }

bool BerthdProcess::Start(const std::vector<std::string>& flags) {
  Launch(flags);
  return WaitUntilReady();
}

void BerthdProcess::Launch(const std::vector<std::string>& flags) {
  std::vector<std::string> command = {BerthdPath(), absl::StrCat("--listen=unix:", rpc_path()),
                                      absl::StrCat("--state-dir=", state_directory()),
                                      absl::StrCat("--image-root=", directory_),
                                      absl::StrCat("--nbd=unix:", directory_, "/nbd.sock")};
  command.insert(command.end(), flags.begin(), flags.end());
  const UniqueFd output(open((directory_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  // What an earlier one said before it ended is not this one's.
  char old[256];
  while (recv(notify_.get(), old, sizeof(old), MSG_DONTWAIT) > 0) {
  }
  pid_ = Spawn(command, output.get(), directory_ + "/notify");
  pidfd_ = OpenPidfd(pid_);
}

bool BerthdProcess::WaitUntilReady() {
  const absl::Time deadline = absl::Now() + kPatience;
  while (true) {
    pollfd polled[] = {{.fd = notify_.get(), .events = POLLIN, .revents = 0},
                       {.fd = pidfd_.get(), .events = POLLIN, .revents = 0}};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0 || poll(polled, 2, static_cast<int>(left)) <= 0) break;
    char message[256];
    const ssize_t n = recv(notify_.get(), message, sizeof(message), MSG_DONTWAIT);
    if (n > 0 && absl::StrContains(absl::string_view(message, static_cast<size_t>(n)), "READY=1"))
      return true;
    if (n < 0 && polled[1].revents != 0) break;
  }
  ADD_FAILURE() << "berthd did not become ready:\n" << log();
  return false;
}

int BerthdProcess::Stop(int signal) {
  if (pid_ <= 0) return -1;
  kill(pid_, signal);
  std::optional<int> exit_code = WaitForExit(pid_, pidfd_, kPatience);
  if (!exit_code) {
    ADD_FAILURE() << "berthd did not end after signal " << signal << ":\n" << log();
    kill(pid_, SIGKILL);
    exit_code = WaitForExit(pid_, pidfd_, kPatience);
  }
  pid_ = -1;
  return exit_code.value_or(-1);
}

std::shared_ptr<grpc::Channel> BerthdProcess::channel() const {
  grpc::ChannelArguments arguments;
  // Not the connection of a berthd that was here before.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(absl::StrCat("unix:", rpc_path()), grpc::InsecureChannelCredentials(),
                                   arguments);
}

grpc::Status BerthdProcess::CreateRawImage(const std::string& file, uint64_t size) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::CreateImageRequest request;
  request.set_path(absl::StrCat(directory_, "/", file));
  request.set_format(v1::IMAGE_FORMAT_RAW);
  request.set_size_bytes(size);
  v1::ImageInfo image;
  return v1::ImageService::NewStub(channel())->CreateImage(&context, request, &image);
}

grpc::Status BerthdProcess::CreateRawExport(const std::string& name, const std::string& file) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::CreateExportRequest request;
  request.set_name(name);
  request.mutable_spec()->mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  request.mutable_spec()->mutable_image()->set_path(absl::StrCat(directory_, "/", file));
  v1::Export created;
  return v1::ExportService::NewStub(channel())->CreateExport(&context, request, &created);
}

grpc::Status BerthdProcess::Attach(const std::string& name, const std::string& export_name,
                                   v1::Attachment* attachment, v1::AttachmentSpec spec) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::AttachRequest request;
  request.set_name(name);
  *request.mutable_spec() = std::move(spec);
  request.mutable_spec()->set_export_(export_name);
  return v1::AttachmentService::NewStub(channel())->Attach(&context, request, attachment);
}

grpc::Status BerthdProcess::Detach(const std::string& name, bool force) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::DetachRequest request;
  request.set_name(name);
  request.set_force(force);
  google::protobuf::Empty empty;
  return v1::AttachmentService::NewStub(channel())->Detach(&context, request, &empty);
}

grpc::Status BerthdProcess::GetAttachment(const std::string& name, v1::Attachment* attachment) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetAttachmentRequest request;
  request.set_name(name);
  return v1::AttachmentService::NewStub(channel())->GetAttachment(&context, request, attachment);
}

grpc::Status BerthdProcess::Resize(const std::string& export_name, uint64_t size) {
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::UpdateExportRequest request;
  request.set_name(export_name);
  request.mutable_update_mask()->add_paths("size_bytes");
  request.set_size_bytes(size);
  v1::Export updated;
  return v1::ExportService::NewStub(channel())->UpdateExport(&context, request, &updated);
}

std::string ReasonOf(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return "";
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    if (detail.UnpackTo(&info)) return info.reason();
  }
  return "";
}

}  // namespace berth::control
