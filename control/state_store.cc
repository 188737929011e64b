#include "control/state_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/ending_process.h"
#include "control/log.h"
#include "control/random_id.h"
#include "control/validation.h"
#include "google/protobuf/util/json_util.h"

namespace berth::control {
namespace {

constexpr uint32_t kFormatVersion = 1;
constexpr absl::string_view kSuffix = ".json";
// Far above any record: names, paths and descriptions are bounded at the edge.
constexpr size_t kMaxFileBytes = 1 << 20;
// How long a berthd that was killed may take to be gone.
constexpr absl::Duration kEndingTime = absl::Seconds(10);
constexpr absl::Duration kEndingPause = absl::Milliseconds(5);

absl::Status ErrnoError(absl::string_view action, absl::string_view path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", action, " ", path));
}

// The file's content. Not a link and nothing but a regular file.
absl::StatusOr<std::string> ReadFile(int folder, const std::string& file, absl::string_view path) {
  UniqueFd fd(openat(folder, file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd) return ErrnoError("open", path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoError("look at", path);
  if (!S_ISREG(info.st_mode)) return absl::DataLossError(absl::StrCat(path, " is not a regular file"));
  std::string content(kMaxFileBytes + 1, '\0');
  size_t length = 0;
  while (length < content.size()) {
    const ssize_t n = read(fd.get(), &content[length], content.size() - length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError("read", path);
    if (n == 0) break;
    length += static_cast<size_t>(n);
  }
  if (length > kMaxFileBytes) {
    return absl::DataLossError(absl::StrCat(path, " is longer than ", kMaxFileBytes, " bytes"));
  }
  content.resize(length);
  return content;
}

// Of the process that has the lock file; 0 where it does not say.
pid_t ReadPid(int fd) {
  char text[32];
  const ssize_t size = pread(fd, text, sizeof(text), 0);
  pid_t pid = 0;
  if (size <= 0 ||
      !absl::SimpleAtoi(absl::StripAsciiWhitespace(absl::string_view(text, static_cast<size_t>(size))),
                        &pid)) {
    return 0;
  }
  return pid;
}

absl::Status WriteAll(int fd, absl::string_view content, absl::string_view path) {
  while (!content.empty()) {
    const ssize_t n = write(fd, content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError("write", path);
    content.remove_prefix(static_cast<size_t>(n));
  }
  if (fsync(fd) != 0) return ErrnoError("sync", path);
  return absl::OkStatus();
}

absl::Status FromJson(const std::string& json, google::protobuf::Message* message, bool ignore_unknown) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = ignore_unknown;
  const auto status = google::protobuf::util::JsonStringToMessage(json, message, options);
  if (status.ok()) return absl::OkStatus();
  return absl::DataLossError(std::string(status.message()));
}

template <typename Record>
absl::StatusOr<Record> ParseRecord(const std::string& json, const std::string& name,
                                   const std::string& path) {
  constexpr absl::string_view kWayOut =
      "; restore the file, or delete the object through the API to give it up";
  if (json.empty()) return absl::DataLossError(absl::StrCat(path, " is empty", kWayOut));
  state::v1::Header header;
  if (auto status = FromJson(json, &header, true); !status.ok()) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: ", status.message(), kWayOut));
  }
  if (header.format_version() > kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, " has format version ", header.format_version(),
                                                      ", and this berthd knows ", kFormatVersion,
                                                      "; start the newer berthd that wrote it"));
  }
  if (header.format_version() == 0) {
    return absl::DataLossError(absl::StrCat(path, " has no format_version", kWayOut));
  }
  Record record;
  if (auto status = FromJson(json, &record, false); !status.ok()) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: ", status.message(), kWayOut));
  }
  if (record.name() != name) {
    return absl::DataLossError(absl::StrCat(path, " holds the object \"", absl::CHexEscape(record.name()),
                                            "\" instead of the one that it is named after", kWayOut));
  }
  return record;
}

absl::StatusOr<std::vector<std::string>> ListFiles(int folder, absl::string_view path) {
  // A descriptor of its own, as the stream's position belongs to the open file.
  const int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* const stream = fd < 0 ? nullptr : fdopendir(fd);
  if (stream == nullptr) {
    const absl::Status status = ErrnoError("list", path);
    if (fd >= 0) close(fd);
    return status;
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = readdir(stream)) names.emplace_back(entry->d_name);
  const absl::Status status = errno == 0 ? absl::OkStatus() : ErrnoError("list", path);
  closedir(stream);
  if (!status.ok()) return status;
  std::sort(names.begin(), names.end());
  return names;
}

std::string TemporaryName(absl::string_view file) { return absl::StrCat(".", file, ".tmp"); }

bool IsTemporary(absl::string_view file) {
  return absl::StartsWith(file, ".") && absl::EndsWith(file, ".tmp");
}

}  // namespace

