#include "nbd/tls/server_credentials.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace berth::nbd {

absl::StatusOr<std::unique_ptr<ServerCredentials>> ServerCredentials::Open(const ServerTlsFiles& files,
                                                                           absl::Duration interval,
                                                                           OnChange on_change) {
  std::unique_ptr<ServerCredentials> made(new ServerCredentials(files, std::move(on_change)));
  // Looked at before they are read, so that what changes meanwhile is seen later.
  Signature seen = made->Look();
  absl::StatusOr<std::shared_ptr<const TlsCredentials>> read = TlsCredentials::ForServer(files);
  if (!read.ok()) return read.status();
  {
    MutexLock lock(&made->check_mutex_);
    made->seen_ = std::move(seen);
  }
  {
    MutexLock lock(&made->mutex_);
    made->current_ = *std::move(read);
  }
  if (interval != absl::InfiniteDuration()) {
    made->thread_ = std::thread([watched = made.get(), interval] { watched->Watch(interval); });
  }
  return made;
}

ServerCredentials::~ServerCredentials() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<const TlsCredentials> ServerCredentials::current() const {
  MutexLock lock(&mutex_);
  return current_;
}

void ServerCredentials::Watch(absl::Duration interval) {
  while (true) {
    {
      MutexLock lock(&mutex_);
      const absl::Time next = absl::Now() + interval;
      while (!stopping_ && absl::Now() < next) changed_.WaitUntil(&mutex_, next);
      if (stopping_) return;
    }
    Check();
  }
}

ServerCredentials::Signature ServerCredentials::Look() const {
  std::vector<std::string> paths;
  if (!files_.certificates.empty()) {
    for (const char* name : {"ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem"}) {
      paths.push_back(absl::StrCat(files_.certificates, "/", name));
    }
  }
  if (!files_.psk.empty()) paths.push_back(files_.psk);
  Signature signature;
  for (const std::string& path : paths) {
    struct stat file = {};
    std::vector<int64_t>& facts = signature.emplace_back();
    if (stat(path.c_str(), &file) != 0) continue;
    facts = {static_cast<int64_t>(file.st_dev),
             static_cast<int64_t>(file.st_ino),
             file.st_size,
             file.st_mtim.tv_sec,
             file.st_mtim.tv_nsec,
             file.st_ctim.tv_sec,
             file.st_ctim.tv_nsec};
  }
  return signature;
}

void ServerCredentials::Check() {
  MutexLock one_at_a_time(&check_mutex_);
  Signature seen = Look();
  const bool changed = seen != seen_;
  if (!changed && !failed_) return;
  seen_ = std::move(seen);
  absl::StatusOr<std::shared_ptr<const TlsCredentials>> read = TlsCredentials::ForServer(files_);
  const absl::Status status = read.status();
  failed_ = !status.ok();
  if (failed_ && !changed) return;  // That was told.
  if (read.ok()) {
    MutexLock lock(&mutex_);
    current_.swap(*read);
  }
  on_change_(status);
}

}  // namespace berth::nbd