absl::StatusOr<StateStore::Folder> StateStore::OpenFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoError("make", path);
  Folder folder;
  folder.path = path;
  folder.fd.Reset(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.fd) return ErrnoError("open", path);
  // What a crash left half written was never acknowledged.
  absl::StatusOr<std::vector<std::string>> files = ListFiles(folder.fd.get(), path);
  if (!files.ok()) return files.status();
  for (const std::string& file : *files) {
    if (IsTemporary(file)) unlinkat(folder.fd.get(), file.c_str(), 0);
  }
  return folder;
}

absl::StatusOr<std::unique_ptr<StateStore>> StateStore::Open(const std::string& directory) {
  std::unique_ptr<StateStore> store(new StateStore);
  if (absl::Status status = store->TakeLock(directory); !status.ok()) return status;
  absl::StatusOr<Folder> root = OpenFolder(directory);
  if (!root.ok()) return root.status();
  store->directory_ = *std::move(root);
  if (absl::Status status = store->LoadInstanceId(); !status.ok()) return status;
  absl::StatusOr<Folder> exports = OpenFolder(absl::StrCat(directory, "/exports"));
  if (!exports.ok()) return exports.status();
  store->exports_ = *std::move(exports);
  absl::StatusOr<Folder> attachments = OpenFolder(absl::StrCat(directory, "/attachments"));
  if (!attachments.ok()) return attachments.status();
  store->attachments_ = *std::move(attachments);
  if (fsync(store->directory_.fd.get()) != 0) return ErrnoError("sync", directory);
  return store;
}

// The lock comes first: nothing in the directory is touched before it is ours. It is the fence to the process
// before: the kernel frees it when the last of that process's threads has left its system call, so that none
// of its writes through a page cache, which are done there, comes after this.
absl::Status StateStore::TakeLock(const std::string& directory) {
  if (mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoError("make", directory);
  const std::string path = absl::StrCat(directory, "/lock");
  lock_.Reset(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock_) return ErrnoError("open", path);
  const absl::Time deadline = absl::Now() + kEndingTime;
  while (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return ErrnoError("lock", path);
    const pid_t holder = ReadPid(lock_.get());
    if (holder <= 0 || !IsEnding(holder)) {
      return absl::FailedPreconditionError(absl::StrCat("the state directory ", directory,
                                                        " is in use by another berthd",
                                                        holder > 0 ? absl::StrCat(" (pid ", holder, ")") : "",
                                                        "; stop that one or choose another --state-dir"));
    }
    if (absl::Now() >= deadline) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the state directory ", directory, " is in use by a berthd (pid ", holder,
          ") that was killed and has not ended in ", absl::FormatDuration(kEndingTime),
          ": it is stuck in the kernel, and what it was writing may still reach the images; look at "
          "/proc/",
          holder, "/stack and at the storage below the images"));
    }
    absl::SleepFor(kEndingPause);
  }
  // For whoever finds it held. A disk without room for it is told of by what follows.
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(lock_.get(), 0) == 0) (void)!pwrite(lock_.get(), pid.data(), pid.size(), 0);
  return absl::OkStatus();
}

absl::Status StateStore::LoadInstanceId() {
  const std::string file = "instance-id";
  const std::string path = absl::StrCat(directory_.path, "/", file);
  if (faccessat(directory_.fd.get(), file.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno != ENOENT) return ErrnoError("look at", path);
    absl::StatusOr<std::string> id = RandomId();
    if (!id.ok()) return id.status();
    instance_id_ = *std::move(id);
    return WriteFile(directory_, file, absl::StrCat(instance_id_, "\n"));
  }
  absl::StatusOr<std::string> content = ReadFile(directory_.fd.get(), file, path);
  if (!content.ok()) return content.status();
  const absl::string_view id = absl::StripSuffix(*content, "\n");
  const bool valid = id.size() == 32 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
                       return absl::ascii_isxdigit(c) && !absl::ascii_isupper(c);
                     });
  if (!valid) {
    return absl::DataLossError(
        absl::StrCat(path,
                     " is damaged: 32 hexadecimal digits were expected; restore it, or remove it if "
                     "this berthd has no devices in the kernel"));
  }
  instance_id_ = std::string(id.data(), id.size());
  return absl::OkStatus();
}

absl::Status StateStore::WriteFile(const Folder& folder, const std::string& file,
                                   const std::string& content) {
  const std::string path = absl::StrCat(folder.path, "/", file);
  const std::string temporary = TemporaryName(file);
  UniqueFd fd(openat(folder.fd.get(), temporary.c_str(),
                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return ErrnoError("write", path);
  absl::Status status = WriteAll(fd.get(), content, path);
  if (status.ok() && renameat(folder.fd.get(), temporary.c_str(), folder.fd.get(), file.c_str()) != 0) {
    status = ErrnoError("replace", path);
  }
  if (!status.ok()) {
    unlinkat(folder.fd.get(), temporary.c_str(), 0);
    return status;
  }
  if (fsync(folder.fd.get()) != 0) return ErrnoError("sync", folder.path);
  return absl::OkStatus();
}

absl::Status StateStore::RemoveFile(const Folder& folder, absl::string_view name) {
  const std::string file = absl::StrCat(name, kSuffix);
  if (unlinkat(folder.fd.get(), file.c_str(), 0) != 0 && errno != ENOENT) {
    return ErrnoError("remove", absl::StrCat(folder.path, "/", file));
  }
  if (fsync(folder.fd.get()) != 0) return ErrnoError("sync", folder.path);
  return absl::OkStatus();
}

template <typename Record>
absl::Status StateStore::PutRecord(const Folder& folder, Record record) {
  record.set_format_version(kFormatVersion);
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (const auto status = google::protobuf::util::MessageToJsonString(record, &json, options); !status.ok()) {
    return absl::InternalError(
        absl::StrCat("cannot write ", record.name(), " as JSON: ", std::string(status.message())));
  }
  return WriteFile(folder, absl::StrCat(record.name(), kSuffix), json);
}

template <typename Record>
absl::StatusOr<std::vector<StoredObject<Record>>> StateStore::LoadRecords(const Folder& folder) {
  absl::StatusOr<std::vector<std::string>> files = ListFiles(folder.fd.get(), folder.path);
  if (!files.ok()) return files.status();
  std::vector<StoredObject<Record>> objects;
  for (const std::string& file : *files) {
    absl::string_view name = file;
    if (absl::StartsWith(name, ".") || !absl::ConsumeSuffix(&name, kSuffix)) continue;
    if (!CheckName("name", name).ok()) {
      Log(LogLevel::kWarning, "not a file of berthd's, and ignored",
          {{"path", absl::StrCat(folder.path, "/", file)}});
      continue;
    }
    StoredObject<Record> object{.name = std::string(name.data(), name.size()), .record = Record()};
    const std::string path = absl::StrCat(folder.path, "/", file);
    absl::StatusOr<std::string> json = ReadFile(folder.fd.get(), file, path);
    if (json.ok()) {
      object.record = ParseRecord<Record>(*json, object.name, path);
    } else {
      object.record = json.status();
    }
    objects.push_back(std::move(object));
  }
  std::sort(objects.begin(), objects.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return objects;
}

absl::Status StateStore::Put(state::v1::ExportRecord record) {
  return PutRecord(exports_, std::move(record));
}

absl::Status StateStore::Put(state::v1::AttachmentRecord record) {
  return PutRecord(attachments_, std::move(record));
}

absl::Status StateStore::RemoveExport(absl::string_view name) { return RemoveFile(exports_, name); }

absl::Status StateStore::RemoveAttachment(absl::string_view name) { return RemoveFile(attachments_, name); }

absl::StatusOr<std::vector<StoredObject<state::v1::ExportRecord>>> StateStore::LoadExports() const {
  return LoadRecords<state::v1::ExportRecord>(exports_);
}

absl::StatusOr<std::vector<StoredObject<state::v1::AttachmentRecord>>> StateStore::LoadAttachments() const {
  return LoadRecords<state::v1::AttachmentRecord>(attachments_);
}

}  // namespace berth::control
